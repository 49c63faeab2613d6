"""Checking what was published: what is as it should be passes, and every kind of damage is named."""

import json
import os
import re
import shutil

import composite_cases as cases
import hub_cases
import pytest
import torch
from safetensors.torch import load_file, save_file

from gs_lora_peft import ForgettingLedger, load_forgotten
from gs_lora_peft.hub.composite import write_composite
from gs_lora_peft.hub.verify import verify_repository

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def publish(folder, out, **options):
    """What a repository holds, as far as it is checked: ledger, tasks, root adapter, card and a picture."""
    ledger = ForgettingLedger.load(folder)
    shutil.copytree(folder / "tasks", out / "tasks")
    shutil.copy(folder / "forgetting.json", out)
    (out / "README.md").write_text("card")
    (out / ".gitattributes").write_text("*.safetensors filter=lfs")
    (out / "figures").mkdir()
    (out / "figures" / "group_norms.png").write_bytes(b"picture")
    write_composite(ledger, out, **options)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three random tasks on the model with difficult names; together they fill `fc1` wholly."""
    folder, model = tmp_path_factory.mktemp("random") / "run", cases.Names()
    ledger = cases.new_ledger(model, folder)
    cases.write_task(model, ledger, {"fc1": 3, "layers.1.fc1": 1}, alpha=2, seed=1)
    cases.write_task(model, ledger, {"fc1": 3, "layers.1.fc1": 1, "(fc1)": 1}, seed=2)
    cases.write_task(model, ledger, {"(fc1)": 2}, rslora=True, seed=3)
    ledger.save()
    return folder


@pytest.fixture
def repository(run, tmp_path):
    return publish(run, tmp_path / "repository")


def change(path, **values):
    """Changes values in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_published_run_passes(repository):
    """Everything was looked at, and nothing is wrong; a sum that fills a whole layer counts as the sum."""
    report = verify_repository(repository, cases.Names())
    assert report.problems == []
    assert report.root_checked
    assert report.base_checked
    assert report.tasks == ["task_001", "task_002", "task_003"]
    assert len(report.files) == 6
    assert report.recompressed == []
    assert 0.0 < report.relative_error <= 1e-6


def test_trained_runs_pass(base, first_task, finished, tmp_path):
    """A run is checked in the folder where it was made, and as it is published."""
    for number, (folder, _) in enumerate((first_task, finished)):
        report = verify_repository(folder, hub_cases.load_base(base))
        assert (report.problems, report.root_checked) == ([], False)
        report = verify_repository(publish(folder, tmp_path / str(number)), hub_cases.load_base(base))
        assert (report.problems, report.root_checked, report.relative_error) == ([], True, 0.0)


def test_working_files_of_a_run_are_its_own_business(run, tmp_path):
    """Logs, checkpoints and notes lie beside the ledger of a run, but nothing unknown among its tasks."""
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "logs" / "task_001").mkdir(parents=True)
    (folder / "logs" / "task_001" / "events").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    assert verify_repository(folder).problems == []
    (folder / "tasks" / "task_001" / "optimizer.pt").write_bytes(b"")
    assert verify_repository(folder).problems == ["tasks/task_001/optimizer.pt: the ledger does not vouch for it"]


def test_books_of_git_and_of_the_client_are_passed_over(repository):
    """A clone and a downloaded folder hold more than was published."""
    for name in (".git", ".cache"):
        (repository / name).mkdir()
        (repository / name / "index").write_bytes(b"")
    assert verify_repository(repository).problems == []


def test_a_limited_root_is_reported_but_no_problem(run, tmp_path):
    """With `max_rank` the root is not the sum; it passes as the best of its rank, with the error that it has."""
    ledger = ForgettingLedger.load(run)
    written = write_composite(ledger, tmp_path / "root", max_rank=2)
    report = verify_repository(publish(run, tmp_path / "repository", max_rank=2))
    assert report.problems == []
    assert report.recompressed == ["(fc1)", "fc1"] == written.recompressed
    assert report.relative_error == pytest.approx(written.relative_error, rel=1e-6)


