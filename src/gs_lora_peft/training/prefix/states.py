"""States of samples, kept by what the samples hold, in bounded memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Digest = Hashable


class StateStore:
    """Keeps one tensor for each key.

    Args:
        limit (`int`):
            Most bytes to keep.

    Attributes:
        size (`int`):
            Bytes that are kept.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        self._states: dict[Hashable, Tensor] = {}

    def __len__(self) -> int:
        return len(self._states)

    def holds(self, keys: Sequence[Hashable]) -> bool:
        """Whether every key is known."""
        return all(key in self._states for key in keys)

    def get(self, keys: Sequence[Hashable]) -> Tensor:
        """The states of keys that are known, in one tensor."""
        return torch.stack([self._states[key] for key in keys])

    def add(self, keys: Sequence[Hashable], states: Tensor) -> bool:
        """Keeps the states whose keys are new; returns whether all others equal what is kept, bit for bit."""
        known = [place for place, key in enumerate(keys) if key in self._states]
        agrees = not known or torch.equal(self.get([keys[place] for place in known]), states[known])
        for key, state in zip(keys, states, strict=True):
            if key not in self._states:
                self._states[key] = state.detach().clone()
                self.size += state.numel() * state.element_size()
        return agrees

    @property
    def is_full(self) -> bool:
        """Whether more is kept than allowed."""
        return self.size > self.limit

    def clear(self) -> None:
        """Forgets everything."""
        self._states.clear()
        self.size = 0


def digests(tensors: Mapping[str, Tensor], rows: int) -> list[Digest]:
    """Tells samples apart by the content of their inputs, so that an augmented view is another sample.

    On the CPU the first 16 bytes of SHA-256. On an accelerator two sums with random factors modulo 2⁶⁴, at the price
    of one host synchronisation.

    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            The inputs of a batch by name. Those with `rows` rows belong to single samples, others to all.
        rows (`int`):
            Number of samples.

    Returns:
        `list`: One for each sample.
    """
    own = {name: tensor for name, tensor in sorted(tensors.items()) if tensor.shape[:1] == (rows,)}
    shared = {name: tensor for name, tensor in sorted(tensors.items()) if name not in own}
    about = hashlib.sha256()
    for name, tensor in (*own.items(), *shared.items()):
        about.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape[name in own :])};".encode())
    for tensor in shared.values():
        about.update(_bytes_of(tensor, 1).cpu().numpy().data)
    columns = [_bytes_of(tensor, rows) for tensor in own.values()]
    if any(column.device.type != "cpu" for column in columns):
        sums = torch.cat([word_sums(column) for column in columns], dim=1).tolist()
        return [(about.digest(), *row) for row in sums]
    found: list[Digest] = []
    for row in range(rows):
        digest = about.copy()
        for column in columns:
            digest.update(column[row].numpy().data)
        found.append(digest.digest()[:16])
    return found


def _bytes_of(tensor: Tensor, rows: int) -> Tensor:
    return tensor.detach().reshape(rows, -1).contiguous().view(torch.uint8)


def word_sums(column: Tensor) -> Tensor:
    """Two sums of the 32-bit words of each row with random odd factors: int64, shape `(rows, 2)`.

    Args:
        column (`torch.Tensor`):
            uint8, shape `(rows, bytes)`.
    """
    words = F.pad(column, (0, -column.shape[1] % 4)).view(torch.int32)
    generator = torch.Generator().manual_seed(words.shape[1])
    factors = torch.randint(-(2**63), 2**63 - 1, (2, words.shape[1]), generator=generator).bitwise_or(1)
    factors = factors.to(words.device, non_blocking=True)
    return torch.stack([torch.stack([(row.long() * one).sum() for one in factors]) for row in words])


def random_states(device: torch.device) -> tuple[Any, ...]:
    """The states of the random generators that a forward may use; equal if nothing was drawn in between."""
    numpy_state: Any = np.random.get_state()
    states = (numpy_state[1].tobytes(), numpy_state[2:], random.getstate(), torch.get_rng_state().numpy().tobytes())
    if device.type == "cpu":
        return states
    return *states, torch.get_device_module(device).get_rng_state(device).numpy().tobytes()


def kept_generators(device: torch.device) -> AbstractContextManager[None]:
    """Restores torch's global generators, of the CPU and of one device, after the block.

    `torch.random.fork_rng(devices=[])` leaves the generator of the accelerator where the block has moved it.

    Args:
        device (`torch.device`):
            Where the model is.
    """
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)
