"""Commands that train in one of several processes: what launchers say, which processes take part, tracebacks."""

import subprocess
import sys

import pytest
import torch
from errors import refused

from gs_lora_peft.cli import terminal as ending

LAUNCHER = """
import subprocess, sys
if subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode:
    raise RuntimeError("what a launcher says")
"""
# The program, in which one command does something else.
SCRIPT = """
from gs_lora_peft.cli import main
from gs_lora_peft.cli.program import app
@app.command()
def demo(): {}
main(["demo"])
"""


def script(body):
    return subprocess.run([sys.executable, "-c", SCRIPT.format(body)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise ValueError('two\\nlines')", "Error: two lines"),
        ("open('/nowhere/x')", "Error: [Errno 2] No such file or directory: '/nowhere/x'"),
        ("raise ConnectionError", "Error: ConnectionError"),
    ],
)
def test_the_useful_line_is_the_last(body, line, tmp_path):
    """What a user can correct is one line; under a launcher it comes again after the launcher's own traceback."""
    alone = script(body)
    assert (alone.returncode, alone.stderr) == (1, f"{line}\n")
    (tmp_path / "torchrun").write_text(LAUNCHER)
    command = [sys.executable, str(tmp_path / "torchrun"), SCRIPT.format(body)]
    launched = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = launched.stderr.splitlines()
    assert lines[0] == lines[-1] == line
    assert "RuntimeError: what a launcher says" in lines


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes take the accelerators, if there are any")
def test_a_lone_process_of_accelerate_is_refused(tmp_path):
    """Without an accelerator accelerate starts one process instead of two; nothing is loaded, let alone written."""
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 -m gs_lora_peft forget --r 4 --output_dir out"
    result = subprocess.run(
        [sys.executable, *launch.split()], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 1
    assert "torchrun --nproc_per_node N" in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "allowed"),
    [
        ({}, True),
        ({"ACCELERATE_USE_CPU": "True"}, True),
        ({"MASTER_ADDR": "127.0.0.1"}, True),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, False),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "PMI_SIZE": "2"}, True),
    ],
)
def test_a_process_is_not_left_alone(environment, allowed, monkeypatch):
    """What accelerate prepares and then does not start is refused; one process and MPI go on."""
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "WORLD_SIZE", *ending._MPI_SIZES):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if allowed:
        ending.join_processes()
    else:
        with refused("--num_processes"):
            ending.join_processes()


def test_faults_of_a_training_keep_their_traceback(monkeypatch):
    """An error that no user can correct shows where it came from; others do if they are asked to."""
    fault = script("{}['x']")
    assert (fault.returncode, "Traceback" in fault.stderr) == (1, True)
    monkeypatch.setenv("GS_LORA_TRACEBACK", "1")
    assert "Traceback" in script("raise ValueError('x')").stderr
