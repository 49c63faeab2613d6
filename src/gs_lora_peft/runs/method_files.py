"""What methods keep for later tasks: files beside those of the tasks, which are never published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..io import file_mismatch, remove_inside, safe_join, sha256_of, staged_folder
from ..ledger import (
    METHOD_FILE,
    METHOD_FOLDER,
    FilesDifferError,
    ForgettingLedger,
    InvalidLedgerError,
    TaskEntry,
    method_folder,
)
from ..training import Method
from .workspace import PRIVATE_FOLDER


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read from the disk when it is used.

    Args:
        path (`Path`):
            The file.
    """

    def __init__(self, path: Path):
        self._file = safe_open(path, framework="pt")

    def __getitem__(self, name: str) -> Tensor:
        if name not in set(self):
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def keep_for_later(ledger: ForgettingLedger, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Writes what the method of a task keeps for later ones, atomically, readable by the owner alone.

    It may hold traces of the forgotten data, such as gradients. Therefore it lies in `method/`, not beside the adapter
    in `tasks/`, and publishing leaves it out.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        name (`str`):
            Name of the task.
        tensors (`Mapping[str, torch.Tensor]`):
            What [`Method.leave`] returned.

    Returns:
        `dict[str, str]` or `None`: Path relative to the ledger's folder → SHA-256; `None` if there is nothing to keep.
    """
    folder = method_folder(ledger.folder, name)
    if not tensors:
        remove_inside(ledger.folder, folder)  # of an attempt with another method
        with suppress(OSError):
            folder.parent.rmdir()
        return None
    folder.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    with staged_folder(folder) as staged:
        values = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        save_file(values, staged / METHOD_FILE, metadata={"format": "pt"})
    return {f"{METHOD_FOLDER}/{name}/{METHOD_FILE}": sha256_of(folder / METHOD_FILE)}


def check_earlier(ledger: ForgettingLedger, method: Method) -> None:
    """Checks that the files that a method needs of earlier tasks are there, and match their SHA-256.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        method ([`Method`]):
            The method of the next task.

    Raises:
        InvalidLedgerError: If one is missing, as in a run that was fetched from the Hub.
        FilesDifferError: If one differs.
    """
    files = {name: sha for entry in ledger.active_tasks for name, sha in _files_for(entry, method).items()}
    if missing := [name for name in files if not safe_join(ledger.folder, name).exists()]:
        raise InvalidLedgerError(
            f"files of the method {method.name!r} in '{ledger.folder}'",
            f"without {missing}",
            "what it kept of each earlier task, which is never published",
            "Continue in the folder of the original run, or copy its folder "
            f"'{METHOD_FOLDER}' here; or use a method that needs nothing of earlier tasks.",
        )
    found = {name: file_mismatch(safe_join(ledger.folder, name), sha) for name, sha in files.items()}
    if problems := {name: problem for name, problem in found.items() if problem}:
        raise FilesDifferError.of(ledger.folder, problems)


def kept_of_earlier(ledger: ForgettingLedger, method: Method) -> list[Mapping[str, Tensor]]:
    """Returns what a method kept of each task in effect, in order; nothing of tasks of other methods.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        method ([`Method`]):
            The method of the next task, see [`check_earlier`].
    """
    names = [next(iter(_files_for(entry, method)), None) for entry in ledger.active_tasks]
    return [{} if name is None else StoredTensors(safe_join(ledger.folder, name)) for name in names]


def _files_for(entry: TaskEntry, method: Method) -> dict[str, str]:
    recorded = entry.settings.get("method")
    by = recorded.get("name") if isinstance(recorded, Mapping) else "gs_lora"
    return dict(entry.method_files or {}) if by == method.name else {}
