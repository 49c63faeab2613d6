"""A model under audit: its states and logits, computed once, and fresh copies for attacks that train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Size, nn
from transformers import PreTrainedModel, set_seed

from ..adapters import weights_fingerprint
from ..errors import InvalidInputError
from ..objectives import (
    NoEmbeddingFoundError,
    block_paths,
    captured_embeddings,
    captured_states,
    find_head,
    head_size,
    is_detector,
    logits_of,
)
from .samples import Samples

Kind = Literal["original", "forgotten", "retrained", "random"]

Models = PreTrainedModel | Sequence[PreTrainedModel] | None
Computed = TypeVar("Computed")

EMBEDDING = "embedding"
LOGITS = "logits"


@dataclass
class Subject:
    """A model under audit.

    Args:
        name (`str`):
            Its name in reports, e.g. `"retrained 2"`.
        kind (`"original"`, `"forgotten"`, `"retrained"` or `"random"`):
            What it is.
        model (`torch.nn.Module`):
            The bare model, in eval mode. Attacks do not change it.
    """

    name: str
    kind: Kind
    model: nn.Module
    _computed: dict[tuple[int, str], tuple[Samples, Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.model.eval()

    @property
    def is_detector(self) -> bool:
        return is_detector(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """Returns the hash of the weights."""
        return weights_fingerprint(self.model)

    def fresh(self) -> nn.Module:
        """Returns a copy, in eval mode, whose weights all train."""
        model = copy.deepcopy(self.model)
        model.requires_grad_(True)
        return model.eval()

    def states(self, samples: Samples) -> dict[str, np.ndarray]:
        """The states of all samples behind every block, and their logits; computed once.

        Args:
            samples ([`Samples`]):
                The samples.

        Returns:
            `dict[str, np.ndarray]`: Float32, shape `(n, width)`, by place: `"block 1"` … (the first token, which is
            the class token of most models, or with causal attention the last one), `"block 1 (mean)"` … (the mean over
            all tokens), `"embedding"` (the input of the head, where that is one vector) and `"logits"`.
        """
        return self.computed(samples, states_of)

    def computed(self, samples: Samples, compute: Callable[[nn.Module, Samples], Computed]) -> Computed:
        """What a function gives for the model and all samples; computed once.

        Args:
            samples ([`Samples`]):
                The samples.
            compute (`Callable`):
                A function of a module, of the model and the samples.
        """
        key = id(samples), f"{compute.__module__}.{compute.__qualname__}"
        if key not in self._computed:
            self._computed[key] = samples, compute(self.model, samples)
        return self._computed[key][1]


@torch.no_grad()
def states_of(model: nn.Module, samples: Samples, size: int = 128) -> dict[str, np.ndarray]:
    """Computes the states behind every block and the logits of a classifier, as in [`~Subject.states`].

    Args:
        model (`torch.nn.Module`):
            A bare classifier in eval mode.
        samples ([`Samples`]):
            The samples.
        size (`int`, *optional*, defaults to 128):
            Samples in a batch.
    """
    paths, head = block_paths(model), head_path(model)
    device = next(model.parameters()).device
    parts: dict[str, list[np.ndarray]] = {}
    for batch in samples.batches(size=size, device=device):
        embeddings = captured_embeddings(model, head) if head else nullcontext()
        with captured_states(model, paths) as captured, embeddings as inputs:
            logits = logits_of(model, batch)
        found = {LOGITS: logits.float(), **({EMBEDDING: inputs.embeddings} if inputs else {})}
        mask = batch.get("attention_mask")
        means = captured.pooled("mean", mask)
        for number, (path, token) in enumerate(captured.pooled("token", mask).items(), start=1):
            found[f"block {number}"] = token
            if captured.outputs[path].ndim > 2:
                found[f"block {number} (mean)"] = means[path]
        for place, values in found.items():
            parts.setdefault(place, []).append(values.cpu().numpy())
    return {place: np.concatenate(values) for place, values in sorted(parts.items(), key=_order)}


def _order(item: tuple[str, list[np.ndarray]]) -> tuple[bool, int, str]:
    place = item[0]
    number = 0 if place in (EMBEDDING, LOGITS) else int(place.split()[1])
    return not number, number, place


def head_path(model: nn.Module) -> str | None:
    """Returns the path of the head behind one embedding, see [`find_head`]; `None` if there is none to be found."""
    try:
        return find_head(model)
    except NoEmbeddingFoundError:
        return None


def _shapes(model: nn.Module) -> dict[str, Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def reference_subjects(original: PreTrainedModel, reference: Models, seed: int) -> list[Subject]:
    """Returns the models that a forgotten one is compared with: those that are given, or one of random weights.

    Args:
        original (`transformers.PreTrainedModel`):
            The model before anything was forgotten.
        reference (`transformers.PreTrainedModel` or a list of them, *optional*):
            Models of its architecture.
        seed (`int`):
            Seed of random weights.

    Raises:
        InvalidInputError: If one has another architecture or head, or the list is empty.
    """
    if reference is None:
        set_seed(seed)
        random: Any = type(original)(copy.deepcopy(original.config))
        return [Subject("random weights", "random", random.to(original.device))]
    models = [reference] if isinstance(reference, nn.Module) else list(reference)
    for model in models:
        if not isinstance(model, nn.Module) or _shapes(model) != _shapes(original):
            found = (
                f"{type(model).__name__} with a head of {head_size(model)}" if isinstance(model, nn.Module) else model
            )
            expected = f"the architecture of the original, with a head of {head_size(original)} classes"
            raise InvalidInputError("reference", found, expected, "Retrain it with the original's configuration.")
    if not models:
        raise InvalidInputError("reference", [], "at least one model, or None for random weights")
    names = ["retrained"] if len(models) == 1 else [f"retrained {number}" for number in range(1, len(models) + 1)]
    return [Subject(name, "retrained", model) for name, model in zip(names, models, strict=True)]
