"""What an attack is, what it measures, and what it gets to work with."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ..roles import ClassRoles
from .samples import Samples
from .statistics import interval_of_hits, interval_of_values
from .subjects import Subject

Judged = Literal["excess", "distance", "shown"]


@dataclass(frozen=True)
class Measurement:
    """One figure that an attack gives for one model.

    Args:
        setting (`str`):
            What was done, the same for all models, e.g. `"among the forgotten, 4 images"`. Names no class.
        value (`float`):
            The figure, in the unit of the attack: in points, from 0 to 100, for everything that is recovered.
        low (`float`):
            Lower end of its 95 % interval.
        high (`float`):
            Upper end of its 95 % interval.
        where (`str`, *optional*, defaults to `""`):
            The block that was attacked, or `"logits"`; empty for the whole model.
        curve (`list[float]`, *optional*):
            The figure over the steps of the attack.
        facts (`dict[str, float]`, *optional*):
            Further figures, which are shown and not judged, such as the number of steps.
    """

    setting: str
    value: float
    low: float
    high: float
    where: str = ""
    curve: list[float] | None = None
    facts: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def of_hits(cls, setting: str, hits: np.ndarray, **others: Any) -> Measurement:
        """Makes a figure in points of what was recovered from each sample, with a bootstrap interval.

        Args:
            setting (`str`):
                As in [`Measurement`].
            hits (`np.ndarray`):
                Shape `(draws, samples)`, from 0 (not recovered) to 1, the same samples in every draw.
            others (*optional*):
                Other fields of [`Measurement`].
        """
        low, high = interval_of_hits(hits)
        return cls(setting, 100 * float(hits.mean()), 100 * low, 100 * high, **others)

    @classmethod
    def of_values(cls, setting: str, values: Sequence[float], **others: Any) -> Measurement:
        """Makes a figure of the values of several draws, with a bootstrap interval over the draws.

        Args:
            setting (`str`):
                As in [`Measurement`].
            values (`Sequence[float]`):
                One for each draw, in the unit of the attack.
            others (*optional*):
                Other fields of [`Measurement`].
        """
        low, high = interval_of_values(np.asarray(values, dtype=float))
        return cls(setting, float(np.mean(values)), low, high, **others)

    @property
    def key(self) -> str:
        """`setting` and `where`, which identify the figure within an attack."""
        return f"{self.setting} @ {self.where}" if self.where else self.setting

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Rebuilds a figure from [`~Measurement.to_dict`]."""
        return cls(**data)


@dataclass(frozen=True)
class AuditContext:
    """What all attacks of one audit share.

    Args:
        roles ([`ClassRoles`]):
            `forget` are all classes that the run forgot, `retain` those that it kept.
        attacker ([`Samples`]):
            What the attacker has: samples of all classes, which no figure is measured on. (An attack that chooses
            between learning rates does so by its figure, for every model.)
        judge ([`Samples`]):
            What figures are measured on: other samples of the same classes.
        original ([`Subject`]):
            The model before anything was forgotten.
        references (`Sequence[Subject]`):
            The models that the forgotten one is compared with.
        seed (`int`, *optional*, defaults to 0):
            Seed of all draws. Every model gets the same draws.
        has_members (`bool`, *optional*, defaults to `True`):
            Whether the attacker's samples are training data and the judge's are not, so that membership can be asked.
    """

    roles: ClassRoles
    attacker: Samples
    judge: Samples
    original: Subject
    references: Sequence[Subject]
    seed: int = 0
    has_members: bool = True

    def rng(self, *names: str | int) -> np.random.Generator:
        """Returns the random generator of one draw, the same for every model."""
        return self.generator(self.seed, *names)

    @staticmethod
    def generator(seed: int, *names: str | int) -> np.random.Generator:
        """Returns [`~AuditContext.rng`] for a seed."""
        words = [name if isinstance(name, int) else zlib.crc32(name.encode()) for name in names]
        return np.random.default_rng(np.random.SeedSequence([seed, *words]))

    def torch_rng(self, *names: str | int) -> torch.Generator:
        """Returns [`~AuditContext.rng`] as a generator of torch, on the CPU."""
        return torch.Generator().manual_seed(int(self.rng(*names).integers(2**62)))

    def draw(self, count: int, classes: Sequence[int], *names: str | int) -> np.ndarray:
        """Draws samples of the attacker: `count` of each class, or all where there are fewer.

        Args:
            count (`int`):
                Samples of each class.
            classes (`Sequence[int]`):
                Class ids.
            names (`str` or `int`):
                What the draw is for, as in [`~AuditContext.rng`].

        Returns:
            `np.ndarray`: Row numbers, int64, sorted by class.
        """
        rng = self.rng(*names)
        chosen = []
        for class_id in sorted(classes):
            rows = np.flatnonzero(self.attacker.labels == class_id)
            chosen.append(rng.permutation(rows)[:count])
        return np.concatenate(chosen) if chosen else np.array([], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A way to get back what a model was made to forget.

    An attack is a frozen dataclass: its fields are its budget. The same attack, with the same draws, runs on the
    original, on the forgotten model and on models that never learned the classes. Its docstring gives its source, its
    definition, what the attacker knows and has, and its cost. A line in `ATTACKS` adds it to every audit.

    Attributes:
        name (`str`):
            Its name in `ATTACKS` and in reports.
        title (`str`):
            What a reader sees.
        knowledge (`str`):
            What the attacker needs: one short sentence.
        judged (`"excess"`, `"distance"` or `"shown"`):
            How a figure enters the recovery gap: by how far it lies above the reference; by how far it lies from the
            reference on either side; or not at all.
        unit (`str`):
            Unit of its figures: `"points"` wherever the attack is judged.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    knowledge: ClassVar[str]
    judged: ClassVar[Judged] = "excess"
    unit: ClassVar[str] = "points"

    @classmethod
    def quick(cls) -> Attack:
        """Returns the attack with a smaller budget, for `--quick`; by default the same one."""
        return cls()

    def fits(self, context: AuditContext) -> bool:
        """Whether the attack can be tried on this kind of model and data; by default on every classifier."""
        return not context.original.is_detector

    @abstractmethod
    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        """Attacks one model.

        Args:
            subject ([`Subject`]):
                The model. It must not change: train a [`~Subject.fresh`] copy.
            context ([`AuditContext`]):
                Data, classes and draws.

        Returns:
            `list[Measurement]`: The figures, with the same keys for every model.
        """

    def settings(self) -> dict[str, Any]:
        """Returns the budget as JSON types."""
        return asdict(self)
