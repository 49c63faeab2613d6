"""Detectors whose heads are tied to each other, which PEFT takes for tied word embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def head_tying_hidden(model: nn.Module) -> Iterator[None]:
    """
    Lets stock PEFT wrap a detector with tied heads, on which it raises `NotImplementedError` otherwise.

    Deformable DETR, DAB-DETR, RT-DETRv2 and D-FINE set `tie_word_embeddings` for their heads. PEFT asks such a model
    for the input embeddings they would be tied to, and there are none. For the time of the block the configuration
    says that nothing is tied; the heads stay as they are. Models with input embeddings are left alone.

    Args:
        model (`torch.nn.Module`): the bare model.

    Example:

        ```py
        >>> with head_tying_hidden(detector):
        ...     model = PeftModel.from_pretrained(detector, "org/detector-forgotten")
        ```
    """
    if not has_tied_heads(model):
        yield
        return
    config: Any = model.config
    config.tie_word_embeddings = False
    try:
        yield
    finally:
        config.tie_word_embeddings = True


def has_tied_heads(model: nn.Module) -> bool:
    """Whether a bare model ties its heads to each other, so that stock PEFT has to be kept from asking for embeddings.

    See [`head_tying_hidden`].
    """
    config: Any = getattr(model, "config", None)
    return bool(getattr(config, "tie_word_embeddings", False)) and not _has_input_embeddings(model)


def _has_input_embeddings(model: Any) -> bool:
    try:
        return model.get_input_embeddings() is not None
    except (AttributeError, NotImplementedError):
        return False
