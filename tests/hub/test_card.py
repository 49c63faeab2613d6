"""The card of a published run: what the Hub reads of it, what people read, and that its code works."""

import re
import shutil
from pathlib import Path

import card_cases as cases
import hub_cases
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given, settings, strategies as st
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from PIL import Image

from gs_lora_peft.hub import stage_repository
from gs_lora_peft.hub.card import build_card, task_ranges
from gs_lora_peft.hub.composite import CompositeReport
from gs_lora_peft.hub.export import _card
from gs_lora_peft.hub.withhold import coarse_audit
from gs_lora_peft.io import code_span
from gs_lora_peft.ledger.run_table import doubts, not_forgotten
from gs_lora_peft.reports import Table, escape_markdown, render_card

REPO = "me/forgotten"
EXACT = CompositeReport(rank=8, recompressed=[], relative_error=0.0)


def text_of(card):
    """What people read, on one line, without what the Hub reads."""
    return " ".join(card.text.split())


def blocks_of(card):
    """The code that the card shows."""
    return [token.content for token in MarkdownIt("commonmark").parse(card.text) if token.info == "python"]


def rows_of(card, first):
    """The rows of the table whose header begins like this, by their first cell."""
    lines = card.text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    cells = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return {row[0]: row[1:] for row in cells}


@pytest.fixture
def publish(base, first_task, finished, tmp_path, monkeypatch):
    """Stages a run; base and repository become folders of the current one that are named as on the Hub."""
    # The runs must be there before: in a folder that holds the base, its name would be taken for a path.
    shutil.copytree(base, tmp_path / hub_cases.BASE_ID)
    monkeypatch.chdir(tmp_path)

    def stage(run, repo_id=REPO):
        stage_repository(run, tmp_path / REPO, repo_id)
        return ModelCard.load(tmp_path / REPO / "README.md")

    return stage


def executed(code):
    """The names that a piece of code leaves behind."""
    names = {}
    exec(code, names)
    return names


# What the Hub reads


def test_metadata_round_trip():
    """The Hub's own library reads back what was written, and every field that the Hub knows is there."""
    card = build_card(cases.run(3), repo_id=REPO, composite=EXACT, dataset="org/data", license="cc-by-4.0")
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    data = again.data.to_dict()
    results = data.pop("model-index")
    assert data == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "datasets": ["org/data"],
        "library_name": "peft",
        "license": "cc-by-4.0",
        "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["gs-lora", "unlearning", "continual-forgetting", "lora"],
    }
    name, flat = model_index_to_eval_results(results)
    assert name == "forgotten"
    assert flat == card.data.eval_results


def test_one_result_for_each_task_and_split():
    """The model index has a result for every task and every scored set of classes, with the ledger's numbers."""
    (index,) = build_card(cases.run(3), repo_id=REPO, dataset="org/data").data.to_dict()["model-index"]
    found = {result["dataset"]["config"]: result for result in index["results"]}
    splits = {1: ("forget", "retain"), 2: ("forget", "retain", "old"), 3: ("forget", "retain", "old")}
    assert list(found) == [f"task_{number:03d}_{split}" for number in splits for split in splits[number]]
    second = found["task_002_forget"]
    assert second["task"] == {"type": "image-classification"}
    assert second["dataset"]["split"] == "test"
    assert second["dataset"]["type"] == "org/data"
    assert second["dataset"]["name"] == "org/data, task_002: classes to forget"
    assert [(metric["type"], metric["value"]) for metric in second["metrics"]] == [
        ("accuracy", 0.0123),
        ("h_mean", 0.969),
    ]
    assert found["task_002_old"]["metrics"][0]["value"] == 0.002


def test_what_is_not_known_is_not_claimed():
    """No licence, data set, base model or kind of task is made up."""
    local = {**cases.BASE, "name_or_path": "my-folder", "revision": None, "model_class": "FaceModel"}
    card = build_card(cases.run(1, base=local, scores={}), repo_id=None)
    assert card.data.to_dict() == {
        "library_name": "peft",
        "tags": ["gs-lora", "unlearning", "continual-forgetting", "lora"],
    }
    assert "not known to be on the Hub" in text_of(card)
    assert "given as" not in text_of(card)  # no licence


