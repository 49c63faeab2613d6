"""Processes of their own for tests: what takes seconds to import is imported once, and each of them is a fork."""

import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# Forks know torch, and of transformers the list of its files only; neither PEFT nor this package has been imported.
SERVER = """
import gc, json, os, sys, traceback
import accelerate, scipy.optimize, torch.distributed.fsdp, torch.distributed.tensor, transformers
assert not {"gs_lora_peft", "peft", "transformers.models.auto.configuration_auto"} & set(sys.modules)
gc.freeze()
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        for number, name in ((1, "out"), (2, "err")):
            with open(os.path.join(request["folder"], name), "w") as file:
                os.dup2(file.fileno(), number)
        try:
            sys.argv = ["-c", *request["arguments"]]
            exec(request["code"], {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _server() -> subprocess.Popen:
    """The process that forks. It ends with its standard input, which closes when the tests end."""
    # Strings hash in another order than here.
    command = ["env", "PYTHONHASHSEED=7", sys.executable, "-W", "ignore", "-c", SERVER]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def in_new_process(code: str, *arguments: str) -> str:
    """Standard output of some code in a process that has imported neither this package nor PEFT nor a model."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        server.stdin.write(json.dumps({"code": code, "arguments": arguments, "folder": folder}) + "\n")
        server.stdin.flush()
        status = server.stdout.readline().strip()
        assert status == "0", Path(folder, "err").read_text()
        return Path(folder, "out").read_text()
