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
from .settings import Differences, described

logger = logging.getLogger(__name__)


REQUEST_FILE = "request.json"


FAILED_FILE = "failed.json"


MAX_REQUEST_BYTES = 2**24


PRIVATE_FOLDER = 0o700  # for its owner alone, where the system knows such


_FIX = "or give it up: call discard_unfinished(), or remove that folder."


@dataclass(frozen=True)
class Start:
    """Where a request starts.

    Args:
        request (`dict`):
            The request; one that was begun before keeps the time at which it was asked first.
        started_at (`str`):
            When the training began: ISO 8601 in UTC.
        checkpoint (`str`, *optional*):
            The checkpoint to go on from; `None`: from the beginning.
    """

    request: dict[str, Any]
    started_at: str
    checkpoint: str | None = None


class Workspace:
    """The working folder of one request: `request.json` says what was asked for, the rest is the trainer's.

    `request.json` is there from the moment training begins until the task is in the ledger. So a call that finds it
    knows that a run was killed, and what it was at. When training breaks down with an error, its caller sees the error
    and the file becomes `failed.json`: the same request with the same settings still goes on from its last checkpoint,
    but another request may take its place. Without a checkpoint nothing is left but the weights that a loss which was
    no number could not spoil.

    Args:
        path (`Path`):
            The folder; its name is the task's.
    """

    def __init__(self, path: Path):
        self.path = path
        self._run = path.parent.parent

    def find_start(self, plan: dict[str, Any], keep: bool = False) -> Start:
        """Decides where a request starts; only reads.

        Args:
            plan (`dict`):
                The request (`request`, `classes`), and everything else that a checkpoint depends on.
            keep (`bool`, *optional*, defaults to `False`):
                Whether a request that was begun with other settings is begun anew with the present ones, though it has
                checkpoints.

        Raises:
            UnfinishedRequestError: Another request is unfinished; or this one was begun with other settings, on top of
                the same tasks, and has checkpoints.
        """
        unfinished, failed = self._read(REQUEST_FILE), self._read(FAILED_FILE)
        found = unfinished or failed
        anew = Start(plan["request"], utc_now())
        if found is None:
            return anew
        if sorted(found["classes"]) != sorted(plan["classes"]):
            if unfinished is None:
                return anew
            raise UnfinishedRequestError(
                f"an unfinished request for {found['request']['classes']!r} lies in '{self.path}', but "
                f"{plan['request']['classes']!r} was asked for. {_ask_first(found)}, {_FIX}",
                path=self.path,
                differences={},
            )
        different = _differences(found, plan)
        if different:
            told = f"the unfinished request in '{self.path}' was begun with other settings: {described(different)}"
            # Checkpoints on top of a revoked task are useless.
            usable = any(_checkpoints(self.path)) and found.get("tasks") == plan["tasks"]
            if unfinished is not None and usable and not keep:
                raise UnfinishedRequestError(
                    f"{told}. Give the same ones to go on with it, or begin it anew: run(requests, keep=True), in the "
                    f"examples --keep; {_FIX}",
                    path=self.path,
                    differences=different,
                )
            logger.warning("%s. It is begun anew with the present ones.", told)
        processes = plan["settings"]["training"]["num_processes"]
        checkpoint = None if different else newest_checkpoint(self.path, processes)
        request = {**plan["request"], "requested_at": found["request"]["requested_at"]}
        if checkpoint is None:
            return replace(anew, request=request)
        return Start(request, found["started_at"], str(checkpoint))

    def begin(self, plan: dict[str, Any], start: Start) -> None:
        """Writes down what is begun and removes what is not gone on from.

        Raises:
            LinkedRunError: The folder, or a part of it, is a symbolic link.
            OSError: The write failed (disk full, no permission, ...).
        """
        refuse_linked_parts(self._run)
        remove_others(self.path)
        if start.checkpoint is None:
            remove_inside(self._run, self.path)
        for folder in _checkpoints(self.path):
            if _step(folder) > _step(Path(start.checkpoint or folder)):
                remove_inside(self._run, folder)
        self.path.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # what is in it names classes, and callbacks may write there what they like
            self.path.parent.chmod(PRIVATE_FOLDER)
        begun = {**plan, "request": start.request, "started_at": start.started_at}
        write_json_atomic(self.path / REQUEST_FILE, begun, private=True)
        (self.path / FAILED_FILE).unlink(missing_ok=True)

    def fail(self) -> None:
        """Notes that the caller was told of an error; what nothing can go on from is removed, class names included."""
        if leads_out(self._run, self.path):
            return
        if not any(_checkpoints(self.path)):
            with suppress(OSError):
                (self.path / REQUEST_FILE).unlink()
            if not any(self.path.glob("last-good*")):
                remove_inside(self._run, self.path)
            return
        with suppress(OSError):
            os.replace(self.path / REQUEST_FILE, self.path / FAILED_FILE)

    def finish(self, logs: Path) -> None:
        """Removes the folder of a task that is in the ledger; logs that were written to it go to `logs`."""
        runs = self.path / "runs"
        with suppress(OSError):
            if runs.is_dir() and not any(leads_out(self._run, path) for path in (runs, logs)):
                logs.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
                os.replace(runs, logs)
        remove_inside(self._run, self.path)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Removes the folder, and the one above it, if there is nothing in them."""
        if leads_out(self._run, self.path):
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
                f"'{self.path / name}' is damaged ({error}), so that it is not known what is unfinished. Restore it, "
                f"{_FIX}",
                path=self.path / name,
                differences={},
            ) from None
        return found


def _ask_first(found: dict[str, Any]) -> str:
    if redoes := found.get("redoes"):
        return f"Finish the unfinished one first with redo({redoes!r})"
    return "Ask for the unfinished one first"


def remove_others(path: Path) -> None:
    """Removes the working folders beside `path`: their tasks are done, or it would be their turn."""
    for other in path.parent.glob("*"):
        if other != path:
            remove_inside(path.parent.parent, other)


def newest_checkpoint(folder: Path, processes: int) -> Path | None:
    """The newest checkpoint in a trainer's folder that was written to its end, by so many processes."""
    return next((path for path in _checkpoints(folder) if _is_whole(path, processes)), None)


def _checkpoints(folder: Path) -> list[Path]:
    """A trainer's checkpoints, the newest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if _step(path) >= 0), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def _differences(found: Any, wanted: Any, name: str = "") -> Differences:
    """Where two plans differ, apart from the request, of which only the classes count."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*wanted, *found])
        skipped = [] if name else ["request", "started_at", "classes", "redoes"]
        if name == "settings.data":  # a request that was begun by an earlier version does not tell its data
            skipped = [key for key in keys if key not in found]
        different: Differences = {}
        for key in keys:
            if key not in skipped:
                different |= _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        return different
    return {} if found == wanted else {name.rsplit(".", 1)[-1]: (found, wanted)}


def _is_whole(checkpoint: Path, processes: int) -> bool:
    """Whether nothing of a checkpoint is missing or cut off, so that training goes on from it bit for bit."""
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    archives = {checkpoint / name for name in ("optimizer.pt", "scheduler.pt", *names)} | {*checkpoint.glob("*.pt")}
    try:
        # The trainer writes this file last; the others are looked at because a system that crashed may lose any.
        json.loads((checkpoint / "trainer_state.json").read_bytes())
        weights = list(checkpoint.rglob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="numpy"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(weights) and all(zipfile.is_zipfile(path) for path in archives)
