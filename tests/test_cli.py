"""`gs-lora` as far as it needs neither a model nor the Hub: how it starts, ends and speaks, `show` and `revoke`."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.cli import main
from gs_lora_peft.ledger import TaskEntry

COMMANDS = [
    "demo", "forget", "redo", "revoke", "show", "verify", "audit", "benchmark", "export", "merge", "push", "pull",
    "convert-face",
]  # fmt: skip
NAMES = ["tench", "[red]cassette[/red]", "évil\x1b[2Jname", "dragonfly"]
BASE = {
    "name_or_path": "google/vit-base",
    "revision": "0123456789" * 4,
    "model_class": "ViTForImageClassification",
    "num_labels": 4,
    "fingerprint": "sha256:" + "ab" * 32,
}


def write_task(ledger, forgotten, **more):
    scores = {
        "before": {"acc_forget": 1.0, "acc_retain": 0.9876},
        "after": {"acc_forget": 0.0123, "acc_retain": 0.954, "acc_old": None, "h_mean": 0.97},
        "data": "test",
    }
    values = {
        "name": ledger.next_task_name(),
        "request": {"classes": forgotten},
        "classes": forgotten,
        "class_names": [NAMES[class_id] for class_id in forgotten],
        "started_at": "2026-01-31T00:00:00+00:00",
        "finished_at": "2026-01-31T00:01:00+00:00",
        "groups": {"total": 12, "active": ["a", "b"], "zero": []},
        "scores": scores,
    }
    with ledger.changes():
        ledger.append(TaskEntry(**{**values, **more}))


@pytest.fixture
def run(tmp_path):
    """Folder of a run with three tasks, the last of which was revoked; it has no adapters."""
    folder = tmp_path / "run"
    ledger = ForgettingLedger.create(folder, base_model=BASE, label_names=NAMES)
    for forgotten in ([0], [1, 2], [3]):
        write_task(ledger, forgotten)
    with ledger.changes():
        ledger.revoke("task_003", reason="consent renewed")
    return str(folder)


@pytest.fixture
def call(capsys, monkeypatch):
    """Calls `gs-lora` in this process; gives its exit code and what it printed."""
    monkeypatch.delenv("GS_LORA_TRACEBACK", raising=False)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return end.value.code, *capsys.readouterr()

    return call


def process(*arguments, **environment):
    """`gs-lora` in a process of its own."""
    command = [sys.executable, "-m", "gs_lora_peft", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def words(page):
    """The words of a page, without the lines of its boxes."""
    return " ".join(re.sub(r"[^\w\s]*[─│╭╮╰╯][^\w\s]*", " ", page).split())


# How it starts


def test_the_command_is_installed():
    """The package brings `gs-lora`, which is this program."""
    (found,) = importlib.metadata.entry_points(group="console_scripts", name="gs-lora")
    assert found.load() is main
    script = Path(sys.executable).with_name("gs-lora")
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.strip() == importlib.metadata.version("gs-lora-peft")


def test_quick_commands_import_nothing_heavy(run):
    """What needs only a ledger does not make anybody wait for torch."""
    code = (
        "import sys\n"
        "from gs_lora_peft.cli import main\n"
        f"run = {run!r}\n"
        "for words in ('--help', 'forget --help', 'redo -h', f'show {run}', f'show {run} --json', "
        "f'revoke {run} task_001'):\n"
        "    try: main(words.split())\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'peft', 'transformers', 'datasets', 'accelerate', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(call, command):
    """`--help` says what a command does, shows an example of it, and fits 80 columns."""
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert f"Example: gs-lora {command} " in out
    assert max(map(len, out.splitlines())) <= 80


def test_help_lists_commands_and_exit_codes(call):
    """The first page says what there is, and what scripts can rely on."""
    code, out, _ = call("--help")
    assert code == 0
    assert all(f" {command} " in out for command in COMMANDS)
    assert "Exit codes: 0 if all went well" in out
    assert "--install-completion" in out
    without_arguments, shown, err = call()
    assert (without_arguments, shown.split(), err) == (2, out.split(), "")


def test_completion(run):
    """A shell gets its script, and completes commands, the tasks in effect of a run, and options of trainings."""
    undetected = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert "complete -o default" in process("--show-completion", "bash", **undetected).stdout
    for words, expected in (
        ("gs-lora re", ["redo", "revoke"]),
        (f"gs-lora revoke {run} task", ["task_001", "task_002"]),
        ("gs-lora forget --forget_b", ["--forget_bound"]),
        ("gs-lora redo run --forget_l", ["--forget_loss"]),
    ):
        number = str(len(words.split()) - 1)
        asked = process(_GS_LORA_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=number)
        assert asked.stdout.split() == expected, asked.stderr


# How it ends


@pytest.mark.parametrize(
    ("arguments", "expected", "said"),
    [
        (["show", "no/such/folder"], 1, "There is no such folder"),
        (["revoke", "RUN", "task_009"], 1, "`tasks` is 'task_009'"),
        (["revoke", "RUN", "task_003"], 1, "this one was revoked"),
        (["export", "RUN", "RUN"], 1, "exists already"),
        (["export", "RUN", "OUT", "--tasks", "7"], 1, "expected a number from 0 to 2"),
        (["export", "RUN", "OUT", "--tasks", "task_003"], 1, "was revoked"),
        (["export", "RUN", "OUT", "--tasks", "0"], 1, "Choose at least one"),
        (["export", "RUN", "OUT"], 1, "an adapter in safetensors"),
        (["push", "RUN", "a/b/c"], 1, "`repo_id` is 'a/b/c'"),
        (["pull", "a/b/c"], 1, "`repo_id` is 'a/b/c'"),
        (["verify", "RUN", "--base-model", "no/such/folder"], 1, "no/such/folder"),
        (["forgett"], 2, "No such command 'forgett'"),
        (["forget", "--rank", "4"], 2, "no option --rank; did you mean"),
        (["forget", "--model", "RUN", "--data", "RUN"], 2, "--forget is missing"),
        (["forget", "--model", "no/such/folder", "--data", "RUN", "--forget", "a"], 1, "no/such/folder"),
        (["redo"], 2, "RUN is missing"),
        (["redo", "RUN"], 2, "--data is missing"),
        (["forget", "--dataset_nam", "x"], 2, "did you mean --data"),
        (["audit", "RUN", "--data", "no/such/folder", "--train_split", "t"], 1, "no/such/folder"),
        (["redo", "RUN", "--data", "RUN", "--output", "x"], 2, "--output is an option of forget"),
        (["redo", "RUN", "--data", "RUN", "--forget", "a"], 2, "--forget is an option of forget"),
        (["redo", "OUT", "--data", "RUN"], 1, "forgetting.json"),
        (["demo", "--recipe", "quick"], 2, "--recipe"),
        (["show"], 2, "Missing argument 'RUN'"),
        (["audit", "RUN"], 2, "Missing option '--data'"),
        (["audit", "RUN", "--data", "DATA", "--max-gap", "-1"], 2, "--max-gap"),
        (["show", "RUN", "--csv"], 2, "No such option"),
        (["merge", "RUN", "OUT"], 2, "Missing option '--base-model'"),
        (["push", "RUN", "me/x", "--max-rank", "many"], 2, "--max-rank"),
        (["export", "RUN", "OUT", "--repository", "--tasks", "1"], 2, "cannot be combined with --tasks"),
        (["export", "RUN", "OUT", "--dataset", "mnist"], 2, "need --repository"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(call, run, tmp_path, arguments, expected, said, as_json):
    """1 is a refusal and 2 a wrong command line; the message is one line of text on stderr, or JSON on stdout."""
    arguments = [{"RUN": run, "OUT": str(tmp_path / "out")}.get(argument, argument) for argument in arguments]
    code, out, err = call(*arguments, *["--json"] * as_json)
    assert code == expected
    if as_json:
        error = json.loads(out)["error"]
        assert said in error["message"]
        assert error["type"].isidentifier()
    else:
        assert out == ""
        assert said in err
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "options", "is_json"),
    [
        ("json: true", [], True),
        ("json: 'yes'", [], True),
        ("json: true", ["--json", "false"], False),
        ("json: false", ["--json"], True),
        ("json: false", [], False),
        ("json: [", ["--json"], True),
        ("", ["--json=false"], False),
    ],
)
@pytest.mark.parametrize("command", [["forget"], ["redo", "run"]])
def test_json_of_a_file_holds_for_errors_too(call, tmp_path, monkeypatch, settings, options, is_json, command):
    """The command line wins over the file."""
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(settings)
    code, out, err = call(*command, "--config", "settings.yaml", "--rank", "4", *options)
    assert code in (1, 2)
    assert ("error" in json.loads(out)) if is_json else (out == "" and err.startswith("Error: "))


def test_a_run_without_tasks_in_effect(call, tmp_path):
    """Neither export nor merge leaves anything; the reason is told: no request yet, or all of them revoked."""
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    ledger = ForgettingLedger.create(run, base_model=BASE, label_names=NAMES)
    ledger.save()
    commands = [["export", run, out], ["merge", run, out, "--base-model", run]]
    for said in ("has no task", "revoked"):
        for command in commands:
            code, _, err = call(*command)
            assert (code, said in err) == (1, True)
        write_task(ledger, [0])
        with ledger.changes():
            ledger.revoke(ledger.tasks[-1].name)
    assert not Path(out).exists()


def test_traceback_on_demand(run):
    """Where an error came from is shown to users who ask for it."""
    for arguments, environment in (
        (["--traceback", "show", "no/such/folder"], {}),
        (["show", "x/y/z"], {"GS_LORA_TRACEBACK": "1"}),
    ):
        result = process(*arguments, **environment)
        assert result.returncode == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert "InvalidLedgerError" in result.stderr
    result = process("show", "no/such/folder")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: `repo_or_folder` is 'no/such/folder'")
    assert result.stderr.count("\n") == 1


def test_errors_that_nobody_foresaw(call, run, monkeypatch):
    """A mistake of the program is one line too, with its kind and how to find out more; Ctrl-C ends with 130."""

    def fail(folder):
        raise TypeError("broken on purpose")

    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(ForgettingLedger, "load", fail)
    code, out, err = call("show", run)
    assert (code, out) == (1, "")
    assert err == "Error: TypeError: broken on purpose (GS_LORA_TRACEBACK=1 shows the traceback)\n"
    monkeypatch.setattr(ForgettingLedger, "load", interrupt)
    assert call("show", run)[0] == 130


def test_a_reader_that_has_seen_enough(run):
    """`gs-lora show run | head -1` ends in silence."""
    command = f"set -o pipefail; {sys.executable} -m gs_lora_peft show {run} --json | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "")


# show


def test_show_tells_the_verdict_of_an_audit(call, run):
    """A line below the table; after a change it is the verdict of then."""
    ledger = ForgettingLedger.load(run)
    summary = {"verdict": "Not gone.", "recovered": None, "recovery_gap": None, "reference": "random"}
    with ledger.changes():
        ledger.record_audit(
            {**summary, "tasks": ["task_001", "task_002"], "references": 1, "attacks": [], "quick": True}
        )
    assert "Audit Not gone. 0 attacks with small budgets, beside 1 model of random weights, after" in words(
        call("show", run)[1]
    )
    write_task(ledger, [3])
    said = "Audited after task_002; task_004, which came later, is not audited."
    assert f"Audit {said} The verdict of then: Not gone." in words(call("show", run)[1])
    assert json.loads(call("show", run, "--json")[1])["audit"] == [said, "The verdict of then: Not gone."]


def test_show(call, run):
    """The table has what was asked, when, and what came of it, in 80 columns."""
    code, out, err = call("show", run)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "Base model google/vit-base at 012345678901 Class ViTForImageClassification, 4 labels" in words(out)
    assert "Tasks 3, of which 2 in effect Revoked task_003 on 20" in words(out)
    assert ": consent renewed" in words(out)
    assert words(out).endswith(
        "Verdict Scores Not known for every request. Audit None: what attacks get back was not "
        "measured ('gs-lora audit')."
    )
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("task_0") and "was" not in line}
    assert rows["task_001"][1:] == ["2026-01-31", "tench", "100.0→1.2", "98.8→95.4", "–", "97.0", "2/12"]
    assert rows["task_003"][2:4] == ["revoked:", "dragonfly"]
    assert "on the data 'test'" in out


def test_names_are_only_text(call, run):
    """What another user called a class neither formats the table nor reaches the terminal as a command."""
    _, out, _ = call("show", run)
    text = "".join(line[20:].split("100.0→")[0].strip() for line in out.splitlines())
    assert "[red]cassette[/red]" in text
    assert "\x1b" not in out
    assert "évil\\x1b[2Jname" in text


def test_show_for_machines(call, run):
    """With --json it is the ledger itself."""
    code, out, err = call("show", run, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document.pop("folder") == run
    assert document.pop("ledger") == ForgettingLedger.load(run).to_dict()
    assert (document.pop("forgotten"), document.pop("remarks")) == (None, [])  # it was never judged
    assert document.pop("audit") == []  # nor audited
    states = document.pop("tasks")
    assert document == {}
    assert [(name, state["forgotten"], state["score"]) for name, state in states.items()] == [
        ("task_001", None, 0.0123),
        ("task_002", None, 0.0123),
    ]
    assert out.isascii()


@pytest.mark.parametrize(
    ("verdicts", "earlier", "code", "said"),
    [
        ([True, True], {}, 0, []),
        ([True, None], {}, 0, ["task_002"]),
        ([True, False], {}, 3, ["task_002", "70 %"]),
        ([True, True], {"task_001": {"score": 0.4, "forgotten": False}}, 3, ["task_001", "task_002", "40 %"]),
    ],
)
def test_show_and_verify_end_with_3_if_something_is_not_forgotten(call, tmp_path, verdicts, earlier, code, said):
    """Both say so in words and to machines; other problems of `verify` come first."""
    ledger = ForgettingLedger.create(tmp_path, base_model=BASE, label_names=NAMES)
    for number, forgotten in enumerate(verdicts):
        after = {True: 0.01, False: 0.7, None: None}[forgotten]
        scores = {"before": {"acc_forget": 1.0}, "after": {"acc_forget": after}, "data": "test"}
        outcome = {"forgotten": forgotten, "target": 0.25, "known_before": True, "earlier": earlier if number else {}}
        write_task(ledger, [number], scores=scores, outcome=outcome)
    for command in ("show", "verify"):
        found, out, err = call(command, str(tmp_path))
        broken = command == "verify"  # this run has no adapters
        assert (found, err) == (1 if broken else code, "")
        document = json.loads(call(command, str(tmp_path), "--json")[1])
        assert document["forgotten"] == (False if code else None if None in verdicts else True)
        assert len(document["remarks"]) == bool(said)
        for remark in document["remarks"]:
            assert all(value in remark for value in said)
            assert remark in words(out)
    assert max(map(len, call("show", str(tmp_path))[1].splitlines())) <= 80


def test_what_is_withheld_is_not_shown(call, tmp_path):
    """A ledger without classes says so; one without scores, data and groups is shown, too."""
    ledger = ForgettingLedger.create(tmp_path, base_model={"fingerprint": BASE["fingerprint"]})
    write_task(ledger, [0], classes=None, class_names=None, request={"withheld": True}, scores={}, groups={})
    _, out, _ = call("show", str(tmp_path))
    (row,) = [line.split() for line in out.splitlines() if line.startswith("task_0")]
    assert row[1:] == ["2026-01-31", "withheld", "–→–", "–→–", "–", "–", "–"]
    assert not [name for name in NAMES if name in out]
    assert words(out).startswith(f"{words(str(tmp_path))} Base model unknown Class")


def test_show_an_empty_run(call, tmp_path):
    """A run in which nothing was forgotten yet has no table."""
    ForgettingLedger.create(tmp_path, base_model=BASE).save()
    code, out, _ = call("show", str(tmp_path))
    assert code == 0
    assert words(out).endswith("Tasks 0, of which 0 in effect")


def test_terminals_that_know_only_ascii(run):
    """No letter ends the program."""
    result = process("show", run, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "tench" in result.stdout


# revoke


def test_revoke(call, run):
    """The task is out of effect, with time and reason; that nothing was measured is said, not made up."""
    code, out, err = call("revoke", run, "task_002", "--reason", "a mistake", "--json")
    assert (code, err) == (0, "")
    ledger = ForgettingLedger.load(run)
    document = json.loads(out)
    assert document["tasks"] == ["task_001"] == [entry.name for entry in ledger.active_tasks]
    assert document["measured"] is False
    assert document["revocation"] == ledger.tasks[1].revocation
    assert ledger.tasks[1].revocation["reason"] == "a mistake"
    assert ledger.tasks[1].revocation["scores_after"] is None
    code, out, _ = call("revoke", run, "task_001")
    assert code == 0
    assert "was not measured" in out.replace("\n", " ")


def test_revoke_while_somebody_works_there(call, run):
    """A run that another process works on is left alone."""
    before = Path(run, "forgetting.json").read_bytes()
    with ForgettingLedger.load(run).lock():
        code, _, err = call("revoke", run, "task_001")
    assert code == 1
    assert "another process is working" in err
    assert Path(run, "forgetting.json").read_bytes() == before
