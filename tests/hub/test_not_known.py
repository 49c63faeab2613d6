"""A run that did not forget, or of which that is not known, says so wherever it is checked, loaded and merged."""

import warnings

import pytest
import run_cases as cases
from datasets import DatasetDict
from transformers import logging as transformers_logging

from gs_lora_peft import ForgetRequest, load_forgotten, merge_forgotten
from gs_lora_peft.cli import main

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def plain_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "base"
    cases.pretrain(folder)
    return folder


def run_of(base, folder, data):
    args = cases.make_args(max_steps=1, learning_rate=1e-6, save_strategy="no")
    cases.make_forgetter(base, folder, data, args=args).forget(ForgetRequest(["cassowary"]))
    return folder


@pytest.fixture(scope="module")
def failed(plain_base, tmp_path_factory):
    """One request that trained nearly nothing."""
    return run_of(plain_base, tmp_path_factory.mktemp("failed") / "run", cases.make_data())


@pytest.fixture(scope="module")
def unknown(plain_base, tmp_path_factory):
    """The same request, with no evaluation data of the class."""
    data = cases.make_data()
    data = DatasetDict(train=data["train"], test=data["test"].filter(lambda row: row["label"] != 2))
    return run_of(plain_base, tmp_path_factory.mktemp("unknown") / "run", data)


def called(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("merge", [False, True])
def test_loading_what_did_not_forget_warns(plain_base, failed, merge):
    """As merging, exporting and publishing do, without a name of a class; not of tasks that are not loaded."""
    with pytest.warns(UserWarning, match="task_001 is not forgotten") as told:
        load_forgotten(cases.load_base(plain_base), failed, merge=merge)
    assert "cassowary" not in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_forgotten(cases.load_base(plain_base), failed, tasks=0, merge=merge)


def test_merging_warns_once(plain_base, failed, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merge_forgotten(plain_base, failed, tmp_path / "out")
    assert sum("is not forgotten" in str(one.message) for one in caught) == 1
    assert "Forgetting was measured as accuracy" in (tmp_path / "out" / "README.md").read_text()


def test_verify_does_not_call_unknown_well(unknown, capsys):
    """The files are as the ledger says, which is all that was checked."""
    code, out = called(capsys, "verify", unknown)
    assert code == 0
    assert "All is well" not in out
    assert out.startswith("Files and ledger agree: 1 task(s)")
    assert "It is not known whether every request is forgotten" in out


@pytest.mark.filterwarnings("ignore:no processor")
def test_the_card_of_a_merged_model_says_what_is_not_known(plain_base, unknown, tmp_path):
    merge_forgotten(plain_base, unknown, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Forgetting was measured" not in card
    assert "It is not known how well the classes are forgotten" in card
    assert "Whether task_001 is forgotten is not known" in card
    assert "cassowary" not in card
