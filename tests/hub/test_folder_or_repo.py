"""Names that may be folders or repositories: what is which, and what asks the Hub."""

import os
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from errors import refused
from huggingface_hub import constants, file_download
from transformers import ViTConfig, ViTModel

from gs_lora_peft.cli.loading import load_data, model_source
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.hub import export_forgotten, merge_forgotten, push_to_hub, verify_repository
from gs_lora_peft.hub.client import download as hub_calls
from gs_lora_peft.hub.client.calls import HubUnreachableError
from gs_lora_peft.hub.client.download import as_folder_or_repo, is_away
from gs_lora_peft.hub.fetch import fetch_run, resolve_run_folder
from gs_lora_peft.hub.load import load_base_model
from gs_lora_peft.ledger import ForgettingLedger

LOCAL = ["./x", "../x", ".", "/nowhere/x", "~/x", "a/b/c", "a\\b", "x/", "C:/x", "..", "runs/no where"]


@pytest.mark.parametrize("bad", [None, 5, True, ""])
def test_every_entrance_refuses_what_is_no_path(bad, tmp_path):
    """Each function says which of its arguments it is, before anything else."""
    entrances = {
        "folder": [
            ForgettingLedger.load,
            lambda path: verify_repository(path),
            lambda path: push_to_hub(path, "me/x"),
        ],
        "repo_or_folder": [resolve_run_folder, lambda path: export_forgotten(path, tmp_path / "out")],
        "out": [lambda path: export_forgotten(tmp_path, path), lambda path: merge_forgotten("me/x", tmp_path, path)],
        "base_model": [lambda path: merge_forgotten(path, tmp_path, tmp_path / "out")],
    }
    for name, calls in entrances.items():
        for call in calls:
            with refused(name, bad):
                call(bad)


@pytest.mark.parametrize("value", LOCAL)
def test_what_can_only_be_a_path(value, monkeypatch, tmp_path):
    """It is refused where nothing is there, without a word to the Hub; what is there is taken."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(file_download, "get_hf_file_metadata", lambda *args, **more: pytest.fail("the Hub was asked"))
    if os.path.exists(os.path.expanduser(value)):
        assert as_folder_or_repo(value, "run", "a folder") == Path(value)
        return
    with refused("run", value):
        as_folder_or_repo(value, "run", "a folder")


def test_an_id_is_an_id_unless_a_folder_is_there(monkeypatch, tmp_path):
    """A folder that exists wins; text with one slash, or none, may be on the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "here").mkdir(parents=True)
    assert as_folder_or_repo("me/here", "run", "a folder") == Path("me/here")
    assert as_folder_or_repo("me/there", "run", "a folder") == "me/there"
    assert as_folder_or_repo("there", "run", "a folder") == "there"
    with pytest.raises(InvalidInputError):
        as_folder_or_repo(Path("me/there"), "run", "a folder")


@pytest.fixture
def away(monkeypatch, tmp_path):
    """A Hub at whose address nothing listens, an empty cache, and the addresses that were asked for."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}{template[2]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked, ask = [], file_download.get_hf_file_metadata

    def counted(url, **more):
        asked.append(url)
        return ask(url, **more)

    for module in (hub_calls, file_download):
        monkeypatch.setattr(module, "get_hf_file_metadata", counted)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    yield asked
    assert [url.startswith(address) for url in asked] == [True] * len(asked)


@pytest.mark.parametrize("name", ["nowhere", "runs/nowhere", "me/nowhere"])
def test_a_hub_that_is_away_is_asked_once(name, away):
    """One request, no waiting, and an error that says both."""
    assert is_away(name, "config.json")
    with pytest.raises(ConnectionError) as caught:
        resolve_run_folder(name)
    assert repr(name) in str(caught.value)
    ledger = SimpleNamespace(base_model={"model_class": "ViTModel"}, folder="run")
    script = SimpleNamespace(model_name_or_path=name, model_revision=None, dataset_name=name, dataset_config_name=None)
    for load in (lambda: load_base_model(ledger, name), lambda: model_source(script), lambda: load_data(script)):
        before = len(away)
        with pytest.raises(HubUnreachableError) as caught:
            load()
        assert (caught.value.repo_id, caught.value.status) == (name, None)
        assert len(away) == before + 1


def test_what_is_cached_is_used_while_the_hub_is_away(away, tmp_path):
    """A model and a data set in the caches of their libraries load with one request each, and without waiting."""
    cached, commit = tmp_path / "cache" / "models--me--vit", "0" * 40
    ViTModel(
        ViTConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32)
    ).save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    rows = tmp_path / "my_data"
    rows.mkdir()
    datasets.Dataset.from_dict({"image": [1], "label": [0]}).to_parquet(rows / "train-0.parquet")
    prepared = Path(datasets.load_dataset(str(rows))["train"].cache_files[0]["filename"]).parent
    shutil.copytree(prepared, tmp_path / "cache/me___my_data/default/0.0.0/x")
    script = SimpleNamespace(
        model_name_or_path="me/vit", model_revision=None, dataset_name="me/my_data", dataset_config_name=None,
        train_split="train", test_split="train", image_column="image",
    )  # fmt: skip
    ledger = SimpleNamespace(base_model={"model_class": "ViTModel"}, folder="run")
    ViTModel.from_pretrained(**model_source(script))
    load_base_model(ledger, "me/vit")
    assert load_data(script)["train"]["image"][:] == [1]
    assert len(away) == 3


def test_a_bad_target_is_found_before_the_download(monkeypatch):
    """`local_dir` is looked at first."""
    with refused("local_dir", ""):
        fetch_run("me/x", local_dir="")
