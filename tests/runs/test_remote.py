"""Bringing a published run into a folder, with the real client on a warm cache: what is taken, what is refused."""

import hashlib
import json
import os
import shutil

import pytest
import run_cases as cases
from errors import refused
from huggingface_hub import constants

from gs_lora_peft import ContinualForgetter, ForgetRequest, ForgettingLedger, GSLoraConfig, load_forgotten
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.hub.fetch import fetch_ledger, fetch_run, fetch_to_continue
from gs_lora_peft.ledger.errors import (
    DivergedRunError,
    FilesDifferError,
    InvalidLedgerError,
    LedgerFileError,
    LinkedRunError,
    WithheldClassesError,
)
from gs_lora_peft.ledger.schema import MAX_CONFIG_BYTES, MAX_LEDGER_BYTES, with_digest

REPO = "clinic/forgotten"


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Puts the content of a folder into the cache of an offline client, as the newest commit of `REPO`."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(folder):
        root = cache / "models--clinic--forgotten"
        files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        commit = hashlib.sha1(repr(sorted(map(hash, files.values()))).encode()).hexdigest()
        for path, content in files.items():
            blob, link = root / "blobs" / hashlib.sha256(content).hexdigest(), root / "snapshots" / commit
            link = link / path.relative_to(folder)
            for parent in (blob.parent, link.parent):
                parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            if not link.is_symlink():
                link.symlink_to(blob)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)

    return put


def rewritten(folder, change):
    """Changes the ledger of a folder in a way that no honest writer would, with a digest that fits."""
    path = folder / "forgetting.json"
    data = json.loads(path.read_text())
    del data["schema_version"], data["digest"]
    change(data)
    path.write_text(json.dumps(with_digest(data)))


def withhold(data):
    data["label_names"] = None
    for task in data["tasks"]:
        task.update(classes=None, class_names=None, request={"withheld": True})


def run_files(folder):
    return {name: content for name, content in cases.snapshot(folder).items() if "lock" not in name}


def test_a_new_folder(publish, finished, tmp_path):
    """A copy of the run: the ledger and what it lists, byte for byte, as regular files; nothing else."""
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "source")
    (tmp_path / "source" / "optimizer.pt").write_bytes(b"pickle")
    publish(tmp_path / "source")
    target = fetch_run(REPO, local_dir=tmp_path / "deep" / "copy")
    ledger = ForgettingLedger.load(folder)
    listed = {"forgetting.json", *(name for entry in ledger.tasks for name in entry.files)}
    assert run_files(target) == {name: (folder / name).read_bytes() for name in listed}
    assert not any(path.is_symlink() for path in target.rglob("*"))
    ForgettingLedger.load(target).check_files()


def test_without_a_folder(publish, finished, base):
    """The cache itself serves, links and all; of the tasks only those asked for need be there."""
    folder, forgetter = finished
    publish(folder)
    cached = fetch_run(REPO, tasks=["task_002"])
    assert cached == fetch_ledger(REPO).folder
    rebuilt = load_forgotten(cases.load_base(base), REPO, merge=True)
    assert cases.same(cases.weights(rebuilt), cases.weights(forgetter.model))


def test_a_folder_wins(publish, finished, first_task, base, tmp_path, monkeypatch):
    """A folder of the same name is taken, not the repository."""
    publish(finished[0])
    shutil.copytree(first_task, tmp_path / REPO)
    monkeypatch.chdir(tmp_path)
    assert list(load_forgotten(cases.load_base(base), REPO).peft_config) == ["task_001"]


def test_an_earlier_state_is_completed(publish, finished, tmp_path):
    """A folder that holds the run up to some task gets the rest; its own other files stay."""
    folder, _ = finished
    mine = shutil.copytree(folder, tmp_path / "mine")
    shutil.rmtree(mine / "tasks" / "task_003")
    rewritten(mine, lambda data: data["tasks"].pop())
    (mine / "notes.txt").write_text("mine")
    (mine / "tasks" / "task_002" / "adapter_config.json").write_text("damaged")
    publish(folder)
    fetch_run(REPO, local_dir=mine)
    assert run_files(mine) == {**run_files(folder), "notes.txt": b"mine"}


def test_a_later_state_is_kept(publish, finished, tmp_path):
    """Nothing is taken away from a folder that is ahead of what was published, or has revoked some of it."""
    mine = shutil.copytree(finished[0], tmp_path / "mine")
    older = shutil.copytree(finished[0], tmp_path / "older")
    rewritten(older, lambda data: data["tasks"].pop())
    publish(older)
    fetch_run(REPO, local_dir=mine)
    assert run_files(mine) == run_files(finished[0])
    ledger = ForgettingLedger.load(mine)
    with ledger.changes():
        ledger.revoke("task_001")
    before = run_files(mine)
    fetch_run(REPO, local_dir=mine)
    assert run_files(mine) == before


