"""A run over several processes: the main one writes, all go on with the same model, or end with the same error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_cases as cases
import torch
from safetensors.torch import load_file

from gs_lora_peft import load_forgotten, weights_fingerprint
from gs_lora_peft.ledger import ForgettingLedger
from gs_lora_peft.runs import folder as processes
from gs_lora_peft.runs.folder import run_on_main

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes(base, tmp_path):
    """Training, stopping and resuming, errors, and a revocation, on two processes that talk through gloo."""
    # Not `accelerate launch --cpu --num_processes 2`, which starts a single process unless MPI is there.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--nnodes", "1"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    command += [str(HERE / "run_processes.py"), str(base), str(tmp_path)]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-5000:]
    first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))

    assert first == second  # also the adapters, before they were exported
    assert first["processes"] == 2
    assert first["stopped_with"] == 1
    assert first["stopped"] == first["whole"] == first["after_errors"]
    assert cases.snapshot(tmp_path / "stopped" / "tasks") == cases.snapshot(tmp_path / "whole" / "tasks")
    # Shards of the base: half of it in each process, and the same adapters up to rounding: a layer with whole weights
    # computes base and adapter in one product.
    assert sum(first["shares"]) == pytest.approx(1)
    assert max(first["shares"]) < 0.6
    for name in ("task_001", "task_002"):
        folders = [tmp_path / kind / "tasks" / name for kind in ("sharded", "whole")]
        snapshots = [cases.snapshot(folder) for folder in folders]
        assert snapshots[0].keys() == snapshots[1].keys()
        weights = [load_file(folder / "adapter_model.safetensors") for folder in folders]
        assert weights[0].keys() == weights[1].keys() != set()
        for module, tensor in weights[0].items():
            torch.testing.assert_close(tensor, weights[1][module], rtol=1e-3, atol=1e-5)
    assert first["unknown"].startswith("UnknownClassError: ")
    assert first["locked"].startswith("RunLockedError: another process is working in")
    assert first["full"].startswith("OSError: [Errno 28]")

    assert ForgettingLedger.load(tmp_path / "whole").to_dict() == first["ledger"]
    assert ForgettingLedger.load(tmp_path / "stopped").to_dict() == first["revoked_ledger"]
    assert first["ledger"]["tasks"][0]["settings"]["training"]["num_processes"] == 2
    assert first["weights-stopped"] == first["weights"] != first["whole"]
    for kind in ("tasks", "method"):
        snapshots = [cases.snapshot(tmp_path / name / kind) for name in ("weights", "weights-stopped")]
        assert snapshots[0] == snapshots[1] != {}
    for folder, fingerprint in (
        ("whole", first["whole"]),
        ("sharded", first["sharded"]),
        ("stopped", first["revoked"]),
        ("weights", first["weights"]),
    ):
        rebuilt = load_forgotten(cases.load_base(base), tmp_path / folder, merge=True)
        assert weights_fingerprint(rebuilt) == fingerprint
    assert not (tmp_path / "stopped" / "work").exists()


class Pretended:
    """Stands in for the state of one process of two."""

    num_processes = 2

    def __init__(self, is_main):
        self.is_main_process = is_main


class Unportable(Exception):
    """Cannot be built from its message alone, as unpickling would do it."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(("error", "told"), [(ValueError("no"), ValueError), (Unportable(1, 2), RuntimeError)])
def test_every_process_hears_of_an_error(monkeypatch, error, told):
    """The main process raises its error, the others raise the same, or one that says the same."""
    wire = []

    def fails():
        raise error

    monkeypatch.setattr(processes, "PartialState", lambda: Pretended(is_main=True))
    monkeypatch.setattr(processes, "broadcast_object_list", lambda outcome: wire.extend(outcome))
    with pytest.raises(type(error)) as caught:
        run_on_main(fails)
    assert caught.value is error

    def receive(outcome):
        outcome[:] = wire

    monkeypatch.setattr(processes, "PartialState", lambda: Pretended(is_main=False))
    monkeypatch.setattr(processes, "broadcast_object_list", receive)
    with pytest.raises(told) as caught:
        run_on_main(fails)
    assert str(error) in str(caught.value)
    wire[:] = ["result", None]
    assert run_on_main(fails) == "result"