@pytest.mark.parametrize(
    ("name", "revision", "known"),
    [
        ("org/base", None, True),
        ("gpt2", "abc", True),
        ("gpt2", None, False),
        (None, None, False),
        ("a b", "abc", False),
    ],
)
def test_a_base_model_is_named_only_where_it_is_on_the_hub(name, revision, known):
    """The last part of a local path may be another user's model on the Hub; it does not become `base_model`."""
    card = build_card(cases.run(1, base={**cases.BASE, "name_or_path": name, "revision": revision}), repo_id=REPO)
    assert card.data.to_dict().get("base_model") == (name if known else None)
    assert ("base_model_relation" in card.data.to_dict()) == known


@pytest.mark.parametrize(
    ("model_class", "tag"),
    [
        ("ViTForImageClassification", "image-classification"),
        ("DetrForObjectDetection", "object-detection"),
        ("BertForSequenceClassification", "text-classification"),
        ("ResNetForImageClassificationX", None),
        (None, None),
    ],
)
def test_the_pipeline_follows_from_the_model_class(model_class, tag):
    """The tag comes from what the ledger recorded, so that detection and text need no change here."""
    card = build_card(cases.run(1, base={**cases.BASE, "model_class": model_class}), repo_id=REPO)
    assert card.data.to_dict().get("pipeline_tag") == tag
    assert any("pipeline(" in block for block in blocks_of(card)) == (tag is not None)


def test_the_same_run_gives_the_same_card(tmp_path):
    """Pushing again changes no byte; the file reads back as the card."""
    first, second = (build_card(cases.run(3), repo_id=REPO, figures=["figures/accuracies.png"]) for _ in range(2))
    assert str(first) == str(second)
    first.save(tmp_path / "README.md")
    assert str(ModelCard.load(tmp_path / "README.md")) == str(first)


# Code


@pytest.mark.parametrize(("run", "tolerance"), [("first_task", 0.0), ("finished", 1e-5)])
def test_every_snippet_runs(run, tolerance, publish, request):
    """Each piece of code, executed as it stands, gives the model that has forgotten: bit-equal after one request."""
    folder, live = request.getfixturevalue(run)
    peft, transformers, pipeline, package = blocks_of(publish(folder))
    models = {peft: executed(peft)["model"], transformers: executed(transformers)["base_model"]}
    pipe = executed(pipeline)["pipe"]
    models[pipeline] = pipe.model
    models[package] = executed(package.replace(", tasks=1", ""))["model"]
    for code, model in models.items():
        difference = torch.tensor(hub_cases.logits(model)) - torch.tensor(live)
        assert difference.abs().max() <= tolerance, code
    answers = pipe(Image.new("RGB", (8, 8), "orange"))
    assert {answer["label"] for answer in answers} <= set(hub_cases.NAMES)


def test_code_for_several_requests_picks_one(publish, finished, first_task):
    """Of several requests, `tasks=1` and the subfolder that the card names load one."""
    card = publish(finished[0])
    model = executed(blocks_of(card)[-1])["model"]
    assert list(model.peft_config) == ["task_001"]
    assert torch.equal(torch.tensor(hub_cases.logits(model)), torch.tensor(first_task[1]))
    (subfolder,) = re.findall(r'subfolder="([^"]+)"', card.text)
    names = executed(blocks_of(card)[0].replace(f'"{REPO}"', f'"{REPO}", subfolder="{subfolder}"'))
    assert names["model"].peft_config["default"].r == 4
    assert subfolder == "tasks/task_003"


def test_code_without_a_repository_loads_from_here(publish, first_task, monkeypatch):
    """A card written into a folder has code that works in that folder."""
    code = blocks_of(publish(first_task[0], repo_id=None))[0]
    monkeypatch.chdir(REPO)
    model = executed(code.replace(hub_cases.BASE_ID, "../tiny-vit"))["model"]
    assert torch.equal(torch.tensor(hub_cases.logits(model)), torch.tensor(first_task[1]))


