"""Merging for real erasure: a full model in which nothing of the changed layers' base weights is left."""

from dataclasses import replace

import hub_cases as cases
import pytest
import torch
from client_process import ClientError
from errors import refused
from hub_refusals import ledger_refused
from loopback import OWNER
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

from gs_lora_peft import ForgettingLedger, LedgerError, load_forgotten, merge_forgotten, weights_fingerprint
from gs_lora_peft.errors import InvalidInputError


@pytest.fixture
def live(base):
    """The base model as a user has loaded it."""
    model = cases.load_base(base)
    model.config._name_or_path = str(base)
    return model


def tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def changed_layers(folder):
    """The layers that the run says it changed."""
    files = folder.glob("tasks/*/adapter_model.safetensors")
    return {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for path in files for key in load_file(path)}


@pytest.mark.parametrize("given", ["model", "folder"])
def test_the_merged_model(base, live, finished, tmp_path, given):
    """It is the model that the run has, to the bit, processor included; what was given is as it was."""
    folder, logits = finished
    before = weights_fingerprint(live)
    out = merge_forgotten(live if given == "model" else base, folder, tmp_path / "out")
    assert cases.logits(AutoModelForImageClassification.from_pretrained(out)) == logits
    assert AutoImageProcessor.from_pretrained(out).size == AutoImageProcessor.from_pretrained(base).size
    assert weights_fingerprint(live) == before


def test_nothing_of_the_base_is_left(base, live, finished, tmp_path):
    """Of the layers that changed not a single row of a base weight is in any file, nor is a path of this machine."""
    folder, _ = finished
    out = merge_forgotten(live, folder, tmp_path / "out")
    before, after = live.state_dict(), AutoModelForImageClassification.from_pretrained(out).state_dict()
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert different == {f"{layer}.weight" for layer in changed_layers(folder)}
    base_rows = {row.numpy().tobytes() for name in different for row in before[name]}
    rows = {row.numpy().tobytes() for tensor in tensors(out).values() if tensor.dim() > 1 for row in tensor}
    assert not base_rows & rows
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors", ".md"}
    assert not any(str(base).encode() in content for content in cases.read(out).values())


def test_some_tasks_in_shards(base, live, finished, tmp_path, monkeypatch):
    """A part of the tasks; large models come in several files, as transformers writes them."""
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda self, path: save(self, path, max_shard_size="10KB"))
    out = merge_forgotten(live, finished[0], tmp_path / "out", tasks=["task_002"])
    assert len(list(out.glob("model-*.safetensors"))) > 1
    expected = load_forgotten(cases.load_base(base), finished[0], tasks=["task_002"], merge=True)
    assert cases.logits(AutoModelForImageClassification.from_pretrained(out)) == cases.logits(expected)


def test_the_card(base, finished, tmp_path):
    """It says what this is and what it does not promise, and names no class."""
    text = (merge_forgotten(base, finished[0], tmp_path / "out") / "README.md").read_text()
    assert "after 3 forgetting request(s)" in text
    assert "library_name: transformers" in text
    assert "Do not publish it next to the adapters" in text
    assert not [name for name in cases.NAMES if name in text]


