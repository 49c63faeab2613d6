"""Runs that are killed, at any moment: the same `run(requests)` goes on where they were and gives the same bits."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import run_cases as cases
import torch
import tqdm.auto
from datasets.utils import tqdm as tqdm_of_datasets
from hypothesis import HealthCheck, given, settings, strategies as st
from transformers import Trainer, TrainerCallback

from gs_lora_peft import load_forgotten
from gs_lora_peft.io import writing
from gs_lora_peft.ledger.errors import RunLockedError
from gs_lora_peft.runs import leaving, task as task_module
from gs_lora_peft.runs.workspace import Workspace

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


class KilledAt(TrainerCallback):
    """Kills the process at the end of one step of one task."""

    def __init__(self, step, task):
        self.step, self.task = step, task

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.output_dir.endswith(self.task):
            cases.kill_self()


class Steps(TrainerCallback):
    """Notes the steps that are taken, by task."""

    def __init__(self):
        self.taken = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.taken.setdefault(Path(args.output_dir).name, []).append(state.global_step)


def forked(action):
    """The id of a forked process that runs `action`."""
    child = os.fork()
    if child == 0:
        # Processes that were forked share the lock of progress bars: one killed while it draws would keep it for ever.
        for kind in (tqdm.tqdm, tqdm.auto.tqdm, tqdm_of_datasets):
            kind.set_lock(threading.RLock())
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def in_child(action, timeout=60):
    """Runs `action` in a forked process; returns by which signal it was killed, 0 if by none."""
    child = forked(action)
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.01)


def deadly(owner, name, *, call=2, before=False, of=lambda *_: True):
    """Replaces a function by one that kills the process before or after one of the calls that `of` counts."""
    original, calls = getattr(owner, name), []

    def kills(*args, **kwargs):
        calls.extend([1] if of(*args) else [])
        now = of(*args) and len(calls) == call
        if now and before:
            cases.kill_self()
        result = original(*args, **kwargs)
        if now:
            cases.kill_self()
        return result

    setattr(owner, name, kills)  # in a process that is about to die


def is_ledger(source, target):
    return Path(target).name == "forgetting.json"


# The first task takes 12 steps, with checkpoints at 4, 8 and 12; the second one, which is hit, 9, with 4, 8 and 9.
MOMENTS = {
    "before the request is written down": lambda: deadly(Workspace, "begin", before=True),
    "before the first checkpoint": None,
    "between two checkpoints": None,
    "within a checkpoint": lambda: deadly(Trainer, "_save_optimizer_and_scheduler", before=True, call=5),
    "before the end of a checkpoint": lambda: deadly(Trainer, "_save_rng_state", call=5),
    "after the last step": lambda: deadly(leaving.LeavesAdapter, "export", before=True),
    "within the export": lambda: deadly(leaving, "export_lora"),
    "before the folder is moved": lambda: deadly(writing, "_fsync_tree"),
    "between folder and ledger": lambda: deadly(task_module, "finished_entry"),
    "before the ledger is moved": lambda: deadly(os, "replace", before=True, of=is_ledger),
    "after the ledger is moved": lambda: deadly(os, "replace", of=is_ledger),
    "before the working folder is removed": lambda: deadly(Workspace, "finish", before=True),
}
STEPS = {"before the first checkpoint": 2, "between two checkpoints": 7}


@needs_fork
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(base, data, tmp_path, finished, moment):
    """At every moment at which something is on its way to the disk, nothing is lost that was whole."""
    done, _ = finished

    def dies():
        callbacks = []
        if moment in STEPS:
            callbacks.append(KilledAt(STEPS[moment], "task_002"))
        else:
            MOMENTS[moment]()
        cases.make_forgetter(base, tmp_path, data, callbacks=callbacks).run(cases.requests())

    assert in_child(dies) == signal.SIGKILL
    saved = moment in ("after the ledger is moved", "before the working folder is removed")
    steps = Steps()
    forgetter = cases.make_forgetter(base, tmp_path, data, callbacks=[steps])
    assert [entry.name for entry in forgetter.ledger.tasks] == ["task_001", "task_002"][: 1 + saved]
    entries = forgetter.run(cases.requests())
    assert [entry.classes for entry in entries] == [[2], [0, 4], [5]]
    assert cases.snapshot(tmp_path / "tasks") == cases.snapshot(done / "tasks")
    assert cases.same(cases.weights(forgetter.model), cases.weights(finished[1].model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forgetting.json", "forgetting.lock", "tasks"]
    # What a checkpoint had was not trained again.
    first_step = {
        "before the request is written down": 1,
        "before the first checkpoint": 1,
        "between two checkpoints": 5,
        "within a checkpoint": 5,
        "before the end of a checkpoint": 5,
    }.get(moment)
    assert steps.taken.get("task_002", [None])[0] == first_step
    assert "task_001" not in steps.taken
    model = load_forgotten(cases.load_base(base), tmp_path, merge=True)
    assert cases.same(cases.weights(model), cases.weights(forgetter.model))


@needs_fork
def test_killed_without_checkpoints_and_by_epoch(base, data, tmp_path, finished):
    """Without checkpoints the request starts from its beginning; with one an epoch it goes on from the last epoch."""
    for strategy, first_step in (("no", 1), ("epoch", 7)):
        folder = tmp_path / strategy
        args = cases.make_args(save_strategy=strategy, save_total_limit=1)

        def dies(folder=folder, args=args):
            cases.make_forgetter(base, folder, data, args=args, callbacks=[KilledAt(8, "task_002")]).run(
                cases.requests()
            )

        assert in_child(dies) == signal.SIGKILL
        steps = Steps()
        forgetter = cases.make_forgetter(base, folder, data, args=args, callbacks=[steps])
        forgetter.run(cases.requests())
        assert steps.taken["task_002"][0] == first_step
        assert cases.snapshot(folder / "tasks") == cases.snapshot(finished[0] / "tasks")


@needs_fork
def test_killed_again_and_again(base, data, tmp_path, finished):
    """Any number of kills, at any time, and it still ends where an undisturbed run ends."""

    def works():
        cases.make_forgetter(base, tmp_path, data).run(cases.requests())

    generator = torch.Generator().manual_seed(0)
    for kills in range(100):
        child = forked(works)
        # A fast machine carries out all three requests in less than a second.
        pause = 0.05 + 0.4 * torch.rand((), generator=generator).item() + 0.15 * kills
        deadline = time.monotonic() + pause
        ended = 0
        while not ended and time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.005)
        if ended:
            assert status == 0
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert kills > 0
    forgetter = cases.make_forgetter(base, tmp_path, data)
    assert len(forgetter.run(cases.requests())) == 3
    assert cases.snapshot(tmp_path / "tasks") == cases.snapshot(finished[0] / "tasks")
    assert not list(tmp_path.rglob(".staging-*"))


SCRIPT = """
import sys
import run_cases as cases
base, folder = sys.argv[1:]
forgetter = cases.make_forgetter(base, folder, args=cases.make_args(dataloader_num_workers=1))
print("ready", flush=True)
forgetter.run(cases.requests())
"""


@pytest.mark.slow
@needs_fork
def test_a_process_of_its_own_killed_with_its_workers_alive(base, data, tmp_path, finished):
    """While the process works the folder is locked; once it is killed the lock is free, whatever its workers do."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(base), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("work/task_00*/checkpoint-*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RunLockedError) as error:
            cases.make_forgetter(base, tmp_path, data).discard_unfinished()
        assert error.value.folder == tmp_path
        process.send_signal(signal.SIGKILL)
        process.wait()
        forgetter = cases.make_forgetter(base, tmp_path, data)
        forgetter.run(cases.requests())
    assert cases.snapshot(tmp_path / "tasks") == cases.snapshot(finished[0] / "tasks")


# Any order of interruptions


class Stopped(BaseException):
    """The end of a process, as far as one process can play it."""


class StoppedAt(TrainerCallback):
    def __init__(self, step):
        self.step, self.taken = step, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.taken += 1
        if self.taken == self.step:
            raise Stopped


@pytest.mark.slow
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(1, 12), max_size=3), known=st.integers(0, 3))
def test_any_interruptions(base, data, finished, tmp_path_factory, stops, known):
    """Stopped after any steps, any number of times, with requests given in portions: order and bits are kept."""
    folder = tmp_path_factory.mktemp("interrupted")
    args = cases.make_args(save_steps=3)
    portion = cases.requests()[:known]
    for stop in stops:
        forgetter = cases.make_forgetter(base, folder, data, args=args, callbacks=[StoppedAt(stop)])
        try:
            forgetter.run(portion)
        except Stopped:
            continue
    forgetter = cases.make_forgetter(base, folder, data, args=args)
    assert [entry.name for entry in forgetter.run(cases.requests())] == ["task_001", "task_002", "task_003"]
    assert cases.snapshot(folder / "tasks") == cases.snapshot(finished[0] / "tasks")