@pytest.mark.parametrize("name", ['a"b', "a\nimport os", "```", "ä"])
def test_names_in_code_stay_text(name):
    """A name from elsewhere cannot leave its quotation marks or its block."""
    base = {**cases.BASE, "name_or_path": name, "model_class": "os; import sys"}
    loaded = []

    class BaseModel:
        @staticmethod
        def from_pretrained(path, revision=None):
            loaded.append(path)

    for code in blocks_of(build_card(cases.run(1, base=base), repo_id=REPO)):
        lines = [line for line in code.splitlines() if line.startswith("base_model =")]
        exec("\n".join(lines), {"BaseModel": BaseModel})
    assert loaded == [name] * 3


# What people read


def test_what_was_asked_and_what_came_of_it():
    """Request, times, scores before and after, groups, settings, versions and data are those of the ledger."""
    card = build_card(cases.run(3), repo_id=REPO, composite=EXACT, dataset="org/data", license="mit")
    requests = rows_of(card, "Task | To forget")
    assert requests["task_002"] == ["person_02", "2026-01-01 02:00 UTC", "2026-01-01 02:00 UTC", "in effect"]
    scores = rows_of(card, "Task | Acc_f before")
    assert scores["task_001"] == ["98.0", "1.2", "97.3", "97.0", "97.0", "–", "–", "96.9", "8 of 12"]
    assert scores["task_003"] == ["98.0", "1.2", "97.3", "97.0", "96.9", "0.0", "0.2", "96.9", "8 of 12"]
    groups = rows_of(card, "Task | Active groups (of vit.layers)")
    assert groups["task_003"] == ["1, 2, 4, 5, 7, 8, 10, 11", "390", "137", "1210"]
    assert rows_of(card, "Setting") == {"config.r": ["8"], "training.learning_rate": ["0.01"], "data.shots": ["–"]}
    assert rows_of(card, "Library") == {"python": ["3.11.7"], "torch": ["2.13.0"]}
    text = text_of(card)
    assert "3 requests are in effect" in text
    assert "The base model answers 97.6 % of all evaluation samples right" in text
    assert "The scores of task_001 to task_003 were measured on the `test` split of the data" in text
    assert "The row of task_003 is the adapter in the root of this repository" in text
    assert "Data set: org/data." in text
    assert "still holds what was forgotten" in text
    assert "given as `mit`" in text
    assert "because" not in text
    assert "case 4711" not in text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("test", "`test` split"),
        ("validation", "`validation` split"),
        ("eval_dataset", "a separate data set"),
        ("train", "**the training data itself**"),
        ("holdout", "measured on `holdout`"),
        (None, "data that the ledger does not name"),
    ],
)
def test_the_card_says_on_which_data_it_was_measured(data, said):
    """Above all it says so where there was no test data."""
    ledger = cases.run(1)
    scores = {**ledger.tasks[0].scores, "data": data}
    card = build_card(cases.run(1, scores=scores), repo_id=REPO)
    assert said in text_of(card)
    assert ("say nothing about samples not seen" in text_of(card)) == (data == "train")


def outcome(forgotten=True, known_before=True, target=0.05, **earlier):
    scored = {name: {"score": score, "forgotten": score <= target} for name, score in earlier.items()}
    return {"forgotten": forgotten, "target": target, "known_before": known_before, "earlier": scored}


def scores(after, prefix="acc", data="test"):
    """Of a task in which nothing but the classes to forget was scored."""
    return {"data": data, "before": {f"{prefix}_forget": 0.9}, "after": {f"{prefix}_forget": after}}


MAKES = "makes its base model forget"


