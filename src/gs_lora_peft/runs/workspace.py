"""The workspace of a request in progress, from which a killed run continues."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..io import leads_out, parse_json, read_limited, remove_inside, write_json_atomic
from ..ledger import UnfinishedRequestError, refuse_linked_parts, utc_now
from .settings import Differences, describe_differences

logger = logging.getLogger(__name__)


REQUEST_FILE = "request.json"
FAILED_FILE = "failed.json"
MAX_REQUEST_BYTES = 2**24
PRIVATE_FOLDER = 0o700  # only the owner may open it, on systems with such modes

_FIX = "or discard it: call discard_unfinished(), or remove that folder."


@dataclass(frozen=True)
class Start:
    """Where the training of a request starts.

    Args:
        request (`dict[str, Any]`):
            The request. One that is continued keeps its first `requested_at`.
        started_at (`str`):
            When the training began: ISO 8601 in UTC.
        checkpoint (`str`, *optional*):
            Path of the checkpoint to resume from; `None` to start from the beginning.
    """

    request: dict[str, Any]
    started_at: str
    checkpoint: str | None = None


class Workspace:
    """The working folder of one request: `request.json` describes it, the other files are the trainer's.

    `request.json` exists from the start of the training until the task is in the ledger. If a later call finds it, the
    run was killed. After an error in training, the file becomes `failed.json`: the same request with the same settings
    still resumes from its last checkpoint, but another request may replace it. Without a checkpoint, only the last
    good weights before a non-finite loss remain.

    Args:
        path (`Path`):
            The folder. Its name is that of the task.
    """

    def __init__(self, path: Path):
        self.path = path
        self._run_folder = path.parent.parent

    def find_start(self, plan: dict[str, Any], keep: bool = False) -> Start:
        """Decides where a request starts. Writes nothing.

        Args:
            plan (`dict[str, Any]`):
                The request (`request`, `classes`), and everything else that a checkpoint depends on.
            keep (`bool`, *optional*, defaults to `False`):
                Whether to start again, with the new settings, if the request has checkpoints of other settings.

        Returns:
            [`Start`]: The start of the training.

        Raises:
            UnfinishedRequestError: If another request is unfinished, or this one has checkpoints of other settings on
                top of the same tasks.
        """
        unfinished, failed = self._read(REQUEST_FILE), self._read(FAILED_FILE)
        found = unfinished or failed
        from_scratch = Start(plan["request"], utc_now())
        if found is None:
            return from_scratch
        if sorted(found["classes"]) != sorted(plan["classes"]):
            if unfinished is None:
                return from_scratch
            raise UnfinishedRequestError(
                f"an unfinished request for the classes {sorted(found['classes'])} lies in '{self.path}', but "
                f"{sorted(plan['classes'])} were asked for. {_finish_first(found)}, {_FIX}",
                path=self.path,
                differences={},
            )
        different = _differences(found, plan)
        if different:
            settings = describe_differences(different)
            problem = f"the unfinished request in '{self.path}' was begun with other settings: {settings}"
            # Checkpoints on top of a revoked task are useless.
            usable = any(_checkpoints(self.path)) and found.get("tasks") == plan["tasks"]
            if unfinished is not None and usable and not keep:
                raise UnfinishedRequestError(
                    f"{problem}. Give the same settings to continue it, or start again with the new ones: "
                    f"run(requests, keep=True), in the examples --keep; {_FIX}",
                    path=self.path,
                    differences=different,
                )
            logger.warning("%s. It starts again with the new ones.", problem)
        processes = plan["settings"]["training"]["num_processes"]
        checkpoint = None if different else newest_checkpoint(self.path, processes)
        request = {**plan["request"], "requested_at": found["request"]["requested_at"]}
        if checkpoint is None:
            return replace(from_scratch, request=request)
        return Start(request, found["started_at"], str(checkpoint))

    def begin(self, plan: dict[str, Any], start: Start) -> None:
        """Writes `request.json` and removes the files that the training does not resume from.

        Args:
            plan (`dict[str, Any]`):
                As in [`~Workspace.find_start`].
            start ([`Start`]):
                The result of [`~Workspace.find_start`].

        Raises:
            LinkedRunError: If a part of the run folder is a symbolic link.
            OSError: If the file cannot be written (disk full, no permission, ...).
        """
        refuse_linked_parts(self._run_folder)
        remove_other_workspaces(self.path)
        if start.checkpoint is None:
            remove_inside(self._run_folder, self.path)
        for folder in _checkpoints(self.path):
            if _step(folder) > _step(Path(start.checkpoint or folder)):
                remove_inside(self._run_folder, folder)
        self.path.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # its files name classes, and callbacks may write any others
            self.path.parent.chmod(PRIVATE_FOLDER)
        begun = {**plan, "request": start.request, "started_at": start.started_at}
        write_json_atomic(self.path / REQUEST_FILE, begun, private=True)
        (self.path / FAILED_FILE).unlink(missing_ok=True)

    def fail(self) -> None:
        """Marks the request as failed. Without a checkpoint, removes its files, which name classes."""
        if leads_out(self._run_folder, self.path):
            return
        if not any(_checkpoints(self.path)):
            with suppress(OSError):
                (self.path / REQUEST_FILE).unlink()
            if not any(self.path.glob("last-good*")):
                remove_inside(self._run_folder, self.path)
            return
        with suppress(OSError):
            os.replace(self.path / REQUEST_FILE, self.path / FAILED_FILE)

    def finish(self, logs: Path) -> None:
        """Moves the logs of a completed task and removes the workspace.

        Args:
            logs (`Path`):
                The new folder of the logs.
        """
        runs = self.path / "runs"
        with suppress(OSError):
            if runs.is_dir() and not any(leads_out(self._run_folder, path) for path in (runs, logs)):
                logs.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
                os.replace(runs, logs)
        remove_inside(self._run_folder, self.path)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Removes the workspace, and the folder above it, if they are empty."""
        if leads_out(self._run_folder, self.path):
            return
        with suppress(OSError):
            self.path.rmdir()
        with suppress(OSError):
            self.path.parent.rmdir()

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = parse_json(read_limited(self.path / name, MAX_REQUEST_BYTES))
            (
                found["request"]["classes"],
                found["request"]["requested_at"],
                found["started_at"],
                sorted(found["classes"]),
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise UnfinishedRequestError(
                f"'{self.path / name}' is damaged ({error}), so the unfinished request is unknown. Restore the file, "
                f"{_FIX}",
                path=self.path / name,
                differences={},
            ) from None
        return found


def _finish_first(found: dict[str, Any]) -> str:
    if redoes := found.get("redoes"):
        return f"Finish the unfinished one first with redo({redoes!r})"
    return "Ask for the unfinished one first"


def remove_other_workspaces(path: Path) -> None:
    """Removes the workspaces beside `path`. Only the next task can be unfinished."""
    for other in path.parent.glob("*"):
        if other != path:
            remove_inside(path.parent.parent, other)


def newest_checkpoint(folder: Path, processes: int) -> Path | None:
    """Returns the newest complete checkpoint of a trainer.

    Args:
        folder (`Path`):
            Output folder of the trainer.
        processes (`int`):
            Number of processes, each of which saves its own random state.
    """
    return next((path for path in _checkpoints(folder) if _is_complete(path, processes)), None)


def _checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints of a trainer, the newest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if _step(path) >= 0), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def _differences(found: Any, wanted: Any, name: str = "") -> Differences:
    """Compares two plans. Of the request only the classes count, which the caller compares."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*wanted, *found])
        skipped = [] if name else ["request", "started_at", "classes", "redoes"]
        if name in ("settings.data", "settings.training"):  # versions differ in what they record
            skipped = [key for key in keys if key not in found or key not in wanted]
        different: Differences = {}
        for key in keys:
            if key not in skipped:
                different |= _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        return different
    return {} if found == wanted else {name.rsplit(".", 1)[-1]: (found, wanted)}


def _is_complete(checkpoint: Path, processes: int) -> bool:
    """Whether no file of a checkpoint is missing or truncated, so that training resumes exactly."""
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    archives = {checkpoint / name for name in ("optimizer.pt", "scheduler.pt", *names)} | {*checkpoint.glob("*.pt")}
    try:
        # The trainer writes this file last, but a system crash may lose any of the others.
        json.loads((checkpoint / "trainer_state.json").read_bytes())
        weights = list(checkpoint.rglob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="numpy"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(weights) and all(zipfile.is_zipfile(path) for path in archives)
