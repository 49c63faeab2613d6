"""The processes that `accelerate launch --cpu --num_processes N` was asked for."""

import pytest

from gs_lora_peft import launch


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "run.py", "--r", "8"], 2),
        (["python", "accelerate", "launch", "--cpu", "--num-processes=3", "run.py"], 3),
        (["python", "accelerate", "launch", "--cpu", "run.py", "--num_processes", "9"], 1),
        (["bash"], 1),
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
    assert replaced[0][-5:] == ["--nproc_per_node", "2", "run.py", "--r", "8"]
