"""Checks a repository against its ledger: hashes, unlisted files, and the adapter in the root."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn
from transformers import PreTrainedModel

from ..adapters import (
    TaskAdapter,
    TaskChange,
    base_mismatch,
    check_changes,
    model_identity,
    read_adapter,
    verified_change,
)
from ..io import StrPath, as_path, file_mismatch, safe_join
from ..ledger import (
    LEDGER_NAME,
    LOCK_NAME,
    TASKS_FOLDER,
    ForgettingLedger,
    LedgerError,
    TaskEntry,
    UnusableAdapterError,
    all_forgotten,
    doubts,
    not_forgotten,
)
from .composite import Pair, has_composite, recompressed_pair, relative_difference, summed_pair
from .install import audit_files
from .load import check_bare, load_base_model, model_source

TOLERANCE = 1e-6

_PICTURES = "figures"
_CARD_NAME = "README.md"
_ROOT = "the root"  # stands for the name of a task
_ROOT_FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)
_OTHER_FILES = {*_ROOT_FILES, _CARD_NAME, LEDGER_NAME, LOCK_NAME, ".gitattributes"}
_METADATA_FOLDERS = (".git", ".cache")  # of git and of the Hub's client


@dataclass
class VerifyReport:
    """What [`verify_repository`] checked, and what it found.

    Attributes:
        tasks (`list[str]`):
            The tasks in effect.
        files (`list[str]`):
            The files whose hashes were compared with the ledger.
        root_checked (`bool`):
            Whether the adapter in the root was compared with the sum of the tasks.
        base_checked (`bool`):
            Whether a base model was compared with the ledger's fingerprint.
        recompressed (`list[str]`):
            Modules in which the adapter in the root is the best approximation of the sum at its rank.
        relative_error (`float`):
            The largest ‖ΔW − ΣΔW_task‖ / ‖ΣΔW_task‖ (Frobenius) of a module in the root.
        problems (`list[str]`):
            The problems; empty if all is well.
        forgotten (`bool` or `None`):
            Whether all tasks in effect are forgotten, by the scores in the ledger; `None` if unknown. The scores are
            not measured again.
        remarks (`list[str]`):
            Tasks that are not forgotten, and reasons to doubt scores.
    """

    tasks: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    root_checked: bool = False
    base_checked: bool = False
    recompressed: list[str] = field(default_factory=list)
    relative_error: float = 0.0
    problems: list[str] = field(default_factory=list)
    forgotten: bool | None = None
    remarks: list[str] = field(default_factory=list)


def verify_repository(
    folder: StrPath,
    base_model: PreTrainedModel | StrPath | None = None,
    *,
    token: str | bool | None = None,
) -> VerifyReport:
    """Checks a repository that [`push_to_hub`] or [`stage_repository`] made, or the folder of a run.

    - The ledger: its digest, and everything else that [`ForgettingLedger.load`] checks.
    - The files of the tasks in effect exist and have the hashes in the ledger, and so have those of a recorded audit.
    - No files that the ledger does not list are below `tasks/`, or anywhere in a repository except card and pictures.
      (A run keeps working files and logs beside its ledger.)
    - Weights that a task left in place of an adapter are finite, and are the tensors that the ledger lists.
    - The adapters hold matrices of finite numbers, a scaling of at most 10,000 and not 0, explicit names of modules,
      the ledger's base model, and no class to import from outside transformers, PEFT and this package.
    - The adapter in the root of a repository is the sum of the tasks to within 1e-6. If its rank is too small for that
      (`max_rank`), it is the best approximation of that rank, and the report has the error.
    - With `base_model`: the fingerprint of its weights, and whether the adapters fit it. No update is more than a
      thousand times as large as the weights of its layer (Frobenius norms).

    A ledger's digest reveals accidents and careless edits. A person with write access to a repository can replace all
    of it; only its commit identifies the version that you trust.

    Args:
        folder (`str` or `os.PathLike`):
            A local folder; [`fetch_repository`] downloads one.
        base_model (`transformers.PreTrainedModel`, `str` or `os.PathLike`, *optional*):
            The base model without adapters, which is not changed; or a folder or Hub id to load it from.
        token (`str`, *optional*):
            For a base model on the Hub; by default the one of `hf auth login`.

    Returns:
        [`VerifyReport`]: `problems` lists what is wrong in the folder; nothing of it is raised.

    Raises:
        ValueError: If `base_model` holds adapters, or is neither a folder nor a repository.
        OSError: If `base_model` cannot be loaded.
    """
    if isinstance(base_model, nn.Module):
        check_bare(base_model)
    elif base_model is not None:
        base_model = model_source(base_model)
    folder, report = as_path(folder, "folder"), VerifyReport()
    try:
        ledger = ForgettingLedger.load(folder)
    except LedgerError as error:
        report.problems.append(str(error))
        return report
    report.tasks = [entry.name for entry in ledger.active_tasks]
    report.forgotten = all_forgotten(ledger.tasks)
    report.remarks = [*not_forgotten(ledger), *doubts(ledger)]
    is_repository = _is_repository(folder)
    _check_files(ledger, report)
    changes: list[TaskChange] | None = None
    root = None
    if not report.problems:
        read = [_read_task(ledger, entry, report) for entry in ledger.active_tasks]
        changes = [change for change in read if change] if all(read) else None
    _check_audit(ledger, is_repository, report)
    report.problems += [f"{name}: the ledger does not vouch for it" for name in _unlisted(ledger, is_repository)]
    if is_repository and has_composite(ledger):
        with _noted(report):
            root = _read_root(ledger)
    elif is_repository:
        found = [name for name in _ROOT_FILES if os.path.lexists(folder / name)]
        report.problems += [f"{name}: not all tasks are adapters, so that it cannot be all of them" for name in found]
    if root is not None and changes is not None:
        _compare(root, [change for change in changes if isinstance(change, TaskAdapter)], report)
    if base_model is not None:
        model = base_model
        if not isinstance(model, nn.Module):
            model = load_base_model(ledger, model, token=token)
        with _noted(report):
            report.base_checked = True
            ledger.check_base(model_identity(model))
            for change in (*(changes or []), *([root] if root else [])):
                with _noted(report):
                    check_changes(model, [change])
    return report


@contextmanager
def _noted(report: VerifyReport) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        report.problems.append(str(error))


def _check_files(ledger: ForgettingLedger, report: VerifyReport) -> None:
    for name, digest in ((name, digest) for entry in ledger.active_tasks for name, digest in entry.files.items()):
        report.files.append(name)
        if problem := file_mismatch(safe_join(ledger.folder, name), digest):
            report.problems.append(f"{name}: {problem}")
    # Never published, and of use to the owner of the run alone: they may be absent.
    kept = {name: digest for entry in ledger.active_tasks for name, digest in (entry.method_files or {}).items()}
    for name, digest in kept.items():
        path = safe_join(ledger.folder, name)
        if path.exists() and (problem := file_mismatch(path, digest)):
            report.problems.append(f"{name}: {problem}")


def _check_audit(ledger: ForgettingLedger, is_repository: bool, report: VerifyReport) -> None:
    """Compares the files of the recorded audit. In the folder of a run they may be absent: it publishes none then."""
    for name, digest in audit_files(ledger).items():
        path = safe_join(ledger.folder, name)
        if is_repository or path.exists():
            report.files.append(name)
            if problem := file_mismatch(path, digest):
                report.problems.append(f"{name}: {problem}")


def _is_repository(folder: Path) -> bool:
    """Returns whether a folder is a published repository. A run has no adapter in its root."""
    has_root = any(os.path.lexists(folder / name) for name in _ROOT_FILES)
    return has_root or (os.path.lexists(folder / _CARD_NAME) and not os.path.lexists(folder / LOCK_NAME))


def _unlisted(ledger: ForgettingLedger, is_repository: bool) -> list[str]:
    listed = {name for entry in ledger.tasks for name in entry.files} | audit_files(ledger).keys()
    found = []
    for parent, folders, names in os.walk(ledger.folder if is_repository else ledger.folder / TASKS_FOLDER):
        inside = Path(parent).relative_to(ledger.folder)
        if inside == Path():
            folders[:] = [name for name in folders if name not in _METADATA_FOLDERS]
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [(inside / name).as_posix() for name in (*names, *links)]
    return sorted(name for name in found if name not in listed | _OTHER_FILES and not _is_picture(PurePosixPath(name)))


def _is_picture(path: PurePosixPath) -> bool:
    return path.parent == PurePosixPath(_PICTURES) and path.suffix == ".png"


def _read_task(ledger: ForgettingLedger, entry: TaskEntry, report: VerifyReport) -> TaskChange | None:
    """Returns what a task left, or `None` after noting a problem, so that the others are checked too."""
    with _noted(report):
        change = verified_change(ledger, entry)[0]
        return change if isinstance(change, TaskAdapter) else change.shapes()
    return None


def _read_root(ledger: ForgettingLedger) -> TaskAdapter:
    folder = ledger.folder
    for name in _ROOT_FILES:
        if not safe_join(folder, name).exists():
            message = f"{name}: it is missing; expected an adapter of all tasks in the root of the repository"
            raise UnusableAdapterError(message, task=_ROOT, file=name, name=None)
    root = replace(read_adapter(folder), name=_ROOT)
    if problem := base_mismatch(ledger, root):
        message = f"the adapter in the root of '{folder}' is not accepted: {problem}"
        raise UnusableAdapterError(message, task=_ROOT, file=CONFIG_NAME, name="base_model_name_or_path")
    if untargeted := [path for path in root.pairs if not check_target_module_exists(root.config, path)]:
        message = f"{CONFIG_NAME}: its target_modules do not match {untargeted[0]!r}, which has weights"
        raise UnusableAdapterError(message, task=_ROOT, file=CONFIG_NAME, name="target_modules")
    return root


@torch.no_grad()
def _compare(root: TaskAdapter, adapters: Sequence[TaskAdapter], report: VerifyReport) -> None:
    """Compares the adapter in the root with the sum of the tasks, module by module."""
    report.root_checked = True
    for path in sorted({*root.pairs, *(path for adapter in adapters for path in adapter.pairs)}):
        expected = summed_pair(adapters, path)
        found = summed_pair([root], path)
        if expected is None or found is None:
            error = 0.0 if expected is found else 1.0
        elif _is_same(found, expected, root.pairs[path][1].dtype):
            error = 0.0
        else:
            error = relative_difference(found, expected)
        report.relative_error = max(report.relative_error, error)
        if error <= TOLERANCE:
            continue
        if expected and found and len(found[0]) < len(expected[0]) and error <= _best_error(expected, len(found[0])):
            report.recompressed.append(path)
            continue
        report.problems.append(
            f"{SAFETENSORS_WEIGHTS_NAME}: on {path!r} the adapter in the root is not the sum of the tasks (relative "
            f"error {error:.1e}). Publish the run again."
        )


def _is_same(found: Pair, expected: Pair, dtype: torch.dtype) -> bool:
    """Returns whether the root has the same matrices, rounded to the type that it stores."""
    return torch.equal(found[0], expected[0]) and torch.equal(found[1].to(dtype), expected[1].to(dtype))


def _best_error(pair: Pair, rank: int) -> float:
    return recompressed_pair(pair, rank)[1] * 1.001 + TOLERANCE
