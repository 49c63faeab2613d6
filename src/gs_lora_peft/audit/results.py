"""The results of an audit: every figure of every model, the recovery gap, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from ..errors import InvalidInputError
from ..ledger import TOLERANCE, audit_verdict, weak_reference
from .base import Judged, Measurement
from .subjects import Kind

SCHEMA = "gs_lora_peft.audit/1"


@dataclass(frozen=True)
class AuditedModel:
    """A model of an audit.

    Args:
        name (`str`):
            Its name in reports.
        kind (`"original"`, `"forgotten"`, `"retrained"` or `"random"`):
            What it is.
        fingerprint (`str`):
            Hash of its weights.
    """

    name: str
    kind: Kind
    fingerprint: str


@dataclass(frozen=True)
class AttackResult:
    """What one attack gave for all models.

    Args:
        name (`str`):
            Its name in `ATTACKS`, or another one.
        title (`str`):
            What a reader sees.
        knowledge (`str`):
            What the attacker needs.
        judged (`"excess"`, `"distance"` or `"shown"`):
            As in [`Attack`].
        unit (`str`):
            Unit of the figures.
        settings (`dict[str, Any]`):
            The budget.
        measurements (`dict[str, list[Measurement]]`):
            Name of a model → its figures.
        seconds (`float`):
            Time of the attack on all models.
    """

    name: str
    title: str
    knowledge: str
    judged: Judged
    unit: str
    settings: dict[str, Any]
    measurements: dict[str, list[Measurement]]
    seconds: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """A figure of the forgotten model beside the original and the references.

    Args:
        attack ([`AttackResult`]):
            The attack.
        setting (`str`):
            As in [`Measurement`].
        where (`str`):
            As in [`Measurement`].
        original ([`Measurement`]):
            Of the model before anything was forgotten.
        forgotten ([`Measurement`]):
            Of the forgotten model.
        references (`list[Measurement]`):
            One for each reference.
    """

    attack: AttackResult
    setting: str
    where: str
    original: Measurement
    forgotten: Measurement
    references: list[Measurement]

    @property
    def reference(self) -> float:
        """Mean of the references."""
        return sum(found.value for found in self.references) / len(self.references)

    @property
    def excess(self) -> float:
        """By how far the forgotten model lies above the reference; the distance, if the attack is judged by it."""
        difference = self.forgotten.value - self.reference
        return abs(difference) if self.attack.judged == "distance" else difference

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of the excess, if the errors of all models are independent."""
        others = math.hypot(*(_half(found) for found in self.references)) / len(self.references)
        return math.hypot(_half(self.forgotten), others)


def _half(measurement: Measurement) -> float:
    return (measurement.high - measurement.low) / 2


@dataclass(frozen=True)
class RecoveryGap:
    """The largest excess of a forgotten model over the reference.

    Args:
        points (`float`):
            The excess in points; below 0 if the forgotten model lies below the reference everywhere.
        margin (`float`):
            Half of its 95 % interval.
        attack (`str`):
            Name of the attack that gives it.
        title (`str`):
            Its title.
        setting (`str`):
            As in [`Measurement`].
        where (`str`):
            As in [`Measurement`].
        judged (`"excess"` or `"distance"`, *optional*, defaults to `"excess"`):
            As in [`Attack`].
    """

    points: float
    margin: float
    attack: str
    title: str
    setting: str
    where: str
    judged: Judged = "excess"