def test_a_small_root_that_is_not_the_best(run, tmp_path):
    """A small rank excuses no other adapter."""
    repository = publish(run, tmp_path / "repository", max_rank=2)
    tensors = load_file(repository / WEIGHTS)
    tensors["base_model.model.fc1.lora_B.weight"] *= 0.9
    save_file(tensors, repository / WEIGHTS)
    assert [p for p in verify_repository(repository).problems if "'fc1'" in p and "not the sum" in p]


def test_revoked_tasks_are_no_part_of_the_sum(run, tmp_path):
    """After a revocation the root lacks the task, whose files may be there or not; without any task it is zero."""
    folder = shutil.copytree(run, tmp_path / "run")
    ledger = ForgettingLedger.load(folder)
    for number, name in enumerate(("task_002", "task_003", "task_001")):
        ledger.revoke(name)
        ledger.save()
        repository = publish(folder, tmp_path / str(number))
        assert verify_repository(repository, cases.Names()).problems == []
        shutil.rmtree(repository / "tasks" / name)
        report = verify_repository(repository, cases.Names())
        assert (report.problems, report.root_checked) == ([], True)
    stale = publish(folder, tmp_path / "stale")
    shutil.copy(tmp_path / "0" / WEIGHTS, stale)
    shutil.copy(tmp_path / "0" / CONFIG, stale)
    assert "not the sum of the tasks" in verify_repository(stale).problems[0]


# Damage


def edited(folder):
    path = folder / "forgetting.json"
    path.write_text(path.read_text().replace("task_003", "task_004"))


def truncated(folder):
    path = folder / "tasks" / "task_002" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def other_task_in_root(folder):
    for name in (CONFIG, WEIGHTS):
        shutil.copy(folder / "tasks" / "task_001" / name, folder / name)


def scaled(folder):
    change(folder / CONFIG, lora_alpha=9)


def scaled_in_one_module(folder):
    patterns = json.loads((folder / CONFIG).read_text())["alpha_pattern"]
    change(folder / CONFIG, alpha_pattern={key: 2 * value for key, value in patterns.items()})


def emptied(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS)


def without_a_module(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "(fc1)" not in name}, folder / WEIGHTS)


def linked_outside(folder):
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere.safetensors")


def lying_header(folder):
    (folder / WEIGHTS).write_bytes((2**40).to_bytes(8, "little") + b"{}")


def linked_folder(folder):
    os.symlink(folder.parent, folder / "figures" / "more")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (edited, "forgetting.json"),
        (truncated, "tasks/task_002/adapter_model.safetensors"),
        (lambda folder: (folder / "tasks" / "task_003" / CONFIG).unlink(), "tasks/task_003/adapter_config.json"),
        (lambda folder: (folder / "adapter_model.bin").write_bytes(b""), "adapter_model.bin"),
        (lambda folder: (folder / "figures" / "run.py").write_bytes(b""), "figures/run.py"),
        (linked_folder, "figures/more"),
        (lambda folder: (folder / "tasks" / "task_001" / "x.pkl").write_bytes(b""), "tasks/task_001/x.pkl"),
        (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
        (lambda folder: [(folder / name).unlink() for name in (CONFIG, WEIGHTS)], CONFIG),
        (other_task_in_root, "'(fc1)' 1.0e+00"),
        (scaled, WEIGHTS),
        (scaled_in_one_module, WEIGHTS),
        (emptied, f"{WEIGHTS} 1.0e+00"),
        (without_a_module, "'(fc1)' 1.0e+00"),
        (lambda folder: change(folder / CONFIG, target_modules="fc1"), f"{CONFIG} target_modules"),
        (lambda folder: change(folder / CONFIG, rank_pattern={}), "repository (fc1"),
        (lambda folder: change(folder / CONFIG, modules_to_save=["head"]), "modules_to_save"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "peft_type"),
        (linked_outside, f"{WEIGHTS} link"),
        (lying_header, "repository"),
    ],
)
def test_damage_is_named(repository, damage, named):
    """A change, a missing file or a new one is a problem; its line has these names and numbers."""
    damage(repository)
    report = verify_repository(repository)
    assert any(all(name in problem for name in named.split()) for problem in report.problems), report.problems


