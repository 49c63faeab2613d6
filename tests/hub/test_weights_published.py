"""Publishing runs whose tasks left weights: what is sent, what the card says, and what loads it."""

import os
import re
import shutil

import hub_cases as cases
import pytest
import run_cases
from client_process import ClientError
from errors import refused
from hub_refusals import ledger_refused
from loopback import OWNER
from safetensors.torch import load_file
from weight_methods import Anchored

from gs_lora_peft import ForgetRequest, export_forgotten, load_forgotten
from gs_lora_peft.hub import stage_repository, verify_repository

REQUESTS = cases.REQUESTS[:2]
PARTS = {"README.md", "forgetting.json", "figures/accuracies.png"}
TASKS = {f"tasks/task_00{number}/weight_difference.safetensors" for number in (1, 2)}


def make_forgetter(base, folder, method, **more):
    args = run_cases.make_args(method, learning_rate=1e-2, max_forget_accuracy=0.5)
    return cases.ContinualForgetter(cases.load_base(base), cases.make_data(), folder, args=args, method=method, **more)


@pytest.fixture(scope="module")
def weights_run(base, tmp_path_factory):
    """A run of two requests whose method keeps something: folder, and what the model says of the probe."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    forgetter = make_forgetter(base, folder, Anchored())
    forgetter.run([ForgetRequest(classes) for classes in REQUESTS])
    return folder, cases.logits(forgetter.model)


@pytest.fixture
def run(weights_run, tmp_path):
    return shutil.copytree(weights_run[0], tmp_path / "copy")


def test_pushed_and_loaded(hub, client, repo_id, base, weights_run):
    """The files of the tasks and no root adapter; nothing of what the method keeps; loaded to the bit."""
    folder, live = weights_run
    kept = [path.read_bytes() for path in folder.glob("method/*/*")]
    assert len(kept) == 2
    client("push", OWNER, folder=folder, repo_id=repo_id)
    files = hub.files(repo_id)
    assert files.keys() - {"figures/training_curves.png"} == PARTS | TASKS
    sent = [request.body for method in ("POST", "PUT") for request in hub.seen(method)]
    assert not any(content in body for content in kept for body in sent)
    assert client("verify", OWNER, repo_id=repo_id) == []
    for merge in (True, False):
        assert client("load", OWNER, base=base, repo_id=repo_id, merge=merge) == live
    assert client("load", OWNER, base=base, repo_id=repo_id, tasks=1) != live
    with pytest.raises(ClientError) as error:
        client("load", OWNER, base=base, repo_id=repo_id, tasks=["task_002"])
    assert "LaterTasksError" in error.value.kinds


def test_continued_from_the_hub(hub, client, repo_id, base, weights_run, tmp_path):
    """By a method that needs nothing of earlier tasks; the one that does is refused before any work."""
    client("push", OWNER, folder=weights_run[0], repo_id=repo_id)
    client("go_on", OWNER, repo_id=repo_id, base=base, folder=tmp_path / "mine", classes=[cases.NAMES[5]])
    forgetter = make_forgetter(base, tmp_path / "mine", Anchored())
    assert [entry.leaves_weights for entry in forgetter.ledger.tasks] == [True, True, False]
    before = cases.read(tmp_path / "mine")
    with ledger_refused(f"files of the method 'anchored' in '{tmp_path / 'mine'}'"):
        forgetter.forget(ForgetRequest([cases.NAMES[1]]))
    assert cases.read(tmp_path / "mine") == before


def test_the_card_says_how_to_load_it(base, weights_run, tmp_path):
    """Its code runs, with this package and without; it promises no adapter."""
    folder, live = weights_run
    staged = stage_repository(folder, tmp_path / "out", "me/clinic")
    assert staged.composite is None
    card = (staged.folder / "README.md").read_text()
    assert "load_forgotten(base_model" in card
    assert not re.search("PeftModel|load_adapter|adapter in the root|library_name|- lora", card)
    assert "base_model_relation: finetune" in card
    assert verify_repository(staged.folder, cases.load_base(base)).problems == []
    plain = next(block for block in re.findall("```python\n(.*?)```", card, re.S) if "hf_hub_download" in block)
    plain = plain.replace("from huggingface_hub import hf_hub_download", "")
    names = {"hf_hub_download": lambda repo, path: staged.folder / path, "load_file": load_file}
    code = plain.replace(repr(cases.BASE_ID), repr(os.fspath(base))).replace(
        f'"{cases.BASE_ID}"', repr(os.fspath(base))
    )
    exec(code, names)
    assert cases.logits(names["base_model"]) == live


def test_an_adapter_in_the_root_is_a_problem(weights_run, tmp_path):
    """It cannot be all of the tasks."""
    staged = stage_repository(weights_run[0], tmp_path / "out")
    (staged.folder / "adapter_config.json").write_text("{}")
    assert len(verify_repository(staged.folder).problems) == 1


def test_it_is_not_exported_as_an_adapter(weights_run, tmp_path):
    with refused("tasks", ["task_001", "task_002"]):
        export_forgotten(weights_run[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_withheld(base, weights_run, run, tmp_path):
    """What training cost, and the digest of what the method keeps, could tell the number of samples."""
    staged = stage_repository(run, tmp_path / "out", withhold_classes=True)
    for entry in staged.ledger.tasks:
        assert entry.method_files is None
        assert entry.cost.keys() == {"trainable"}
    assert cases.logits(load_forgotten(cases.load_base(base), staged.folder)) == weights_run[1]


def test_weights_on_top_of_adapters(hub, client, repo_id, base, short_run):
    """The root adapter of the first push goes; a mixture is loaded in order; without the weights, it is back."""
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert "adapter_config.json" in hub.files(repo_id)
    forgetter = make_forgetter(base, short_run, Anchored())
    forgetter.forget(ForgetRequest([cases.NAMES[5]]))
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    roots = {name for name in hub.files(repo_id) if "/" not in name}
    assert roots == {"README.md", "forgetting.json"}
    assert client("verify", OWNER, repo_id=repo_id) == []
    assert client("load", OWNER, base=base, repo_id=repo_id) == cases.logits(forgetter.model)
    assert "hf_hub_download" not in hub.files(repo_id)["README.md"].decode()
    forgetter.revoke("task_002")
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert "adapter_config.json" in hub.files(repo_id)
    assert "PeftModel" in hub.files(repo_id)["README.md"].decode()
    assert client("verify", OWNER, repo_id=repo_id) == []
