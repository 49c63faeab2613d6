"""The adapter in the root of a repository: the sum of all tasks in effect."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import save
from torch import Tensor

from ..adapters import TaskAdapter, read_adapters, verified_change
from ..checking import Count, checked
from ..io import StrPath, as_path, write_bytes_atomic
from ..ledger import ForgettingLedger, InvalidLedgerError

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CompositeReport:
    """Rank and error of a root adapter.

    Attributes:
        rank (`int`):
            The largest rank of a module in it.
        recompressed (`list[str]`):
            Paths of the modules in which the sum of the tasks' ranks exceeded the limit.
        relative_error (`float`):
            The largest ‖ΔW − ΣΔW_task‖ / ‖ΣΔW_task‖ (Frobenius) of these modules; 0.0 without any.
    """

    rank: int
    recompressed: list[str]
    relative_error: float


@torch.no_grad()
def write_composite(
    ledger: ForgettingLedger,
    out: StrPath,
    *,
    tasks: int | Sequence[str] | None = None,
    max_rank: int | None = None,
) -> CompositeReport:
    """Writes the sum of tasks as one plain LoRA adapter, which stock PEFT and transformers load.

    A single task is copied byte for byte. For several tasks, the matrices of each module are concatenated with their
    scalings folded in, which is exact; the rank of a module is the sum of its tasks' ranks. If that exceeds the
    module's smaller dimension, or `max_rank`, a singular value decomposition in float64 reduces the sum to that rank.
    If no task changes anything, or there are no tasks, the adapter has no weights.

    The same tasks give the same bytes; recompressed modules do so on the same kind of machine.

    Args:
        ledger ([`ForgettingLedger`]):
            The run. Files are read from its folder and checked.
        out (`str` or `os.PathLike`):
            Folder for `adapter_config.json` and `adapter_model.safetensors`; made if missing.
        tasks (`int` or list of `str`, *optional*):
            As in [`ForgettingLedger.select`]; by default all in effect.
        max_rank (`int`, *optional*):
            The largest rank of a module. A limit below the sum of the tasks' ranks makes the adapter smaller and
            inexact. By default the module's smaller dimension.

    Returns:
        [`CompositeReport`]: The rank of the adapter, and the error of the recompression.

    Raises:
        LedgerError: If a file is missing, differs from its recorded hash or is not plain LoRA; or if there is no task,
            not even a revoked one, with the configuration that an adapter needs. Nothing is written then.
        InvalidInputError: If `max_rank` is neither a whole number from 1 up nor `None`, or a task left weights instead
            of an adapter.
        OSError: If a file cannot be written.
    """
    check_max_rank(max_rank)
    entries = ledger.select(tasks)
    adapters = read_adapters(ledger, [entry.name for entry in entries])
    rank = max((len(factor_a) for adapter in adapters for factor_a, _ in adapter.pairs.values()), default=0)
    if len(adapters) == 1 and rank <= (max_rank or rank):
        _, contents = verified_change(ledger, entries[0])
        config, weights = contents[CONFIG_NAME], contents[SAFETENSORS_WEIGHTS_NAME]
        report = CompositeReport(rank, [], 0.0)
    else:
        named = adapters or [_any_adapter(ledger)]
        with _one_thread():
            pairs, report = _sum(adapters, max_rank)
        config, weights = _config_bytes(named, pairs), _weights_bytes(pairs)
    out = as_path(out, "out")
    out.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(out / SAFETENSORS_WEIGHTS_NAME, weights)
    write_bytes_atomic(out / CONFIG_NAME, config)
    return report


def has_composite(ledger: ForgettingLedger) -> bool:
    """Returns whether the tasks in effect are the sum of adapters, so that a root adapter can hold all of them."""
    entries = ledger.active_tasks or ledger.tasks
    return not any(entry.leaves_weights for entry in entries)


def check_max_rank(max_rank: int | None) -> None:
    """Raises InvalidInputError if `max_rank` is neither a whole number from 1 up nor `None`."""
    checked("max_rank", max_rank, Count | None, fix="Omit it for no limit.")


def summed_pair(adapters: Sequence[TaskAdapter], path: str) -> Pair | None:
    """Returns the summed update of tasks to a module.

    Args:
        adapters (`Sequence[TaskAdapter]`):
            The tasks.
        path (`str`):
            Path of the module.

    Returns:
        `tuple[Tensor, Tensor]`: A (rank × inputs) and B (outputs × rank) in float64, with a scaling of 1; `None` if
        no task changes the module.
    """
    parts = [(*adapter.pairs[path], adapter.scaling(path)) for adapter in adapters if path in adapter.pairs]
    parts = [part for part in parts if part[0].any() and part[1].any()]
    if not parts:
        return None
    factors_a = [factor_a.double() for factor_a, _, _ in parts]
    factors_b = [factor_b.double() * scaling for _, factor_b, scaling in parts]
    return torch.cat(factors_a), torch.cat(factors_b, dim=1)


def recompressed_pair(pair: Pair, rank: int) -> tuple[Pair, float]:
    """Returns the best approximation of a pair at a smaller rank, and its relative error (Frobenius).

    The dense product, which can be much larger than the factors, is never formed.
    """
    q_b, r_b = torch.linalg.qr(pair[1])
    q_a, r_a = torch.linalg.qr(pair[0].T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = values[:rank].sqrt()
    best = (root[:, None] * right[:rank]) @ q_a.T, (q_b @ left[:, :rank]) * root
    total = float(values.norm())
    return best, float(values[rank:].norm()) / total if total else 0.0


def relative_difference(pair: Pair, expected: Pair) -> float:
    """Returns ‖BA − B'A'‖ / ‖B'A'‖ (Frobenius) for two pairs of any rank; 0.0 within the rounding of float64."""
    (found_a, found_b), (factor_a, factor_b) = ((a.double(), b.double()) for a, b in (pair, expected))
    difference = _product_norm(torch.cat([found_a, factor_a]), torch.cat([found_b, -factor_b], dim=1))
    if difference <= torch.finfo(torch.float64).eps * float(factor_a.norm() * factor_b.norm()):
        return 0.0
    total = _product_norm(factor_a, factor_b)
    return difference / total if total else float("inf")


def _product_norm(factor_a: Tensor, factor_b: Tensor) -> float:
    if len(factor_a) >= min(factor_a.shape[1], len(factor_b)):
        return float(torch.linalg.matrix_norm(factor_b @ factor_a))
    # ‖BA‖ = ‖R_B R_Aᵀ‖, which is cheaper if the rank is smaller than the product.
    r_a, r_b = (torch.linalg.qr(factor, mode="r").R for factor in (factor_a.T, factor_b))
    return float(torch.linalg.matrix_norm(r_b @ r_a.T))


def _sum(adapters: Sequence[TaskAdapter], max_rank: int | None) -> tuple[dict[str, Pair], CompositeReport]:
    """Returns the summed pairs of all modules that change, with a scaling of 1, and the report."""
    pairs: dict[str, Pair] = {}
    errors: dict[str, float] = {}
    for path in sorted({path for adapter in adapters for path in adapter.pairs}):
        exact = summed_pair(adapters, path)
        if exact is None:
            continue
        dtype = max((f.dtype for a in adapters for f in a.pairs.get(path, ())), key=lambda dtype: dtype.itemsize)
        limit = min(exact[0].shape[1], exact[1].shape[0], max_rank or exact[0].shape[1])
        pair = exact if len(exact[0]) <= limit else recompressed_pair(exact, limit)[0]
        pairs[path] = (pair[0].to(dtype).contiguous(), pair[1].to(dtype).contiguous())
        if pair is not exact:
            errors[path] = relative_difference(pairs[path], exact)
    rank = max((len(factor_a) for factor_a, _ in pairs.values()), default=0)
    return pairs, CompositeReport(rank, list(errors), max(errors.values(), default=0.0))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs the block on one thread: with other numbers of threads, decompositions differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _any_adapter(ledger: ForgettingLedger) -> TaskAdapter:
    """Returns the adapter of any revoked task whose files still exist, for its configuration."""
    for entry in ledger.tasks:
        try:
            change = verified_change(ledger, entry)[0]
        except (OSError, ValueError):
            continue
        if isinstance(change, TaskAdapter):
            return change
    expected = "at least one task, in effect or revoked, whose files exist"
    fix = "The adapter needs the configuration in them: carry out a request first."
    raise InvalidLedgerError(f"tasks of the ledger in '{ledger.folder}'", "no files", expected, fix)


def _weights_bytes(pairs: dict[str, Pair]) -> bytes:
    tensors = {
        f"base_model.model.{path}.{name}.weight": factor
        for path, pair in pairs.items()
        for name, factor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    return save(tensors, metadata={"format": "pt"})


def _config_bytes(adapters: Sequence[TaskAdapter], pairs: dict[str, Pair]) -> bytes:
    """Returns a configuration with the fields that affect the outputs; all others have PEFT's defaults."""
    first, paths = adapters[0].config, sorted(pairs)
    ranks = {path: len(pairs[path][0]) for path in paths}
    usual = max(Counter(ranks.values()).items(), key=lambda item: (item[1], item[0]), default=(1, 0))[0]
    # PEFT takes the first key that matches the end of a module's name. A key that is anchored at both ends cannot
    # match another module.
    pattern = {
        f"^(?:{'|'.join(re.escape(path) for path in paths if ranks[path] == rank)})": rank
        for rank in sorted(set(ranks.values()) - {usual})
    }
    targets: str | list[str] = paths or DUMMY_TARGET_MODULES
    # A task has a regular expression if the name of an adapted module is the end of another module's name.
    if paths and any(isinstance(adapter.config.target_modules, str) for adapter in adapters if adapter.pairs):
        targets = "|".join(map(re.escape, paths))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": first.base_model_name_or_path,
        "revision": first.revision,
        "task_type": first.task_type,
        "auto_mapping": first.auto_mapping,
        "r": usual,
        "lora_alpha": usual,  # a scaling of 1
        "target_modules": targets,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
    }
    if any(adapter.config.fan_in_fan_out for adapter in adapters):
        config["fan_in_fan_out"] = True
    if pattern:
        config |= {"rank_pattern": pattern, "alpha_pattern": pattern}
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
