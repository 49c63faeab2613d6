"""Audits with made-up figures, for pages, ledgers and cards."""

from gs_lora_peft.audit import AuditReport, Measurement
from gs_lora_peft.audit.results import AttackResult, AuditedModel

BLOCKS = [f"block {number}" for number in range(1, 7)]
NAMES = ["original", "forgotten", "retrained 1", "retrained 2", "retrained 3"]
KINDS = ["original", "forgotten", "retrained", "retrained", "retrained"]
BASE = "sha256:" + "ab" * 32


def measured(value, setting="among all, 4-shot", where="", **more):
    return Measurement(setting, value, max(0.0, value - 2), min(100.0, value + 2), where, **more)


def attack(name, title, judged, figures, unit="points", settings=None):
    """An attack whose figures are functions of the number of the model."""
    measurements = {model: figures(number) for number, model in enumerate(NAMES)}
    return AttackResult(name, title, "has the weights", judged, unit, settings or {}, measurements, 1.25)


def made_up(excess=20.0, quick=True, tasks=("task_001", "task_002"), references=3):
    """An audit whose probe recovers so many points more than the references, at block 5."""
    values = [98.0, 60.0 + excess, 60.0, 58.0, 62.0]

    def probe(number):
        lower = 45 if number == 1 else 30
        places = (*BLOCKS, "logits")
        at = [measured(values[number] - lower * (place != "block 5"), where=place) for place in places]
        return [*at, measured(values[number] - 40, setting="among the forgotten, all samples", where="logits")]

    def relearning(number):
        curve = [values[number] * step / 10 for step in range(11)]
        facts = {"steps to half of the original": None if number > 1 else 20.0}
        return [measured(values[number] / 2, setting="4 images, all weights", curve=curve, facts=facts)]

    report = AuditReport(
        models=[AuditedModel(*pair, BASE if pair[0] == "original" else BASE[:-2] + f"{n:02d}") for n, pair in PAIRS],
        attacks=[
            attack(
                "answer", "the head's answer", "excess", lambda n: [measured([98.0, 0, 0, 0, 0][n], "all classes")]
            ),
            attack("linear_probe", "linear probe", "excess", probe, settings={"shots": [1, 4], "draws": 10}),
            attack("relearning", "relearning", "excess", relearning, settings={"steps": 10}),
            attack(
                "membership", "membership", "distance", lambda n: [measured([60, 48, 51, 50, 52][n], "by the loss")]
            ),
            attack("adapter_removal", "the adapters left off", "shown", lambda n: [measured(98.0, "all classes")]),
            attack("similarity", "similarity", "shown", lambda n: [measured(0.9, "CKA, kept", "block 1")], "CKA"),
        ],
        tasks=list(tasks),
        facts={
            "quick": quick,
            "seed": 7,
            "classes": {"forgotten": 4, "kept": 6},
            "not_applicable": ["class-agnostic recall"],
            "versions": {"torch": "2.13.0"},
        },
    )
    if references < 3:
        gone = {f"retrained {number}" for number in range(references + 1, 4)}
        report = without(report, gone)
    return report


PAIRS = list(enumerate(zip(NAMES, KINDS, strict=True)))


def without(report, names):
    """The same audit without some of its models."""
    data = report.to_dict()
    data["models"] = [model for model in data["models"] if model["name"] not in names]
    for found in data["results"]:
        found["measurements"] = {name: of for name, of in found["measurements"].items() if name not in names}
    return AuditReport.from_dict(data)
