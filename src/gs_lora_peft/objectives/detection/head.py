"""What a detector's prototypes and their distances are taken from: its classification head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...errors import InvalidInputError

_HEADS = {"class_embed", "class_labels_classifier"}


class HeadRecorder:
    """
    Reads what the last Linear of a detector's classification head is given in a forward.

    Args:
        model (`torch.nn.Module`): the bare detector.

    Raises:
        InvalidInputError: if there is no classification head of a known name.
    """

    def __init__(self, model: nn.Module):
        self.linears = [
            module
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and _HEADS & set(path.split(".")) and "lora_" not in path
        ]
        if not self.linears:
            expected = f"one with a classification head called one of {sorted(_HEADS)}, whose rows are the prototypes"
            raise InvalidInputError("model", type(model).__name__, expected, "Set the prototype weights to 0.")

    @contextmanager
    def recording(self) -> Iterator[dict[str, Any]]:
        """Fills the dictionary it gives: `embeddings`, shape `(B, Q, D)`, and `weight`, the head's rows, `(C, D)`.

        A head is called once for every layer, some models have one of their own for each. The last call counts, as it
        does for the model's logits.
        """
        seen: dict[str, Any] = {}

        def record(module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
            seen.update(embeddings=inputs[0], weight=module.weight)

        handles = [linear.register_forward_pre_hook(record) for linear in self.linears]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