@pytest.mark.parametrize("withheld", [False, True])
@pytest.mark.parametrize(
    ("model_class", "prefix", "said"),
    [
        ("ViTForImageClassification", "acc", ("70 % of the images of {} ", "5 %")),
        ("BertForSequenceClassification", "acc", ("70 % of the samples of {} ", "5 %")),
        ("DetrForObjectDetection", "ap", ("objects of {} ", "average precision of 70 %", "90 % before", "5 %")),
    ],
)
def test_a_run_that_did_not_forget_says_so_in_one_sentence(withheld, model_class, prefix, said):
    """First of all, with figures; the card does not claim that the adapter makes the model forget."""
    bad = {"outcome": outcome(False), "scores": scores(0.7, prefix)}
    good = {"outcome": outcome(), "scores": scores(0.01, prefix)}
    ledger = cases.run(2, base={**cases.BASE, "model_class": model_class}, changes={1: bad, 2: good})
    text = text_of(build_card(ledger, repo_id=REPO, withheld=withheld))
    assert MAKES not in text
    (sentence,) = not_forgotten(ledger, withheld=withheld)
    assert "task_001" in sentence
    assert all(part.format("the withheld classes" if withheld else "person_01") in sentence for part in said)
    assert text.index(sentence) < text.index("Base model:")
    assert "task_002 is forgotten as measured: " in text
    assert ("person" in text) != withheld


def test_a_run_that_forgot_says_how_much_is_left():
    """One sentence for all tasks, with the worst of their figures."""
    changes = {1: {"outcome": outcome(), "scores": scores(0.02)}, 2: {"outcome": outcome(task_001=0.03)}}
    text = text_of(build_card(cases.run(2, changes=changes), repo_id=REPO))
    assert MAKES in text
    assert "task_001 to task_002 are forgotten as measured: at most 3 % of the samples of their classes" in text
    assert "not forgotten" not in text


def test_classes_that_came_back_are_told():
    """What was forgotten once and is recognised after a later task is no longer said to be forgotten."""
    changes = {1: {"outcome": outcome()}, 2: {"outcome": outcome(task_001=0.4)}}
    ledger = cases.run(2, changes=changes)
    text = text_of(build_card(ledger, repo_id=REPO))
    assert MAKES not in text
    (sentence,) = not_forgotten(ledger)
    assert sentence in text
    assert all(part in sentence for part in ("task_001 came back", "task_002", "40 % of the images of person_01"))


@pytest.mark.parametrize(
    ("more", "doubtful"),
    [
        ({"outcome": outcome(), "scores": scores(0.0, data="train")}, 1),
        ({"outcome": outcome(known_before=False)}, 1),
        ({"outcome": outcome(None), "scores": scores(None)}, 1),
        ({"outcome": outcome(None, known_before=False), "scores": scores(None, data="train")}, 3),
        ({"outcome": outcome()}, 0),
        ({}, 0),
    ],
)
def test_the_card_says_what_makes_its_scores_doubtful(more, doubtful):
    """Training data, nothing that was known, nothing to measure on; of old ledgers nothing is claimed."""
    ledger = cases.run(1, **more)
    text = text_of(build_card(ledger, repo_id=REPO))
    assert (MAKES in text) == (more.get("outcome", {}).get("forgotten") is True)
    lines = doubts(ledger)
    assert len(lines) == doubtful
    assert all("task_001" in line and line in text for line in lines)


def test_withheld_classes_are_in_no_line():
    """With `withheld=True` no names, ids, notes or numbers of samples get in, even from a ledger that has them."""
    card = build_card(cases.run(3), repo_id=REPO, withheld=True)
    assert not re.search(r"person|because|4711|\b137\b|\b1210\b|\b390\b|class \d", str(card))
    assert rows_of(card, "Task | To forget")["task_001"][0] == "withheld"
    assert "can see which classes it no longer knows" in text_of(card)


