"""Requests to a detector from beginning to end: ledger, files, Hub repository, card and command line."""

import json

import pytest
import torch
from detection_cases import answers, detector, forgetter, knowing_yolos, named
from errors import refused
from peft import PeftModel

from gs_lora_peft import ForgetRequest, ForgettingLedger, export_forgotten, load_forgotten, merge_forgotten
from gs_lora_peft.cli import main
from gs_lora_peft.hub.publish import stage_repository
from gs_lora_peft.hub.verify import verify_repository
from gs_lora_peft.ledger import format_table

MODELS = {"yolos": knowing_yolos, "rt_detr_v2": lambda: named(detector("rt_detr_v2"))}
SETTINGS = {"yolos": {}, "rt_detr_v2": {"num_train_epochs": 1}}


@pytest.fixture(scope="module", params=MODELS)
def run(request, tmp_path_factory):
    """A detector's name, the folder of its base model, that of a run of two requests, and its outputs at the end."""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    MODELS[name]().save_pretrained(root / "base")
    forgets = forgetter(load(name, root), root / "run", **SETTINGS[name])
    forgets.run([ForgetRequest(["cat"]), ForgetRequest([3])])
    return name, root, answers(forgets.model)


def load(name, root):
    return type(MODELS[name]()).from_pretrained(root / "base").eval()


def test_the_ledger_has_average_precisions(run, capsys):
    """Scores, curves and settings of both tasks; the table and `gs-lora show` print them as what they are."""
    name, root, _ = run
    first, second = ForgettingLedger.load(root / "run").tasks
    assert (first.class_names, second.class_names) == (["cat"], ["dog"])
    assert first.scores["base"].keys() == {"ap_all", "ap_retain"}
    assert {"ap_forget", "ap_retain", "ap_old", "ap50_forget", "ar_forget", "h_mean", "n_forget"} < second.scores[
        "after"
    ].keys()
    assert set(first.curves) >= {"retain_confidence", "forget_confidence", "retain_loss"}
    assert first.settings["training"]["background"] == "matched"
    assert first.sizes["forget"] == 12
    for entry in (first, second):
        assert entry.target == pytest.approx(0.05 * entry.scores["before"]["ap_forget"])
        assert entry.forgotten == (entry.scores["after"]["ap_forget"] <= entry.target)
    assert second.outcome["earlier"]["task_001"]["score"] == pytest.approx(second.scores["after"]["ap_old"])
    if name == "yolos":
        assert first.scores["before"]["ap_forget"] > 0.99 > 0.01 > first.scores["after"]["ap_forget"]
        assert second.scores["after"]["ap_old"] < 0.01
        assert second.scores["after"]["ap_retain"] > 0.6
    table = format_table(ForgettingLedger.load(root / "run"))
    assert "AP_f before" in table
    assert "average precision over all categories" in table
    assert "Acc" not in table
    with pytest.raises(SystemExit):
        main(["show", str(root / "run")])
    shown = capsys.readouterr().out
    assert "AP_f" in shown
    assert "Average precisions" in shown


def test_everything_loads_again(run, tmp_path):
    """`load_forgotten`, one adapter for stock PEFT, and merged weights give the detector that was left."""
    name, root, expected = run
    assert torch.equal(answers(load_forgotten(load(name, root), root / "run", merge=True)), expected)
    torch.testing.assert_close(answers(load_forgotten(load(name, root), root / "run")), expected, atol=1e-4, rtol=1e-4)
    export_forgotten(root / "run", tmp_path / "exported")
    base = load(name, root)
    base.config.tie_word_embeddings = False
    loaded = PeftModel.from_pretrained(base, tmp_path / "exported")
    torch.testing.assert_close(answers(loaded), expected, atol=1e-4, rtol=1e-4)
    merge_forgotten(load(name, root), root / "run", tmp_path / "merged")
    assert torch.equal(answers(type(base).from_pretrained(tmp_path / "merged")), expected)


def test_the_card_says_what_is_so(run, tmp_path, monkeypatch):
    """AP in words and metadata, pictures, and code that works as it stands, also with tied heads."""
    name, root, expected = run
    stage_repository(root / "run", tmp_path / "staged")
    card = (tmp_path / "staged" / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card
    assert "type: mAP" in card
    assert "Average precisions in percent. AP_f" in card
    assert "ccurac" not in card.replace("accuracies.png", "")
    assert {path.name for path in (tmp_path / "staged" / "figures").iterdir()} == {
        "accuracies.png",
        "group_norms.png",
        "training_curves.png",
    }
    assert ("tie_word_embeddings" in card) == (name == "rt_detr_v2")
    snippets = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    monkeypatch.chdir(tmp_path / "staged")
    for snippet in snippets[:2]:
        scope = {}
        exec(snippet.replace('from_pretrained("base")', f"from_pretrained({str(root / 'base')!r})"), scope)
        found = answers(scope.get("model", scope["base_model"]))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert getattr(scope["base_model"].config, "tie_word_embeddings", False) == (name == "rt_detr_v2")
    assert not verify_repository(tmp_path / "staged", root / "base").problems


def test_nothing_forgotten_is_named_where_it_is_withheld(run, tmp_path):
    """A withheld ledger has rounded scores and no numbers of objects."""
    _, root, _ = run
    stage_repository(root / "run", tmp_path / "staged", withhold_classes=True)
    text = (tmp_path / "staged" / "forgetting.json").read_text() + (tmp_path / "staged" / "README.md").read_text()
    assert not any(name in text for name in ('"cat"', '"dog"', "n_forget", " cat ", " dog "))
    after = json.loads((tmp_path / "staged" / "forgetting.json").read_text())["tasks"][0]["scores"]["after"]
    assert all(value is None or round(value, 2) == value for value in after.values())
    assert "ap_forget" in after


def test_revoking_brings_the_category_back(tmp_path):
    """The scores of the category before and after, and the model that is left."""
    forgets = forgetter(knowing_yolos(), tmp_path / "run")
    forgets.run([ForgetRequest(["cat"])])
    entry = forgets.revoke("task_001")
    before, after = entry.revocation["scores_before"], entry.revocation["scores_after"]
    assert before["ap_revoked"] < 0.01
    assert after["ap_revoked"] > 0.99
    assert torch.equal(answers(forgets.model), answers(knowing_yolos()))


def test_gaps_of_a_head_are_no_other_names(tmp_path):
    """COCO's heads call unused ids "N/A", several times: data numbered as the model does are accepted, others not."""
    model = knowing_yolos()
    model.config.id2label = {0: "N/A", 1: "bee", 2: "cat", 3: "N/A"}
    assert forgetter(model, tmp_path / "run").label_names == ["ant", "bee", "cat", "dog"]
    model.config.id2label = {0: "N/A", 1: "cat", 2: "bee", 3: "N/A"}
    with refused("training data: 'objects': class 1", "bee"):
        forgetter(model, tmp_path / "other")
