"""Two processes do what one process does with the same global batch, and resume bit for bit."""

import json
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from two_processes import FSDP2, GLOBAL_BATCH, RUNS, WEIGHTS_TRAIN, run

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two gloo processes left, started once for all tests."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    # Not `accelerate launch --cpu --num_processes 2`, which starts a single process unless MPI is there.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--nnodes", "1"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port()), str(script), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(done.stderr[-3000:], pytrace=False)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def reports(folder) -> list[dict]:
    """One for each process."""
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module", params=RUNS)
def both(request, folder, reports, tmp_path_factory):
    """A run's name, what one process reports of it, and its adapter."""
    report, adapter = run(request.param, tmp_path_factory.mktemp("one"), 1)
    return request.param, report, adapter


def test_there_were_two_gloo_processes(reports):
    """The other tests would pass in one process as well."""
    assert [(report["processes"], report["backend"]) for report in reports] == [(2, "gloo")] * 2


def test_nothing_is_said_of_unused_parameters(folder):
    """An adapter needs no search for groups that take no part, of which DDP warns. Weights still train in DDP."""
    before, _, after = (folder / "stderr.txt").read_text().partition(WEIGHTS_TRAIN)
    assert "did not find any unused parameters" not in before
    assert after


def test_processes_end_with_the_same_adapter(folder, both):
    """Weights that drift apart would make the result depend on who saves it."""
    name, _, _ = both
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_processes_see_the_batches_of_one(reports, both):
    """The same global batches in the same order, split between the processes, every half by itself."""
    name, one, _ = both
    two = [report[name]["batches"] for report in reports]
    assert len(one["batches"]) == len(two[0]) == len(two[1]) > 0
    for expected, *parts in zip(one["batches"], *two, strict=True):
        for half in ("retain", "forget"):
            assert expected[half] == list(chain(*(part[half] for part in parts)))
            assert len(parts[0][half]) == len(parts[1][half])


def test_losses_accuracies_and_gradient_norms_agree(reports, both):
    """Within 1e-5, at every step, and every process logs the mean over both."""
    name, one, _ = both
    for report in reports:
        assert report[name]["steps"] == one["steps"]
        assert len(report[name]["logs"]) == len(one["logs"])
        for two, expected in zip(report[name]["logs"], one["logs"], strict=True):
            assert two == pytest.approx(expected, abs=1e-5, rel=1e-4)
    if name in ("plain", "accumulating", "sharded"):
        assert len(one["logs"]) == one["steps"] == 12


def test_adapters_agree(folder, both):
    """Also where the bound is judged by the mean over both processes, and one of them alone would judge otherwise."""
    name, _, adapter = both
    two = load_file(folder / f"{name}-0.safetensors")
    tolerance = 1e-6 if name.startswith("hinge") else 2e-4
    for key, expected in adapter.items():
        torch.testing.assert_close(two[key], expected, rtol=tolerance, atol=tolerance)


def test_hinge_bounds_really_lie_between_the_processes(tmp_path):
    """One step with the bound closed, one with it open: they must differ, or the test above shows nothing."""
    (_, closed), (_, opened) = (run(f"hinge {state}", tmp_path, 1) for state in ("closed", "open"))
    assert any(not torch.allclose(closed[key], opened[key], atol=1e-4) for key in closed)


def test_groups_are_frozen_on_both_processes_without_a_hang(reports, both):
    """DDP waits for gradients; a group that stops training must stop on both at the same step."""
    name, one, _ = both
    assert [report[name]["zero"] for report in reports] == [one["zero"]] * 2
    if name.endswith("zero groups"):
        assert 0 < len(one["zero"]) < 3


def test_evaluation_gathers_what_both_processes_scored(reports, both):
    """H is that of the whole set, on every process, also where the set does not divide evenly."""
    name, one, _ = both
    for report in reports:
        assert report[name]["scores"] == pytest.approx(one["scores"])
    if name == "evaluated":
        assert one["scores"][-1] > 0


@pytest.mark.parametrize("kind", ["two adapters, dropout", "zero groups, average", "depth", "accumulating", "sharded"])
def test_resumed_runs_end_bit_equal(reports, kind):
    """In the middle of an epoch, at its end and in later epochs, with the batches that were left."""
    for report in reports:
        assert len(report["resume"][kind]) >= 2
        for step, found in report["resume"][kind].items():
            assert found["different"] == [], step
            assert found["same batches"], step
            assert found["same logs"], step
            assert len(found["trains"]) == 1


@pytest.mark.parametrize(
    ("half", "quantity"), [("retain", "retain_loss"), ("forget", "forget_loss"), ("neither", "loss")]
)
def test_both_processes_stop_where_one_sees_a_nan(reports, half, quantity):
    """Otherwise the other one would wait for ever. Both name what is broken; the last good adapter is on disk."""
    found = [report["broken"][half] for report in reports]
    assert found[0]["error"] == found[1]["error"]
    assert found[0]["quantities"] == [quantity]
    assert found[0]["step"] == found[1]["step"]
    assert found[0]["stopped"] == found[0]["step"] + 1
    assert found[0]["saved"]


def test_weights_do_not_train_as_shards(reports):
    """Methods that train weights compare them matrix by matrix."""
    for report in reports:
        assert report["refused"] == ["fsdp", True]


def test_processes_refuse_to_keep_states_together(reports):
    """One that has no room would leave the other waiting for its gradients."""
    first, second = (report["refused cache"] for report in reports)
    assert first == second
    assert first[:2] == ["prefix_cache", "on"]


def test_the_base_is_sharded_and_the_adapter_is_whole(reports, both):
    """Or the runs that are called sharded would be ordinary ones."""
    name, one, _ = both
    assert one["shards"] == 0
    for report in reports:
        assert report[name]["shards"] == (56 if name.startswith("sharded") else 0)


def test_the_example_of_fsdp_is_what_is_tested():
    """`accelerate launch` hands these settings on; two processes on a CPU are started without it."""
    path = Path(__file__).parents[2] / "examples/accelerate/fsdp2.yaml"
    launch = ["--config_file", str(path), "forget.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(launch))
    environment = prepare_multi_gpu_env(arguments)
    assert {key: environment[key].lower() for key in FSDP2} == {key: value.lower() for key, value in FSDP2.items()}


def test_global_batches_are_as_large_as_they_say(both):
    """The comparison is at the same global batch."""
    name, one, _ = both
    size = GLOBAL_BATCH // (2 if name in ("accumulating", "sharded") else 1)
    assert {len(batch["retain"]) for batch in one["batches"]} == {size}