def test_a_withheld_ledger_shows_its_hashes():
    """Requests of a ledger without classes appear by number and keyed hash."""
    request = {"withheld": True, "digest": "hmac-sha256:" + "ab" * 32, "requested_at": cases.at(1)}
    ledger = cases.run(1, request=request, classes=None, class_names=None, sizes={})
    card = build_card(ledger, repo_id=REPO)
    assert rows_of(card, "Task | To forget")["task_001"][0] == "withheld (hmac-sha256:abababababab…)"
    assert "hashes are keyed" in text_of(card)
    assert "hashes are keyed" not in text_of(build_card(cases.run(1), repo_id=REPO))


def test_a_revoked_task_takes_the_scores_after_it_along():
    """What was scored with a task that is gone now is marked and is no result for the Hub; what is current is said."""
    measured = {"acc_revoked": 0.9, "acc_still_forgotten": 0.01, "acc_retain": 0.95}
    revoked = cases.revoked(5, scores_before={**measured, "acc_revoked": 0.0}, scores_after=measured)
    # Task 2 was revoked after task 3, before task 7.
    card = build_card(cases.run(7, changes={2: revoked, 3: {}, 7: {}}), repo_id=REPO)
    assert rows_of(card, "Task | To forget")["task_002"][-1] == "revoked 2026-01-01 05:00 UTC"
    starred = [name for name in rows_of(card, "Task | Acc_f before") if name.endswith("\\*")]
    assert starred == ["task_002\\*", "task_003\\*", "task_004\\*", "task_005\\*"]
    configs = [result.dataset_config for result in card.data.eval_results]
    assert {config[:8] for config in configs} == {"task_001", "task_006", "task_007"}
    assert rows_of(card, "Revoked")["task_002"] == ["0.0 → 90.0", "1.0 → 1.0", "95.0 → 95.0"]
    assert "6 requests are in effect" in text_of(card)
    assert "task_003 to task_005: scored while a task that has been revoked since was in effect" in text_of(card)
    assert "The row of task_007 is the adapter in the root" in text_of(card)
    last = build_card(cases.run(3, changes={2: revoked}), repo_id=REPO)
    assert "was last scored when task_002 was revoked" in text_of(last)
    unmeasured = build_card(cases.run(3, changes={2: cases.revoked(5)}), repo_id=REPO)
    assert "was not scored after task_002 was revoked" in text_of(unmeasured)


def test_nothing_in_effect_is_said():
    """All tasks revoked, or none yet: the card does not claim that anything is forgotten."""
    for ledger in (cases.run(0), cases.run(1, changes={1: cases.revoked(5)})):
        card = build_card(ledger, repo_id=REPO)
        assert "No request is in effect: with this adapter the model answers as the base model does" in text_of(card)
        assert "model-index" not in card.data.to_dict()
        assert "tasks=" not in card.text
    assert "Nothing yet." in build_card(cases.run(0), repo_id=REPO).text


def test_an_adapter_of_zeros_is_said_to_do_nothing():
    """Sparsity that dropped every group leaves an adapter that changes nothing, and the card says so."""
    card = build_card(cases.run(3, changes={2: {"zero": cases.BLOCKS}}), repo_id=REPO)
    assert "Every group of task_002 is zero: the adapter does nothing" in text_of(card)
    assert rows_of(card, "Task | Active groups (of vit.layers)")["task_002"][0].startswith("none")
    assert rows_of(card, "Task | Acc_f before")["task_002"][-1] == "0 of 12"


def test_missing_scores_settings_and_versions_are_said_to_be_missing():
    """A gap is shown as one, not left out or filled."""
    card = build_card(cases.run(2, scores={}, settings={}, versions={}, groups={}, sizes={}), repo_id=REPO)
    assert "how well this worked is not known" in text_of(card)
    assert "The ledger holds no scores of task_001 to task_002." in text_of(card)
    assert card.text.count("Not recorded.") == 2
    partly = build_card(cases.run(3, changes={2: {"scores": {}}}), repo_id=REPO)
    assert rows_of(partly, "Task | Acc_f before")["task_002"][:-1] == ["–"] * 8
    assert "The ledger holds no scores of task_002." in text_of(partly)


