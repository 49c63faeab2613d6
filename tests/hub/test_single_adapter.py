"""A trainer's single adapter on the Hub: plain LoRA and a card, by the same rules as a run."""

import json

import hub_cases as cases
import pytest
from client_process import ClientError
from loopback import OWNER

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_push_to_hub(hub, client, stock_client, repo_id, base, tmp_path):
    """One commit on a new private repository; stock PEFT gives the logits of the trained model to the bit."""
    url, logits = client(
        "call_trainer", OWNER, base=base, output_dir=tmp_path / "out", call="push_to_hub",
        arguments={"hub_model_id": repo_id, "save_strategy": "epoch"}, tags="faces", license="mit",
    )  # fmt: skip
    assert url == f"{hub.address}/{repo_id}/commit/{hub.repo(repo_id).at('main').oid}"
    files = hub.files(repo_id)
    assert files.keys() == FILES
    assert hub.repo(repo_id).private
    assert len(hub.seen("POST", "/commit/")) == 1
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == cases.BASE_ID
    card = files["README.md"].decode()
    assert all(text in card for text in ("library_name: peft", "license: mit", "- faces", "acc_forget", repo_id))
    assert not [name for name in cases.NAMES if name in card]
    assert stock_client("peft", OWNER, repo_id=repo_id, pixels=cases.probe().tolist()) == logits


def test_the_command_line_option(hub, client, repo_id, base, tmp_path):
    """`--push_to_hub` makes no repository at the start, pushes no checkpoint, and `save_model` goes the same way."""
    arguments = {"push_to_hub": True, "hub_strategy": "every_save", "save_strategy": "epoch"}
    arguments |= {"hub_model_id": repo_id, "hub_token": OWNER, "hub_revision": "study", "hub_private_repo": False}
    client("call_trainer", base=base, output_dir=tmp_path / "out", call="evaluate", arguments=arguments)
    assert not hub.has(repo_id)
    client("call_trainer", base=base, output_dir=tmp_path / "again", call="save_model", arguments=arguments)
    assert hub.files(repo_id, "study").keys() == FILES
    assert hub.files(repo_id).keys() == set()
    assert not hub.repo(repo_id).private
    assert len(hub.seen("POST", "/commit/")) == 1


def test_what_is_refused(hub, client, repo_id, base, short_run, tmp_path):
    """A published run is not overwritten by a single adapter, and nothing becomes public unasked."""
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    hub.create(f"{repo_id}-public")
    before = hub.files(repo_id)
    for name, token, named in (
        (repo_id, OWNER, repo_id),
        (f"{repo_id}-public", OWNER, f"{repo_id}-public"),
        ("a/b/c", OWNER, "`hub_model_id` is 'a/b/c'"),
        (repo_id, None, "`token` is None"),
    ):
        with pytest.raises(ClientError) as caught:
            client(
                "call_trainer", token, base=base, output_dir=tmp_path / "out", call="push_to_hub",
                arguments={"hub_model_id": name},
            )  # fmt: skip
        assert "ValueError" in caught.value.kinds
        assert named in caught.value.message
    assert hub.files(repo_id) == before
    assert not hub.files(f"{repo_id}-public")
