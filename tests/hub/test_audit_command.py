"""`gs-lora audit`: a run in a folder or on the Hub is attacked, and the verdict is recorded where it belongs."""

import json
import shutil

import hub_cases as cases
import pytest
import torch
from errors import refused
from loopback import OWNER

from gs_lora_peft import ForgettingLedger, verify_repository
from gs_lora_peft.cli import main
from gs_lora_peft.hub import stage_repository
from gs_lora_peft.ledger import FilesDifferError

FAST = ["--quick", "--attacks", "answer,knn"]


@pytest.fixture
def here(capsys):
    """Calls `gs-lora` in this process; gives its exit code and what it printed."""

    def here(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return here


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data of the run, saved to a folder."""
    folder = tmp_path_factory.mktemp("data") / "saved"
    cases.make_data().save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def reference(base, tmp_path_factory):
    """A model that is neither the original nor the forgotten one, and answers with one class alone."""
    torch.manual_seed(5)
    model = cases.load_base(base)
    model.init_weights()
    for weights in model.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    model.classifier.weight.data.zero_()
    folder = tmp_path_factory.mktemp("reference") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audited(base, finished, data, reference, tmp_path_factory):
    """A run with a recorded audit; not to be changed by a test."""
    folder = shutil.copytree(finished[0], tmp_path_factory.mktemp("audited") / "run")
    with pytest.raises(SystemExit) as end:
        main(list(map(str, ["audit", folder, "--data", data, "--base-model", base, "--reference", reference, *FAST])))
    assert end.value.code == 0
    return folder


def names_in(files):
    return [(path, name) for path, content in files.items() for name in cases.NAMES if name.encode() in content]


def test_a_local_run(here, base, run_folder, data, reference):
    """Table, verdict and path are printed; the ledger has the verdict; `show` tells it; no file names a class."""
    command = ["audit", run_folder, "--data", data, "--base-model", base, "--reference", reference, *FAST]
    code, out, err = here(*command)
    assert code == 0, err
    ledger = ForgettingLedger.load(run_folder)
    assert ledger.audit["tasks"] == [entry.name for entry in ledger.active_tasks]
    assert (ledger.audit["reference"], ledger.audit["attacks"]) == ("retrained", ["answer", "knn"])
    assert out.startswith("Recovered of the forgotten classes, in points\n")
    assert ledger.audit["verdict"] in out
    assert out.endswith(f"\nReport: {run_folder / 'audit' / 'report.html'}\n")
    assert not names_in(cases.read(run_folder / "audit"))
    shown = " ".join(here("show", run_folder)[1].replace("│", " ").split())  # without the frame of the page
    assert ledger.audit["verdict"] in shown
    parts = cases.read(run_folder / "audit/parts")
    code, out, _ = here(*command, "--json", "--max-gap", "0")
    document = json.loads(out)
    assert document["recovery_gap"] == ledger.audit["recovery_gap"]
    assert code == 3  # two attacks of our choice: that they found nothing would prove nothing
    assert document["recovered"] is not False
    assert cases.read(run_folder / "audit/parts") == parts  # nothing was computed again


def test_elsewhere(here, base, run_folder, data, tmp_path):
    """With --output the report goes there, and the ledger lists no file of it; random weights are named."""
    command = ["audit", run_folder, "--data", data, "--base-model", base, "--output", tmp_path / "report", *FAST]
    code, out, err = here(*command)
    assert code == 0, err
    assert "Not known without a retrained model" in " ".join(out.split())
    assert {"audit.json", "report.md", "report.html"} < cases.read(tmp_path / "report").keys()
    audit = ForgettingLedger.load(run_folder).audit
    assert (audit["files"], audit["reference"]) == ({}, "random")
    assert not (run_folder / "audit").exists()


@pytest.mark.slow
def test_references_on_request(here, base, run_folder, data):
    """Models are trained without the classes, once; beside a given one they count as well."""
    command = ["audit", run_folder, "--data", data, "--base-model", base, "--retrain", 2, "--retrain-epochs", 2, *FAST]
    code, _, err = here(*command)
    assert code == 0, err
    audit = ForgettingLedger.load(run_folder).audit
    assert (audit["reference"], audit["references"]) == ("retrained", 2)
    trained = cases.read(run_folder / "audit/retrained")
    assert here(*command)[0] == 0
    assert cases.read(run_folder / "audit/retrained") == trained
    assert not [name for name in audit["files"] if "retrained" in name]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "no/such/folder"], "`--data`"),
        (["--base-model", "no/such/folder"], "base_model"),
        (["--reference", "no/such/folder"], "`--reference`"),
        (["--attacks", "answer,guess"], "guess"),
        (["--train-split", "valid"], "--test-split"),
        (["--image-column", "picture"], "`--image-column`"),
        (["--label-column", "digit"], "digit"),
    ],
)
def test_mistakes_are_named_before_any_work(here, base, run_folder, data, options, said):
    before = cases.read(run_folder)
    given = {"--data": data, "--base-model": base, **dict([options])}
    code, out, err = here("audit", run_folder, *(word for pair in given.items() for word in pair))
    assert (code, out) == (1, "")
    assert said in err
    assert err.startswith("Error: ")
    assert cases.read(run_folder) == before


def test_a_run_on_the_hub(hub, client, repo_id, finished, data, tmp_path):
    """By name, with the base model that the ledger names: the report is written here, and nothing to the Hub."""
    client("push", OWNER, folder=finished[0], repo_id=repo_id)
    commits = len(hub.repo(repo_id).history("main"))
    arguments = ["audit", repo_id, "--data", data, "--output", tmp_path / "report", *FAST, "--json"]
    code, out, err = client("command_line", OWNER, arguments=[str(argument) for argument in arguments])
    assert code == 0, err
    assert json.loads(out)["recorded"] is False
    assert (tmp_path / "report/report.html").exists()
    assert len(hub.repo(repo_id).history("main")) == commits


# Publishing


def test_the_report_is_published_with_the_run(audited, tmp_path):
    """The files that the ledger lists, and no others; the card links to them; the repository is in order."""
    staged = stage_repository(audited, tmp_path / "out")
    found = [name for name in staged.files if name.startswith("audit/")]
    assert found == sorted(ForgettingLedger.load(audited).audit["files"])
    assert {"audit/audit.json", "audit/report.md"} < set(found)
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert "## Is it gone?" in card
    assert "[The report](audit/report.md)" in card
    assert verify_repository(tmp_path / "out").problems == []
    (tmp_path / "out/audit/attacks.png").write_bytes(b"")
    (tmp_path / "out/audit/more.json").write_bytes(b"{}")
    problems = verify_repository(tmp_path / "out").problems
    assert [problem.partition(":")[0] for problem in problems] == ["audit/attacks.png", "audit/more.json"]


def test_a_removed_report_is_not_published(audited, tmp_path):
    """The verdict is; the ledger and the card refer to no file that is not there."""
    run = shutil.copytree(audited, tmp_path / "run")
    (run / "audit/report.md").unlink()
    staged = stage_repository(run, tmp_path / "out")
    assert not [name for name in staged.files if name.startswith("audit/")]
    assert staged.ledger.audit == {**ForgettingLedger.load(run).audit, "files": {}}
    assert "audit/report.md" not in (tmp_path / "out/README.md").read_text("utf-8")
    assert verify_repository(tmp_path / "out").problems == []
    assert verify_repository(run).problems == []


def test_an_edited_report_is_not_published(audited, tmp_path):
    run = shutil.copytree(audited, tmp_path / "run")
    (run / "audit/report.md").write_text("All is gone.")
    with pytest.raises(FilesDifferError) as error:
        stage_repository(run, tmp_path / "out")
    assert error.value.problems.keys() == {"audit/report.md"}
    assert not (tmp_path / "out").exists()


def test_withheld_classes(audited, tmp_path):
    """No file of the report leaves; the verdict is told in whole points, with the day alone."""
    run = shutil.copytree(audited, tmp_path / "run")  # a key is made in it
    staged = stage_repository(run, tmp_path / "out", withhold_classes=True)
    assert not [name for name in staged.files if name.startswith("audit/")]
    audit = staged.ledger.audit
    assert type(audit["recovery_gap"]["points"]) is type(audit["recovery_gap"]["margin"]) is int
    assert audit["recorded_at"].endswith("T00:00:00Z")
    assert audit["verdict"] != ForgettingLedger.load(audited).audit["verdict"]
    assert audit["verdict"] in " ".join((tmp_path / "out/README.md").read_text("utf-8").split())
    assert not names_in(cases.read(tmp_path / "out"))


def test_pushed_pulled_and_pushed_again(hub, client, repo_id, audited, tmp_path):
    """A colleague who pulls has the report, and publishes it again; a newer audit here outlives a pull."""
    client("push", OWNER, folder=audited, repo_id=repo_id)
    published = hub.files(repo_id)
    pull = ["pull", repo_id, str(tmp_path / "pulled")]
    code, _, err = client("command_line", OWNER, arguments=pull)
    assert code == 0, err
    own, pulled = cases.read(audited), cases.read(tmp_path / "pulled")
    assert {name for name in pulled if name.startswith("audit/")} == set(ForgettingLedger.load(audited).audit["files"])
    assert all(pulled[name] == own[name] for name in pulled)
    client("push", OWNER, folder=tmp_path / "pulled", repo_id=repo_id)
    assert hub.files(repo_id) == published
    ledger = ForgettingLedger.load(tmp_path / "pulled")
    summary = {name: value for name, value in ledger.audit.items() if name not in ("recorded_at", "files")}
    with ledger.changes():
        ledger.record_audit({**summary, "quick": False})
    assert client("command_line", OWNER, arguments=pull)[0] == 0
    assert ForgettingLedger.load(tmp_path / "pulled").audit == ledger.audit


def test_the_ledger_refuses_an_audit_of_other_tasks(audited):
    ledger = ForgettingLedger.load(audited)
    with refused("audit['tasks']", "task_009", ValueError):
        ledger.record_audit({**ledger.audit, "tasks": ["task_001", "task_009"]})