def test_settings_that_changed_are_shown_with_their_tasks():
    """Two values of one setting each carry the tasks they belong to."""
    other = {"settings": {"config": {"r": 16}, "training": {"learning_rate": 0.01}, "data": {"shots": None}}}
    card = build_card(cases.run(5, changes={2: other, 5: other}), repo_id=REPO)
    assert rows_of(card, "Setting")["config.r"] == ["8 (task_001, task_003 to task_004); 16 (task_002, task_005)"]


@pytest.mark.parametrize(
    ("composite", "said", "not_said"),
    [
        (EXACT, "is the sum of the tasks in effect, without compression (rank 8 at most)", "compressed."),
        (
            CompositeReport(rank=4, recompressed=["a", "b"], relative_error=0.0123),
            "error of a layer's update",
            "without compression",
        ),
        (None, "What this does not promise", "compress"),
    ],
)
def test_how_the_root_adapter_was_made(composite, said, not_said):
    """A compressed root states its error; nothing is said where nothing is known."""
    text = text_of(build_card(cases.run(2), repo_id=REPO, composite=composite))
    assert said in text
    assert not_said not in text
    if composite and composite.recompressed:
        assert "In 2 layers" in text
        assert "is 1.2e-02" in text


def test_pictures_are_shown_and_described():
    """Every picture is linked with words for those who cannot see it."""
    names = ["figures/accuracies.png", "figures/group_norms.png", "figures/training_curves.png"]
    card = build_card(cases.run(2), repo_id=REPO, figures=names)
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", card.text)
    assert [path for _, path in shown] == names
    assert all(len(words) > 20 for words, _ in shown)
    assert "![" not in build_card(cases.run(2), repo_id=REPO).text


def section(card, title):
    """The text of one section, on one line."""
    return " ".join(card.text.split(f"## {title}\n")[1].split("\n## ")[0].split())


def test_without_an_audit_the_card_says_that_nothing_was_measured():
    """And gives the command; without a request there is nothing to attack."""
    said = section(build_card(cases.run(2), repo_id=REPO), "Is it gone?")
    assert said.startswith("**It was not measured whether what was forgotten can be recovered**")
    assert f"gs-lora audit {REPO} --data" in said
    assert "Is it gone?" not in build_card(cases.run(0), repo_id=REPO).text


def test_the_verdict_of_an_audit():
    """Verdict, gap, attack, reference, date, and a link to the report if that is published."""
    ledger = cases.audited(cases.run(2))
    said = section(build_card(ledger, repo_id=REPO), "Is it gone?")
    assert said.startswith(escape_markdown(ledger.audit["verdict"]))
    for part in (
        "+12.3 ± 2.5 points",
        "nearest neighbours",
        "3 models that were retrained",
        "2026-01-05",
        "2 attacks",
    ):
        assert part in said
    assert "[The report](audit/report.md)" in said
    assert "quick" not in said
    said = section(build_card(cases.audited(cases.run(2), files={}, quick=True), repo_id=REPO), "Is it gone?")
    assert "report.md" not in said
    assert "a quick audit" in said
    nothing = {"recovery_gap": None, "recovered": None, "verdict": "Nothing was judged.", "reference": "random"}
    said = section(build_card(cases.audited(cases.run(2), **nothing), repo_id=REPO), "Is it gone?")
    assert said.startswith("Nothing was judged. Audited on 2026-01-05")


def test_an_audit_of_earlier_tasks_is_not_that_of_the_present():
    """What came after it is told first."""
    said = section(
        build_card(cases.audited(cases.run(3), tasks=["task_001", "task_002"]), repo_id=REPO), "Is it gone?"
    )
    assert said.startswith(
        "**Audited after task_002; task_003, which came later, is not audited.** The verdict of then:"
    )


