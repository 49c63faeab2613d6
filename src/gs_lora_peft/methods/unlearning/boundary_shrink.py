"""Boundary shrink: each sample to forget becomes one of the nearest other class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...checking import Number, check_fields
from ...compat import unwrapped
from ...errors import InvalidInputError
from ...objectives import ObjectiveOutput, logits_of
from ...training import Method, half_of


@dataclass(kw_only=True)
class BoundaryShrink(Method):
    r"""Trains the samples to forget towards the class across their nearest decision boundary.

    Minimises CE(D_f, ŷ). ŷ is the most probable class other than the true one that the model before the task sees in
    x + ε·sign(∂CE(x, y)/∂x), one step of FGSM (Boundary Unlearning, CVPR 2023, https://arxiv.org/abs/2303.11570). The
    region of the class shrinks to that of its neighbours, and D_r is not needed. Of several classes to forget, the
    nearest one may be another of them, as there. Costs two forwards and a backward over the half to forget more; the
    half to keep has no effect.

    The units of ε are those of the inputs that the model gets. The 0.1 of the source belongs to pixels in [0, 1]: for
    inputs that are normalised by a standard deviation s, take 0.1/s (0.2 if s = 0.5, about 0.4 for ImageNet's).

    Args:
        epsilon (`float`, *optional*, defaults to 0.1):
            ε, above 0.
        official_compat (`bool`, *optional*, defaults to `False`):
            As in the public code: the moved input is clamped to [0, 1] and rounded to 1/255, which destroys inputs
            that were normalised, and a sample whose class FGSM does not change is trained towards its own class.

    Raises:
        InvalidInputError: If `epsilon` is out of range; at the first step, if the model is not a classifier of images
            or of other real numbers.
    """

    name = "boundary_shrink"
    title = "Boundary shrink, https://arxiv.org/abs/2303.11570"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-5,
        "num_train_epochs": 10,
        "weight_decay": 0.0,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "lr_scheduler_type": "constant",
    }
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"epsilon": (0.03, 0.1, 0.3)}

    epsilon: Annotated[Number, Field(gt=0, description="a finite number above 0")] = 0.1
    official_compat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        logits, _ = self.forget_half(inputs, output)
        return F.cross_entropy(logits, self.nearest(model, half_of(inputs, "forget")))

    def nearest(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Returns the nearest other class of each sample in the eyes of the model before the task.

        Args:
            model (`torch.nn.Module`):
                The model as the trainer calls it.
            inputs (`dict`):
                A batch of B samples with their `labels`.

        Returns:
            `torch.Tensor`: int64, shape `(B,)`.
        """
        own, labels, name = unwrapped(model), inputs["labels"], _continuous(inputs)
        with self.trainer.trained.before():
            with torch.enable_grad():
                x = inputs[name].detach().clone().requires_grad_()
                # The sum: a mean would make gradients smaller, and those in half precision zero.
                loss = F.cross_entropy(logits_of(own, {**inputs, name: x}).float(), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
            moved = inputs[name] + self.epsilon * gradient.sign()
            if self.official_compat:
                moved = (moved.clamp(0, 1) * 255).round() / 255
            logits = logits_of(own, {**inputs, name: moved}).float()
        return (logits if self.official_compat else logits.scatter(1, labels[:, None], -math.inf)).argmax(1)


def _continuous(inputs: dict[str, Any]) -> str:
    """The name of the input that can move by ε: images, or the only real numbers in the batch."""
    names = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()]
    if "pixel_values" in names:
        return "pixel_values"
    if len(names) != 1:
        raise InvalidInputError(
            "the inputs of the model",
            sorted(inputs),
            "'pixel_values', or one other tensor of real numbers: FGSM moves the input by a gradient",
            "Use another method, such as 'delete'.",
        )
    return names[0]
