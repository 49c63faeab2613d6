"""A process of its own in which the real clients run: `huggingface_hub` reads its address when it is imported."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT = 300  # starting on a busy machine can take a minute


class ClientError(Exception):
    """What went wrong in the client: the names of the error's classes, its message, and its parts if it has them."""

    def __init__(self, kinds, message, parts):
        super().__init__(f"{kinds[0]}: {message}")
        self.kinds, self.message = kinds, message
        for name, part in parts.items():
            setattr(self, name, part)


class Client:
    """Calls the functions of `client_calls.py` in a process that stays until `close`, as its imports take seconds.

    Args:
        address (`str`): The Hub.
        home (`Path`): `HF_HOME`.
        refuse (`str`, *optional*): A package that cannot be imported there.
        environment: More variables; `None` takes one away.
    """

    def __init__(self, address, home, refuse=None, **environment):
        values = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))},
            "HF_ENDPOINT": address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            # The package under test is the one that this process has, wherever its path is from.
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "runs"), *_given_paths()]),
            **environment,
        }
        self.environment = {key: value for key, value in values.items() if value is not None}
        self.command = [sys.executable, str(HERE / "client_calls.py"), *([refuse] if refuse else [])]
        self.process = None
        self.waits = []

    def __call__(self, function, token=None, **arguments):
        """Calls a function there, with `HF_TOKEN` set to `token`; raises ClientError for what it raises.

        Afterwards `waits` has the seconds that would have been waited before something was tried again.
        """
        if self.process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen(self.command, env=self.environment, **pipes)
        request = json.dumps({"function": function, "token": token, "arguments": arguments}, default=str)
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline() if select.select([self.process.stdout], [], [], TIMEOUT)[0] else ""
        if not line:
            self.close()
            raise RuntimeError(f"the client crashed in {function}, or did not end within {TIMEOUT} seconds")
        answer = json.loads(line)
        self.waits = answer["waits"]
        if "error" in answer:
            raise ClientError(answer["error"], answer["message"], answer["parts"])
        return answer["value"]

    def close(self):
        """Ends the process; the next call starts another one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _given_paths():
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