@dataclass(frozen=True)
class AuditResults:
    """All figures of an audit, without files; [`AuditReport`] writes them.

    Args:
        models (`list[AuditedModel]`):
            The original, the forgotten model, then the references.
        attacks (`list[AttackResult]`):
            The attacks, in order.
        tasks (`list[str]`):
            The tasks of the run that were in effect.
        facts (`dict[str, Any]`):
            Seed, versions, numbers of classes and samples, attacks that do not apply; and `answers`, what the original
            and the references know before any attack.
    """

    models: list[AuditedModel]
    attacks: list[AttackResult]
    tasks: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def named(self, kind: Kind) -> list[str]:
        """Returns the names of the models of a kind."""
        return [model.name for model in self.models if model.kind == kind]

    @property
    def references(self) -> list[str]:
        """Names of the models that the forgotten one is compared with."""
        return self.named("retrained") or self.named("random")

    @property
    def has_retrained(self) -> bool:
        """Whether the reference is a retrained model, and not random weights."""
        return bool(self.named("retrained"))

    def comparisons(self) -> Iterator[Comparison]:
        """Yields every figure that the original, the forgotten model and a reference have."""
        (original,), (forgotten,) = self.named("original"), self.named("forgotten")
        for attack in self.attacks:
            of = {name: {found.key: found for found in listed} for name, listed in attack.measurements.items()}
            for key, own in of.get(forgotten, {}).items():
                references = [of[name][key] for name in self.references if key in of.get(name, {})]
                before = of.get(original, {}).get(key)
                if references and before is not None:
                    yield Comparison(attack, own.setting, own.where, before, own, references)

    @property
    def judged_count(self) -> int:
        """The number of judged figures, of which the gap is the largest."""
        return sum(found.attack.judged != "shown" for found in self.comparisons())

    @property
    def gap(self) -> RecoveryGap | None:
        """The recovery gap: the largest excess of all judged figures; `None` if nothing was judged."""
        judged = [found for found in self.comparisons() if found.attack.judged != "shown"]
        if not judged:
            return None
        worst = max(judged, key=lambda found: found.excess)
        attack = worst.attack
        return RecoveryGap(
            worst.excess, worst.margin, attack.name, attack.title, worst.setting, worst.where, attack.judged
        )

    @property
    def reference_gaps(self) -> list[float]:
        """The recovery gap of each reference over the others, in points: what a model that never learned them gets.

        Empty with fewer than two references.
        """
        largest: dict[int, float] = {}
        for found in self.comparisons():
            values = [reference.value for reference in found.references]
            if found.attack.judged == "shown" or len(values) < 2 or len(values) < len(self.references):
                continue
            for number, value in enumerate(values):
                difference = value - (sum(values) - value) / (len(values) - 1)
                excess = abs(difference) if found.attack.judged == "distance" else difference
                largest[number] = max(excess, largest.get(number, excess))
        return list(largest.values())

    @property
    def noise(self) -> float | None:
        """The largest of `reference_gaps`; `None` with fewer than two references."""
        return max(self.reference_gaps, default=None)

    @property
    def reference_kind(self) -> Literal["retrained", "random"]:
        """What the forgotten model is compared with."""
        return "retrained" if self.has_retrained else "random"

    @property
    def recognised(self) -> bool | None:
        """Whether the original answers with the forgotten classes in these data, more than the references do.

        By more than 5 points and than the margin; `None` if that was not measured. Else nothing can be got back,
        whatever is forgotten: the data may be prepared in another way, or labelled by other ids.
        """
        found = self.facts.get("answers")
        if not found:
            return None
        others = [found[name] for name in self.references]
        margin = math.hypot(
            found["original"]["margin"], math.hypot(*(each["margin"] for each in others)) / len(others)
        )
        above = found["original"]["forgotten"] - sum(each["forgotten"] for each in others) / len(others)
        return above > max(TOLERANCE, margin)

    @property
    def kept(self) -> dict[str, Any] | None:
        """Per cent of the kept samples that the original and each retrained model answer right, if it was measured."""
        found = self.facts.get("answers")
        if not found or not self.has_retrained:
            return None
        return {"original": found["original"]["kept"], "references": [found[name]["kept"] for name in self.references]}

    def warnings(self) -> list[str]:
        """Returns what keeps the audit from saying much, a sentence each, with a fix."""
        found = []
        if self.recognised is False:
            found.append(
                "The original itself does not recognise the forgotten classes in these data, so the audit cannot say "
                "whether they are gone. Give data of them that are labelled by the model's ids, and the processor (or "
                "`data_collator`) of its training."
            )
        if weak := weak_reference(self.kept):
            found.append(f"{weak.capitalize()}. Raise `epochs` of its recipe (--retrain-epochs).")
        return found

    @property
    def recovered(self) -> bool | None:
        """Whether an attack recovers more than references differ by, and than 5 points; `None` if that is not known.

        The largest of many figures exceeds the reference by chance, also for a model that never learned the classes.
        It is not known beside random weights alone, if the original does not recognise the classes in these data, if
        the samples are too few for the gap, or if the attacks were chosen by hand and found nothing.
        """
        gap = self.gap
        if gap is None or not self.has_retrained or self.recognised is False:
            return None
        if gap.points <= max(TOLERANCE, self.noise or 0):
            return False if self.facts.get("every_attack", True) else None
        return True if gap.points > gap.margin else None

    @property
    def verdict(self) -> str:
        """One plain sentence, with the gap and the attack."""
        gap = None if self.gap is None else asdict(self.gap)
        return audit_verdict(
            gap, self.recovered, self.reference_kind, noise=self.noise, recognised=self.recognised, kept=self.kept
        )

    def summary(self) -> dict[str, Any]:
        """Returns what the ledger records, as JSON types."""
        gap = self.gap
        return {
            "tasks": self.tasks,
            "verdict": self.verdict,
            "recovered": self.recovered,
            "recovery_gap": None if gap is None else asdict(gap),
            "noise": self.noise,
            "recognised": self.recognised,
            "kept": self.kept,
            "reference": self.reference_kind,
            "references": len(self.references),
            "attacks": list(dict.fromkeys(f.attack.name for f in self.comparisons() if f.attack.judged != "shown")),
            "figures": self.judged_count,
            "quick": self.facts.get("quick", False),
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole audit as JSON types."""
        attacks = [
            {**asdict(attack), "measurements": {n: [m.to_dict() for m in ms] for n, ms in attack.measurements.items()}}
            for attack in self.attacks
        ]
        models = [asdict(model) for model in self.models]
        return {"schema": SCHEMA, **self.summary(), "facts": self.facts, "models": models, "results": attacks}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuilds an audit from [`~AuditReport.to_dict`].

        Raises:
            InvalidInputError: If the data are those of another schema.
        """
        if data.get("schema") != SCHEMA:
            fix = "Audit the run again with this version."
            raise InvalidInputError("schema", data.get("schema"), repr(SCHEMA), fix)
        attacks = [
            AttackResult(
                **{
                    **found,
                    "measurements": {
                        name: [Measurement.from_dict(item) for item in listed]
                        for name, listed in found["measurements"].items()
                    },
                }
            )
            for found in data["results"]
        ]
        models = [AuditedModel(**model) for model in data["models"]]
        return cls(models, attacks, list(data["tasks"]), dict(data["facts"]))
