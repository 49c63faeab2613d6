"""The processes that `accelerate launch --cpu --num_processes N` was asked for."""

import pytest
import torch.distributed.run
from accelerate.commands.config import config_args
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from gs_lora_peft import launch


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "run.py", "--r", "8"], 2),
        (["python", "accelerate", "launch", "--cpu", "--num-processes=3", "run.py"], 3),
        (["python", "accelerate", "launch", "--cpu", "run.py", "--num_processes", "9"], None),
        (["bash"], None),
    ],
)
def test_the_launchers_own_option_counts(command_line, expected):
    """Only options before the script are the launcher's; the script's own are left alone."""
    assert launch.requested_processes(command_line, "run.py") == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ACCELERATE_USE_CPU": "True"},
        {"MASTER_ADDR": "127.0.0.1"},
        {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "RANK": "0"},
    ],
)
def test_nothing_happens_elsewhere(environment, monkeypatch):
    """On one process, on accelerators, and in workers that torchrun started, the script simply goes on."""
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", *launch._RANKED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch.os, "execv", lambda *args: pytest.fail("a process was replaced"))
    assert launch.start_missing_cpu_processes() is None


def test_workers_replace_the_single_process(monkeypatch):
    """With what accelerate prepares, the process becomes a launcher of N workers with the same arguments."""
    for name in launch._RANKED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(launch.sys, "argv", ["run.py", "--r", "8"])

    class Parent:
        def __init__(self, pid):
            pass

        def cmdline(self):
            return ["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "run.py", "--r", "8"]

    monkeypatch.setattr(launch.psutil, "Process", Parent)
    replaced = []
    monkeypatch.setattr(launch.os, "execv", lambda path, arguments: replaced.append(arguments))
    launch.start_missing_cpu_processes()
    # As the launcher itself reads it, which has options that begin with --r.
    read = torch.distributed.run.parse_args(replaced[0][3:])
    assert (read.nproc_per_node, read.training_script, read.training_script_args) == ("2", "run.py", ["--r", "8"])


@pytest.mark.parametrize(("ended_with", "status"), [(None, 0), (3, 3), (2, 2), (1, None), (-9, None)])
def test_what_a_worker_says_is_passed_on(ended_with, status, monkeypatch):
    """The exit status of a run that did not forget survives; errors, which end with 1, and kills are told in full."""

    def main(arguments):
        if ended_with is not None:
            failure = ProcessFailure(local_rank=0, pid=1, exitcode=ended_with, error_file="<N/A>")
            raise ChildFailedError("forget.py", {0: failure})

    monkeypatch.setattr(torch.distributed.run, "main", main)
    if status is None:
        with pytest.raises(ChildFailedError):
            launch.run_workers([])
    else:
        assert launch.run_workers([]) == status


@pytest.mark.parametrize("given", [False, True])
def test_the_number_may_come_from_accelerates_configuration(given, monkeypatch, tmp_path):
    """Without `--num_processes` the configuration file counts; without either, training alone is refused."""
    for name in launch._RANKED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(launch.sys, "argv", ["run.py"])
    file = tmp_path / "default_config.yaml"
    options = ["--config_file", str(file)] if given else []
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "none.yaml" if given else file))
    parent = type("Parent", (), {"cmdline": lambda self: ["accelerate", "launch", *options, "run.py"]})
    monkeypatch.setattr(launch.psutil, "Process", lambda pid: parent())
    replaced = []
    monkeypatch.setattr(launch.os, "execv", lambda path, arguments: replaced.append(arguments))
    with pytest.raises(RuntimeError, match="would train alone"):
        launch.start_missing_cpu_processes()
    file.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 3\n")
    launch.start_missing_cpu_processes()
    assert replaced[0][-4:] == ["--nproc_per_node", "3", "--", "run.py"]