def rewritten(folder, change):
    """Changes the tensors of an adapter."""
    tensors = {name: change(tensor).contiguous() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("place", ["tasks/task_002", ""])
@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: rewritten(folder, lambda tensor: tensor * float("nan")), f"{WEIGHTS}.*NaN"),
        (lambda folder: rewritten(folder, lambda tensor: tensor / 0), f"{WEIGHTS}.*infinity"),
        (lambda folder: rewritten(folder, lambda tensor: tensor.to(torch.float8_e5m2)), WEIGHTS),
        (lambda folder: change(folder / CONFIG, lora_alpha=0, alpha_pattern={}), f"{CONFIG}.*scaling"),
        (lambda folder: change(folder / CONFIG, lora_alpha=1e7, alpha_pattern={}), f"{CONFIG}.*scaling"),
        (lambda folder: change(folder / CONFIG, lora_alpha=1e7, alpha_pattern={}, use_rslora=True), "scaling"),
        (
            lambda folder: change(folder / CONFIG, auto_mapping={"base_model_class": "X", "parent_library": "os"}),
            f"{CONFIG}.*'os'",
        ),
        (lambda folder: change(folder / CONFIG, revision="0" * 40), f"revision.*{CONFIG}"),
        (lambda folder: change(folder / CONFIG, target_modules="(f+c*)+1x"), CONFIG),
        (lambda folder: change(folder / CONFIG, rank_pattern={"(f+)+x": 3}), CONFIG),
        (lambda folder: change(folder / CONFIG, exclude_modules=["fc1"]), f"exclude_modules.*{CONFIG}"),
    ],
)
def test_what_an_adapter_must_not_hold(run, tmp_path, place, damage, part):
    """In a task or the root, although the ledger vouches for it: file and reason are named, and other tasks pass."""
    folder = shutil.copytree(run, tmp_path / "run")
    ledger = ForgettingLedger.load(folder)
    ledger.base_model["revision"] = "1" * 40
    ledger.save()
    repository = publish(folder, tmp_path / "repository")
    damage(repository / place)
    cases.vouch_again(repository)
    problems = verify_repository(repository, cases.Names()).problems
    named = place or "the root|repository'"
    assert [problem for problem in problems if re.search(part, problem) and re.search(named, problem)], problems
    assert not [problem for problem in problems if "task_001" in problem or "task_003" in problem]


def test_an_absurd_update(run, tmp_path):
    """With the base model at hand, an update that dwarfs its layer is reported, for the task that has it."""
    folder = shutil.copytree(run, tmp_path / "run")
    rewritten(folder / "tasks" / "task_001", lambda tensor: tensor * 1e3)
    cases.vouch_again(folder)
    assert verify_repository(folder).problems == []
    (problem,) = verify_repository(folder, cases.Names()).problems
    assert re.search("task_001.*norm", problem)


def test_what_is_no_folder_of_ours(tmp_path):
    """A folder that is missing, empty or holds a ledger of a newer schema is a problem, too."""
    (problem,) = verify_repository(tmp_path / "nothing").problems
    assert str(tmp_path / "nothing" / "forgetting.json") in problem
    (tmp_path / "forgetting.json").write_text('{"schema_version": 2}')
    (problem,) = verify_repository(tmp_path).problems
    assert "schema_version" in problem
    assert str(tmp_path) in problem


def test_another_base_model(repository, base):
    """The fingerprint tells another model, and the model is as it was."""
    model = hub_cases.load_base(base)
    report = verify_repository(repository, model)
    assert report.base_checked
    assert len(report.problems) == 1
    assert "base model" in report.problems[0]
    assert not hasattr(model, "peft_config")


def test_a_base_model_with_adapters(base, first_task):
    """The fingerprint of a model that holds adapters would say nothing about what they are put onto."""
    model = load_forgotten(hub_cases.load_base(base), first_task[0])
    with pytest.raises(ValueError) as caught:
        verify_repository(first_task[0], model)
    assert "base_model" in str(caught.value)