def test_a_withheld_audit_says_what_was_measured():
    """A distance stays a distance, and a weak reference weak; in whole numbers."""
    record = cases.audited(cases.run(1)).audit
    record["recovery_gap"]["judged"] = "distance"
    record["kept"] = {"original": 97.4, "references": [20.4]}
    audit = coarse_audit(record)
    assert audit["recovery_gap"]["judged"] == "distance"
    assert "differs by 12 ± 2 points from" in audit["verdict"]
    assert audit["kept"] == {"original": 97, "references": [20]}
    assert "a reference is weak, right on 20 % of the kept samples and the original on 97 %" in audit["verdict"]
    assert coarse_audit(audit) == audit


def test_a_withheld_audit_is_rounded():
    """Whole points, which reveal no number of samples, and no report."""
    card = build_card(cases.audited(cases.run(2)), repo_id=REPO, withheld=True)
    said = section(card, "Is it gone?")
    assert "recovers 12 ± 2 points" in said
    assert "+12 ± 2 points" in said
    assert "report.md" not in said


@pytest.mark.parametrize("names", [["task_001", "task_002"], ["task_001"]])
def test_the_card_of_a_merged_model_tells_an_audit_of_its_tasks(tmp_path, names):
    """The weights that were attacked are those of the merged model, if all audited tasks and no others are merged."""
    ledger = cases.audited(cases.run(2))
    text = text_of(_card(ledger, "ViTForImageClassification", names, REPO, tmp_path))
    assert ("An audit attacked these weights: Not gone, only silent" in text) is (len(names) == 2)
    assert ("Whether something can be recovered was not measured" in text) is (len(names) == 1)
    assert "12.3" not in text  # the card of a merged model names no class, nor numbers that reveal samples


@pytest.mark.parametrize("count", [1, 2, 100])
def test_a_card_of_any_length_is_whole(count):
    """All sections and all rows are there, and long tables are folded."""
    changes = {1: {"outcome": outcome(False)}, 2: {"outcome": outcome()}}
    card = build_card(cases.run(count, blocks=cases.LONG_BLOCKS, changes=changes), repo_id=REPO)
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", card.text, flags=re.DOTALL), flags=re.MULTILINE)
    assert headings == [
        "forgotten",
        "What was asked",
        "How well it worked",
        "What changed in the model",
        "Is it gone?",
        "How to load it",
        "How it was trained and measured",
        "What this does not promise",
    ]
    for first in ("Task | To forget", "Task | Acc_f before", "Task | Active groups (of model)"):
        assert list(rows_of(card, first)) == [f"task_{number:03d}" for number in range(1, count + 1)]
    assert card.text.count("<details>") == card.text.count("</details>") == (5 if count > 20 else 2)
    assert "\n\n\n" not in card.text
    assert not re.search(r"[{}%]{2}|None\b|Undefined", card.text)


HOSTILE = (
    "a|b <img src=x onerror=alert(1)> [l](javascript:x) *b* _c_ `d` ~~e~~ \\ \n\n# heading\n| x |\n--- person_07 &lt;"
)


def test_names_from_elsewhere_make_no_markup():
    """Class names and base names with Markdown or HTML in them are shown as they are."""
    base = {**cases.BASE, "name_or_path": HOSTILE, "model_class": HOSTILE, "revision": HOSTILE[:12]}
    failed = {"outcome": outcome(False, known_before=False)}
    entry = {"class_names": [HOSTILE], "settings": {HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}, **failed}
    card = build_card(cases.run(1, base=base, **entry), repo_id=REPO, dataset="org/data")
    plain = build_card(
        cases.run(
            1,
            settings={"a": "b"},
            versions={"a": "b"},
            base={**cases.BASE, "name_or_path": "a b", "model_class": "A"},
            **failed,
        ),
        repo_id=REPO,
        dataset="org/data",
    )
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])

    def kinds(text):
        return [
            t.type for token in parser.parse(text) for t in (token, *(token.children or [])) if "html" not in t.type
        ]

    assert "onerror=alert(1)>" not in re.sub(r"```.*?```", "", card.text, flags=re.DOTALL).replace("&gt;", "")
    assert kinds(card.text) == kinds(plain.text)