def other_base(data):
    data["base_model"]["fingerprint"] = "sha256:" + "0" * 64


def other_file(data):
    data["tasks"][0]["files"]["tasks/task_001/adapter_config.json"] = "0" * 64


def revoked(data):
    record = {"revoked_at": "2026-01-01T00:00:00Z", "reason": None, "scores_before": None, "scores_after": None}
    data["tasks"][0].update(status="revoked", revocation=record)


@pytest.mark.parametrize("change", [other_base, other_file, lambda data: (revoked(data), data["tasks"].pop())])
def test_another_run_in_the_folder(publish, finished, tmp_path, change):
    """Runs that went separate ways are not mixed."""
    mine = shutil.copytree(finished[0], tmp_path / "mine")
    rewritten(mine, lambda data: (change(data), data["tasks"].pop()) if len(data["tasks"]) > 2 else None)
    before = run_files(mine)
    publish(finished[0])
    with pytest.raises(DivergedRunError) as error:
        fetch_run(REPO, local_dir=mine)
    assert error.value.folder == mine
    assert run_files(mine) == before


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("files", InvalidInputError),
        ("file", ValueError),
        ("damaged ledger", LedgerFileError),
        ("link out", LinkedRunError),
    ],
)
def test_folders_that_are_refused(publish, finished, tmp_path, kind, error):
    """Files of something else, a file, a damaged ledger, a link that leads elsewhere: left as they are."""
    publish(finished[0])
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    if kind == "damaged ledger":
        (target / "forgetting.json").write_text("{")
    if kind == "link out":
        shutil.copy(finished[0] / "forgetting.json", target)
        rewritten(target, lambda data: data["tasks"].clear())
        (target / "tasks").symlink_to(elsewhere)
    before = target.read_bytes() if kind == "file" else run_files(target)
    with pytest.raises(error):
        fetch_run(REPO, local_dir=target)
    assert before == (target.read_bytes() if kind == "file" else run_files(target))
    assert not list(elsewhere.iterdir())


def test_a_tampered_file_reaches_no_folder(publish, finished, base, tmp_path):
    """Hashes are checked before anything is put into a folder, and before the model is touched."""
    source = shutil.copytree(finished[0], tmp_path / "source")
    weights = source / "tasks" / "task_002" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    publish(source)
    for fetch in (
        lambda: fetch_run(REPO, local_dir=tmp_path / "target"),
        lambda: load_forgotten(cases.load_base(base), REPO),
    ):
        with pytest.raises(FilesDifferError) as error:
            fetch()
        assert list(error.value.problems) == ["tasks/task_002/adapter_model.safetensors"]
    assert not (tmp_path / "target").exists()
    fetch_run(REPO, local_dir=tmp_path / "target", tasks=1)


def listing(name):
    """A ledger that lists one more file under its first task."""
    return lambda data: data["tasks"][0]["files"].update({name: "0" * 64})


@pytest.mark.parametrize(
    "name",
    [
        "../up.json",
        "tasks/task_001/../../../up.json",
        "/etc/up.json",
        "C:/up.json",
        "tasks\\up.json",
        "tasks/task_001/training_args.bin",
        "tasks/task_002/x.json",
        "tasks/task_001/deep/x.json",
        "x.json",
    ],
)
def test_ledgers_that_list_what_they_should_not(publish, finished, base, tmp_path, name):
    """Paths that lead out, pickles and files of no task: refused before any of them is fetched."""
    source = shutil.copytree(finished[0], tmp_path / "source")
    rewritten(source, listing(name))
    publish(source)
    for act in (
        lambda: fetch_run(REPO, local_dir=tmp_path / "target"),
        lambda: load_forgotten(cases.load_base(base), REPO),
    ):
        with refused("task_001.files", kind=InvalidLedgerError) as error:
            act()
        assert name in error.value.value
    assert not (tmp_path / "target").exists()


def test_a_newer_schema(publish, finished, tmp_path):
    """A ledger that a later version wrote is not guessed at."""
    source = shutil.copytree(finished[0], tmp_path / "source")
    path = source / "forgetting.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    publish(source)
    with pytest.raises(InvalidLedgerError) as error:
        fetch_run(REPO)
    assert (error.value.name.split()[0], error.value.value) == ("schema_version", 2)


@pytest.mark.parametrize("name", ["forgetting.json", "tasks/task_001/adapter_config.json"])
def test_huge_json(publish, finished, base, tmp_path, name):
    """JSON of a size that nobody writes is refused before it is read."""
    source = shutil.copytree(finished[0], tmp_path / "source")
    with open(source / name, "ab") as file:
        file.truncate(size := (MAX_LEDGER_BYTES if name == "forgetting.json" else MAX_CONFIG_BYTES) + 1)
    publish(source)
    with refused(f"the number of bytes of {name} in the repository {REPO!r}", size, InvalidLedgerError):
        load_forgotten(cases.load_base(base), REPO)


