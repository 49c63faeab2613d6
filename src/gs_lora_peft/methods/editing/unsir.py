"""UNSIR: noise that the model gets most wrong impairs it, and the samples to keep repair it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import Count, NotNegative, Number, Share, check_fields
from ...compat import unwrapped
from ...errors import InvalidInputError
from ...objectives import ObjectiveOutput, logits_of
from ...training import Method, own_batches

_Positive = Annotated[Number, Field(gt=0, description="a finite number above 0")]


@dataclass(kw_only=True)
class UNSIR(Method):
    r"""Overwrites what the model knows of a class with images of noise, and repairs the rest.

    Before training, for each class c to forget, images N ~ 𝒩(0, 1) are changed by Adam to minimise −CE(N, c) + μ ‖N‖²
    (mean over images) for the model before the task: noise that looks as little like the class as it can. The training
    then impairs, by CE over the retain half and as many such images with their labels c, and in its last part repairs,
    by CE over the retain half alone. No sample to forget is learned from.

    UNSIR, https://arxiv.org/abs/2111.08947. Its notebook labels the noise of all classes with the class 0, if there
    are several. It impairs with a learning rate of 0.02 and repairs with 0.01, an epoch each; here one schedule covers
    both. `published` has the 1e-4 of later comparisons, which include ViTs. For images alone.

    Costs `noise_steps` passes over the noise of each class before training, and a forward of the noise in each step of
    the first part.

    Args:
        noise_samples (`int`, *optional*, defaults to 32):
            Images of noise for each class. The notebook has 256, later comparisons 32.
        noise_steps (`int`, *optional*, defaults to 40):
            Steps of Adam for the noise of each class.
        noise_rate (`float`, *optional*, defaults to 0.1):
            Learning rate of Adam, above 0.
        noise_penalty (`float`, *optional*, defaults to 0.1):
            μ. Not negative.
        impair_share (`float`, *optional*, defaults to 0.5):
            Share of the training's steps that impair, in (0, 1]; the others repair.

    Raises:
        InvalidInputError: If a value is out of range, or the model takes anything else than images.
    """

    name = "unsir"
    title = "UNSIR, https://arxiv.org/abs/2111.08947"
    published: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "num_train_epochs": 2, "weight_decay": 0.0}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "impair_share": (0.25, 0.5, 0.75),
        "noise_penalty": (0.0, 0.01, 0.1),
    }

    noise_samples: Count = 32
    noise_steps: Count = 40
    noise_rate: _Positive = 0.1
    noise_penalty: NotNegative = 0.1
    impair_share: Share = 0.5

    def __post_init__(self) -> None:
        check_fields(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        batch = next(iter(own_batches(trainer, [trainer.train_dataset.forget])))
        self._images = image_input(batch)
        image = batch[self._images][0]
        # The same in every process, and in a training that is resumed.
        generator = torch.Generator().manual_seed(args.seed)
        with trainer.trained.before(), torch.enable_grad():
            learned = [self._noise_of(label, image, generator) for label in trainer.roles.forget]
        self.noise = torch.cat(learned)
        self.noise_labels = torch.tensor(trainer.roles.forget, device=image.device).repeat_interleave(
            self.noise_samples
        )

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        (kept, labels), state = self.retain_half(inputs, output), self.trainer.state
        if state.global_step >= self.impair_share * state.max_steps:
            return F.cross_entropy(kept, labels)
        # On the CPU, whose generator every checkpoint holds.
        rows = torch.randint(len(self.noise), (len(labels),)).to(labels.device)
        # Without the wrapper for several processes, which expects one forward in a step.
        noisy = self._logits_of(unwrapped(model), self.noise[rows], self.noise_labels[rows])
        return F.cross_entropy(torch.cat([kept, noisy]), torch.cat([labels, self.noise_labels[rows]]))

    def _noise_of(self, label: int, image: Tensor, generator: torch.Generator) -> Tensor:
        """Learns the noise of one class: shape `(noise_samples, *image.shape)`."""
        noise = torch.randn(self.noise_samples, *image.shape, generator=generator).to(image.device).requires_grad_()
        labels = torch.full((self.noise_samples,), label, device=image.device)
        optimizer = torch.optim.Adam([noise], lr=self.noise_rate)
        for _ in range(self.noise_steps):
            logits = self._logits_of(self.trainer.model, noise.to(image.dtype), labels)
            size = noise.square().flatten(1).sum(1).mean()
            (noise.grad,) = torch.autograd.grad(self.noise_penalty * size - F.cross_entropy(logits, labels), [noise])
            optimizer.step()
        return noise.detach().to(image.dtype)

    def _logits_of(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return logits_of(model, {self._images: images, "labels": labels}).float()


def image_input(batch: Mapping[str, Any]) -> str:
    """Returns the name of the only input of a model that takes images and nothing else.

    Args:
        batch (`Mapping[str, Any]`):
            A batch with `labels`.

    Raises:
        InvalidInputError: If there are other inputs, or no images.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels" and isinstance(value, Tensor)}
    images = [name for name, value in inputs.items() if value.ndim == 4 and value.is_floating_point()]
    if len(images) != 1 or len(inputs) != 1:
        raise InvalidInputError(
            "the inputs of the model",
            sorted(inputs),
            "images alone, as one tensor of shape (B, channels, height, width): noise is learned in their place",
            "Use another method for text, sound or several inputs.",
        )
    return images[0]