def test_escaped_text_reads_as_it_was():
    """What is shown is the text itself, in one line, in one cell."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = parser.render(Table(["x", "y"], [[HOSTILE, "z"]]).to_markdown())
    cells = re.findall(r"<td>(.*?)</td>", shown)
    unescaped = cells[0].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert unescaped == " ".join(HOSTILE.split())
    assert cells[1] == "z"


def test_the_card_names_the_method():
    """Another method than GS-LoRA is named with its tasks, and only then."""
    other = {"settings": {"config": {"r": 8}, "method": {"name": "neggrad", "share": 0.9}}}
    assert "The adapter was trained with group-sparse LoRA (GS-LoRA, [arXiv:2403.11530]" in text_of(
        build_card(cases.run(2), repo_id=REPO)
    )
    only = text_of(build_card(cases.run(2, **other), repo_id=REPO))
    assert "The adapter was trained with the method `neggrad` by the package `gs_lora_peft`." in only
    assert "GS-LoRA" not in only
    both = text_of(build_card(cases.run(3, changes={2: other}), repo_id=REPO, withheld=True))
    assert "2403.11530)) (task_001, task_003), with the method `neggrad` (task_002) by the package" in both
    none = text_of(build_card(cases.run(0), repo_id=REPO))
    assert "The adapter was made by the package" in none


def test_a_template_escapes_what_it_prints():
    """Nobody has to think of it; only code and tables go through, and a value that is missing is an error."""
    values = {"title": HOSTILE, "repo": 'a"b', "base": "x`y", "active": 1, "total": 2, "scores": Table(["a"], [["*"]])}
    values["method"] = HOSTILE
    card = render_card("adapter", ModelCardData(license="mit"), **values)
    assert card.data.license == "mit"
    assert f"# {escape_markdown(HOSTILE)}\n" in card.text
    assert f"({escape_markdown(HOSTILE)})" in card.text
    assert 'from_pretrained(base_model, "a\\"b")' in card.text
    assert "`x'y`" in card.text
    assert "| a |\n| --- |\n| \\* |" in card.text
    with pytest.raises(UndefinedError):
        render_card("adapter", ModelCardData())


def test_neighbouring_tasks_are_drawn_together():
    """A hundred names become one line that can be read."""
    assert task_ranges(["task_001", "task_002", "task_003", "task_007", "task_009", "task_010"]) == (
        "task_001 to task_003, task_007, task_009 to task_010"
    )
    assert task_ranges([]) == ""


UNSEEN = st.text(st.sampled_from("ab\0\x07\x1b\n\r\x7f\x85\x9b\u2028\u202e\u2066\u200b\ufeff\u00ad`|\"'"), min_size=1)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(UNSEEN)
def test_nothing_unseen_reaches_a_card(text):
    """Whatever a ledger holds, no control character and none that turns or hides text gets into README.md."""
    base = {**cases.BASE, "name_or_path": text, "model_class": text, "revision": text}
    entry = {
        "class_names": [text],
        "settings": {text: text},
        "versions": {text: [text]},
        "groups": {"active": [f"{text}.1", "x.2"], "zero": [text], "total": 3},
        "scores": {"data": text, "after": {"acc_forget": 0.5}},
        "curves": None,
    }
    changes = {
        2: {**cases.revoked(3, reason=text)},
        3: {"classes": None, "class_names": None, "request": {"digest": text}},
    }
    ledger = cases.run(3, base=base, changes=changes, **entry)
    content = str(build_card(ledger, repo_id=REPO, figures=["figures/accuracies.png"]))
    merged = str(_card(ledger, "ViTForImageClassification", ["task_001"], None, Path(text.replace("\0", ""))))
    for card in (content, merged, code_span(text)):
        assert all(character.isprintable() or character == "\n" for character in card)


@pytest.mark.parametrize("name", ["نمی‌خواهم", "👩‍🔬", "日本　人", "naïve café"])
def test_names_of_all_scripts_are_shown(name):
    """What joins letters and parts of emoji stays; other spaces become plain ones."""
    assert escape_markdown(name) == " ".join(name.split())