def test_nothing_there(publish, finished, base, tmp_path, monkeypatch):
    """Neither a folder nor in the cache nor within reach: the message says all three; a task too many is named."""
    publish(finished[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConnectionError) as error:
        load_forgotten(cases.load_base(base), "clinic/other")
    assert "'clinic/other'" in str(error.value)
    with refused("repo_id", "a/b/c"):
        fetch_run("a/b/c")
    for path in ("a/b/c", "./x", "/nowhere/x", "~/nowhere/x", "..\\x", "x/", tmp_path / "x", ""):
        with pytest.raises(InvalidLedgerError) as caught:
            load_forgotten(cases.load_base(base), path)
        assert (caught.value.name, caught.value.value) == ("repo_or_folder", path)
    with refused("tasks", 4, InvalidLedgerError):
        fetch_run(REPO, tasks=4)


# Going on


def test_from_hub(publish, first_task, base, data, tmp_path, monkeypatch):
    """A published sequence goes on in a new folder, named like the repository, as it would in the original one."""
    publish(first_task)
    monkeypatch.chdir(tmp_path)
    options = {"args": cases.make_args()}
    forgetter = ContinualForgetter.from_hub(REPO, cases.load_base(base), data, **options)
    assert forgetter.folder == tmp_path / "forgotten"
    assert forgetter.recipe.config == cases.make_forgetter(base, tmp_path / "x", data).recipe.config != GSLoraConfig()
    mine = ContinualForgetter.from_hub(REPO, cases.load_base(base), data, config=GSLoraConfig(r=2), **options)
    assert mine.recipe.config.r == 2
    forgetter.forget(ForgetRequest(["flamingo"]))
    original = cases.make_forgetter(base, shutil.copytree(first_task, tmp_path / "original"), data)
    original.forget(ForgetRequest(["flamingo"]))
    assert cases.same(cases.weights(forgetter.model), cases.weights(original.model))
    assert ContinualForgetter.from_hub(REPO, cases.load_base(base), data, **options).ledger.tasks[1].classes == [5]


@pytest.mark.parametrize(
    "settings",
    [
        {"block_pattern": "(l+a*)+x"},
        {"target_modules": "(l+a*)+x"},
        {"rank_pattern": {"(l+a*)+x": 2}},
        {"lora_alpha": 10**9},
        {"block_pattern": r".*layers\.(0|1)$"},
    ],
)
def test_settings_that_are_taken_over(publish, first_task, base, data, tmp_path, settings):
    """A pattern in a published ledger that may search for ever is refused; one that chooses blocks is taken over."""
    source = shutil.copytree(first_task, tmp_path / "source")
    rewritten(source, lambda ledger: ledger["tasks"][0]["settings"]["config"].update(settings))
    publish(source)
    options = {"args": cases.make_args(), "folder": tmp_path / "run"}
    if settings == {"block_pattern": r".*layers\.(0|1)$"}:
        assert ContinualForgetter.from_hub(REPO, cases.load_base(base), data, **options).recipe.config.block_pattern
        return
    with refused("task_001.settings.config", kind=InvalidLedgerError):
        ContinualForgetter.from_hub(REPO, cases.load_base(base), data, **options)
    own = ContinualForgetter.from_hub(REPO, cases.load_base(base), data, config=GSLoraConfig(r=2), **options)
    assert own.recipe.config.r == 2


def test_what_is_withheld_cannot_be_continued(publish, finished, tmp_path):
    """Who does not know what was forgotten would teach it again; only the original folder goes on."""
    source = shutil.copytree(finished[0], tmp_path / "source")
    rewritten(source, withhold)
    publish(source)
    with pytest.raises(WithheldClassesError) as error:
        fetch_to_continue(REPO, tmp_path / "target")
    assert error.value.tasks == ["task_001", "task_002", "task_003"]
    assert not (tmp_path / "target").exists()
    mine = shutil.copytree(finished[0], tmp_path / "mine")
    fetch_to_continue(REPO, mine)
    assert ForgettingLedger.load(mine).label_names == cases.NAMES
    rewritten(mine, lambda data: data["tasks"].pop())
    with pytest.raises(WithheldClassesError):
        fetch_to_continue(REPO, mine)
    withheld = fetch_run(REPO, local_dir=tmp_path / "withheld")
    publish(finished[0])
    fetch_run(REPO, local_dir=withheld)
    assert ForgettingLedger.load(withheld).label_names == cases.NAMES
    new = fetch_run(REPO, local_dir=tmp_path / "new")
    if os.name != "nt":  # a ledger that names people is for its owner alone
        assert {folder.joinpath("forgetting.json").stat().st_mode & 0o777 for folder in (withheld, new)} == {0o600}
