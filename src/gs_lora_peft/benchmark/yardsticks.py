"""What every model is measured against: attacks, and models that were trained again without the forgotten classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax
from torch import nn
from transformers import PreTrainedModel

from ..audit import LOGITS, AuditContext, Auditor, AuditReport, Samples, Subject, audit_models, retrained_models
from ..errors import InvalidInputError
from ..roles import ClassRoles
from ..runs import predict
from ..training import GSLoraTrainingArguments
from .plan import Bench, Scenario

AUDIT_FOLDER = "audit"


class Yardsticks:
    """Retrained models and their answers, for one setting; computed when they are asked for.

    Args:
        bench ([`Bench`]):
            The benchmark, with an audit.
        scenario ([`Scenario`]):
            The setting.
    """

    def __init__(self, bench: Bench, scenario: Scenario):
        assert bench.config.audit is not None
        self.bench, self.scenario, self.settings = bench, scenario, bench.config.audit
        self._references: list[PreTrainedModel] | None = None
        self._auditor: Auditor | None = None

    @property
    def references(self) -> list[PreTrainedModel]:
        """The retrained models."""
        if self._references is None:
            given = (self.settings.given or {}).get(self.scenario.name)
            if given is not None:
                self._references = [_read(self.bench, folder) for folder in given]
            else:
                count = range(self.settings.references)
                self._references = [retrained(self.bench, self.scenario, number) for number in count]
        return self._references

    @property
    def auditor(self) -> Auditor:
        """What attacks every model. Whatever concerns the original and the references is computed once."""
        if self._auditor is None:
            bench = self.bench
            self._auditor = Auditor(
                bench.model,
                dict(bench.dataset),
                self.scenario.forgotten,
                reference=self.references,
                attacks=self.settings.chosen(),
                max_samples=self.settings.max_samples,
                seed=self.settings.seed,
                folder=bench.output / AUDIT_FOLDER,
                disable_tqdm=True,
                **bench.loading,
            )
        return self._auditor

    def audit(self, model: nn.Module) -> tuple[dict[str, Any], AuditReport]:
        """Attacks a model; returns the figures of a row, and everything that the attacks found.

        The figures are the recovery gap, the worst excess of each attack, membership, ToW and KL.
        """
        subject = Subject("forgotten", "forgotten", model)
        report = self.auditor.audit(subject)
        gap = report.gap
        worst: dict[str, float] = {}
        for found in report.comparisons():
            if found.attack.judged != "shown":
                worst[found.attack.name] = max(found.excess, worst.get(found.attack.name, -math.inf))
        figures = {
            "recovery_gap": None if gap is None else gap.points,
            "gap_margin": None if gap is None else gap.margin,
            "gap_attack": None if gap is None else gap.attack,
            "gap_setting": None if gap is None else gap.setting,
            "gap_where": None if gap is None else gap.where,
            "reference_gap": report.noise,
            "membership_distance": worst.get("membership"),
            **{f"excess_{name}": value for name, value in worst.items()},
        }
        return figures | ({} if subject.is_detector else self._closeness(subject)), report

    def _closeness(self, model: Subject) -> dict[str, float]:
        """Returns ToW and KL, each the mean over the references."""
        samples = self.auditor.context.attacker, self.auditor.context.judge
        labels = [part.labels for part in samples]
        own, *references = (
            [subject.states(part)[LOGITS] for part in samples] for subject in (model, *self.auditor.context.references)
        )
        each = [closeness(own, reference, labels, self.scenario.forgotten) for reference in references]
        return {name: float(np.mean([found[name] for found in each])) for name in each[0]}


def closeness(
    own: Sequence[np.ndarray], reference: Sequence[np.ndarray], labels: Sequence[np.ndarray], forgotten: Sequence[int]
) -> dict[str, float]:
    """Returns how close the answers of a model are to those of a retrained one.

    D_f and D_r are the training samples of the forgotten and of the kept classes, T all test samples.

    - `tow`: Π over D_f, D_r and T of (1 − |accuracy − accuracy of the reference|), the tug-of-war of
      https://arxiv.org/abs/2406.01257; 1 is like retrained.
    - `kl_forget`, `kl_retain`, `kl_test`: mean of KL(p_reference ‖ p) in nats; 0 is like retrained.

    Args:
        own (`Sequence[np.ndarray]`):
            Logits of the model on training and test samples, each of shape `(n, C)`.
        reference (`Sequence[np.ndarray]`):
            The same of the retrained model.
        labels (`Sequence[np.ndarray]`):
            Class ids of the samples, each of shape `(n,)`.
        forgotten (`Sequence[int]`):
            The forgotten classes.
    """
    gone = np.isin(labels[0], list(forgotten))
    parts = {"forget": (0, gone), "retain": (0, ~gone), "test": (1, np.ones(len(labels[1]), dtype=bool))}
    tow, found = 1.0, {}
    for name, (place, chosen) in parts.items():
        right = [np.mean(logits[place][chosen].argmax(1) == labels[place][chosen]) for logits in (own, reference)]
        tow *= 1 - abs(right[0] - right[1])
        log_p, log_of_reference = (
            log_softmax(logits[place][chosen].astype(np.float64), axis=1) for logits in (own, reference)
        )
        p = np.exp(log_of_reference)
        found[f"kl_{name}"] = float((p * (log_of_reference - log_p)).sum(1).mean())
    return {"tow": float(tow), **found}


def retrained(bench: Bench, scenario: Scenario, number: int) -> PreTrainedModel:
    """Trains a model without the forgotten classes, or reads it from the cache. The first ones are the references."""
    settings = bench.config.audit
    assert settings is not None
    (model,) = retrained_models(
        bench.model,
        bench.dataset["train"],
        scenario.forgotten,
        1,
        recipe=settings.recipe,
        seed=settings.seed + 1 + number,
        cache=settings.cache,
        disable_tqdm=True,
        **bench.loading,
    )
    return model


def _read(bench: Bench, folder: str) -> PreTrainedModel:
    """Reads a retrained model that the benchmark was given; it answers as the original is configured to."""
    model: Any = type(bench.model).from_pretrained(folder, config=copy.deepcopy(bench.model.config))
    return model.to(bench.model.device).eval()


def check_audit(bench: Bench, scenario: Scenario) -> None:
    """Refuses an audit that cannot work, before anything is trained.

    The original stands in for the retrained models, and two samples of each class for all.

    Args:
        bench ([`Bench`]):
            The benchmark, with an audit.
        scenario ([`Scenario`]):
            The setting.

    Raises:
        InvalidInputError: If the data lack samples of a class, or no attack fits.
    """
    settings, data = bench.config.audit, dict(bench.dataset)
    assert settings is not None
    options: dict[str, Any] = {"attacks": [], "max_samples": 1, "disable_tqdm": True, **bench.loading}
    audit_models(bench.model, bench.model, data, scenario.forgotten, **options)
    few = [
        Samples(part, options["data_collator"], bench.label_column).limited(
            2 * len(scenario.present), AuditContext.generator(0, "samples")
        )
        for part in data.values()
    ]
    roles = ClassRoles(forget=scenario.forgotten, retain=set(scenario.present) - set(scenario.forgotten))
    original = Subject("original", "original", bench.model)
    count = settings.references if settings.given is None else len(settings.given[scenario.name])
    references = [Subject("retrained", "retrained", bench.model)] * count
    for folder in (settings.given or {}).get(scenario.name, ()):
        if not (Path(folder) / "model.safetensors").is_file():
            expected = "the folder of a model with model.safetensors"
            raise InvalidInputError(
                f"audit.given[{scenario.name!r}]", folder, expected, "Retrain it, or leave it out."
            )
    context = AuditContext(roles, few[0], few[1], original, references)
    if not any(attack.judged != "shown" and attack.fits(context) for attack in settings.chosen()):
        names = [attack.name for attack in settings.chosen()]
        raise InvalidInputError("audit.attacks", names, "one that fits this model and data, and is judged")


def scores_at_end(bench: Bench, scenario: Scenario, model: nn.Module, before: float | None) -> dict[str, Any]:
    """Scores a model on the test data by the roles of the last request.

    Args:
        bench ([`Bench`]):
            The benchmark.
        scenario ([`Scenario`]):
            The setting.
        model (`torch.nn.Module`):
            The model.
        before (`float`, *optional*):
            Score on the classes of the last request before it, for H.
    """
    args = GSLoraTrainingArguments(str(bench.output), disable_tqdm=True, report_to="none", dataloader_pin_memory=False)
    assert bench.data_collator is not None
    found = predict(model, bench.dataset["test"], args, bench.data_collator, bench.label_column)
    return found.by_role(scenario.roles, before)