def test_the_card_of_a_model_that_did_not_forget(base, run_folder, tmp_path):
    """It says which task that is, and names no class; a merge warns."""
    ledger = ForgettingLedger.load(run_folder)
    failed = {**ledger.tasks[1].outcome, "forgotten": False}
    first, second, third = ledger.tasks
    later = {**third.outcome, "earlier": {}}
    ledger.tasks = (first, replace(second, outcome=failed), replace(third, outcome=later))
    ledger.save()
    with pytest.warns(UserWarning, match="task_002 is not forgotten"):
        merge_forgotten(base, run_folder, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "**task_002 is not forgotten: " in card
    assert not [name for name in second.class_names if name in card]
    assert "task_001 is not" not in card


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tasks": 0}, ValueError),
        ({"tasks": 7}, LedgerError),
        ({"push_to": "a/b/c", "token": "hf_x"}, InvalidInputError),
    ],
)
def test_nothing_is_written_for_a_mistake(base, finished, tmp_path, options, error):
    """What cannot be merged leaves no folder behind."""
    with pytest.raises(error) as caught:
        merge_forgotten(base, finished[0], tmp_path / "out", **options)
    assert str(next(iter(options.values()))) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folders_with_files_are_refused(base, finished, tmp_path):
    """A model that is there is not overwritten; an empty folder is fine."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError) as caught:
        merge_forgotten(base, finished[0], out)
    assert str(out) in str(caught.value)
    assert cases.read(out) == {"model.safetensors": b"mine"}
    (out / "model.safetensors").unlink()
    assert merge_forgotten(base, finished[0], out) == out


def test_other_base_models(live, finished, tmp_path):
    """Other weights are refused before anything is written."""
    live.classifier.bias.data += 1
    with ledger_refused("base model"):
        merge_forgotten(live, finished[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["os", "Hand", None])
def test_unknown_classes(base, run_folder, tmp_path, name):
    """A ledger cannot make anything but a model class of transformers be loaded."""
    ledger = ForgettingLedger.load(run_folder)
    ledger.base_model["model_class"] = name
    ledger.save()
    with refused(f"model_class in the ledger in '{run_folder}'", name):
        merge_forgotten(base, run_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_processor(live, finished, tmp_path):
    """A user whose base model has no processor is told, and can pass one."""
    live.config._name_or_path = str(tmp_path)
    with pytest.warns(UserWarning, match="no processor was found"):
        merge_forgotten(live, finished[0], tmp_path / "out")
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    merge_forgotten(
        live, finished[0], tmp_path / "own", processing_class=ViTImageProcessor(size={"height": 9, "width": 9})
    )
    assert AutoImageProcessor.from_pretrained(tmp_path / "own").size["height"] == 9


def test_published(hub, client, repo_id, base, finished, tmp_path):
    """One commit on a new private repository, from which `AutoModelFor...` loads; said again, nothing is sent."""
    arguments = {"base": str(base), "folder": str(finished[0])}
    client("merge", OWNER, out=str(tmp_path / "out"), push_to=repo_id, **arguments)
    files = hub.files(repo_id)
    assert files == cases.read(tmp_path / "out")
    assert hub.repo(repo_id).private
    client("merge", OWNER, out=str(tmp_path / "again"), push_to=repo_id, **arguments)
    assert len(hub.seen("POST", "/commit/")) == 1
    with pytest.raises(ClientError) as caught:
        client("merge", OWNER, out=str(tmp_path / "less"), push_to=repo_id, tasks=1, **arguments)
    assert "ValueError" in caught.value.kinds
    assert repo_id in caught.value.message
    assert not (tmp_path / "less").exists()
    assert hub.files(repo_id) == files


def test_not_after_the_adapters(hub, client, repo_id, base, finished, tmp_path):
    """What was deleted from a repository can still be fetched from its history."""
    files = cases.read(finished[0])
    hub.create(repo_id, files, private=True)
    hub.put(repo_id, dict.fromkeys(files))
    with pytest.raises(ClientError) as caught:
        client("merge", OWNER, base=str(base), folder=str(finished[0]), out=str(tmp_path / "out"), push_to=repo_id)
    assert "ValueError" in caught.value.kinds
    assert repo_id in caught.value.message
    assert not hub.seen("POST", "/commit/")


def test_nothing_that_changes_anything(base, run_folder, tmp_path):
    """A model in which no group is active would be the base model, whatever its card says."""
    ledger = ForgettingLedger.load(run_folder)
    with ledger.changes():
        ledger.tasks = tuple(replace(entry, groups={**entry.groups, "active": []}) for entry in ledger.tasks)
    with pytest.raises(ValueError) as caught:
        merge_forgotten(base, run_folder, tmp_path / "out")
    assert str(run_folder) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_not_next_to_the_adapters(hub, client, repo_id, base, finished, tmp_path):
    """In the repository of the run the base weights could be computed again."""
    hub.create(repo_id, cases.read(finished[0]), private=True)
    with pytest.raises(ClientError) as caught:
        client("merge", OWNER, base=str(base), folder=str(finished[0]), out=str(tmp_path / "out"), push_to=repo_id)
    assert "ValueError" in caught.value.kinds
    assert repo_id in caught.value.message
    assert not (tmp_path / "out").exists()
    assert not hub.seen("POST", "/commit/")
