"""Ledgers of any length, made up, for cards and pictures."""

import math

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.ledger import TaskEntry, audit_verdict

BASE = {
    "name_or_path": "org/base",
    "revision": "0123456789abcdef",
    "model_class": "ViTForImageClassification",
    "num_labels": 1000,
    "fingerprint": "sha256:" + "0123456789abcdef" * 4,
}
BLOCKS = [f"vit.layers.{i}" for i in range(12)]
LONG_BLOCKS = [
    f"model.text_backbone_with_a_long_name.encoder.stage_{stage}.residual_transformer_blocks.{block}"
    for stage in range(4)
    for block in range(9)
] + [f"model.decoder.layers.{i}" for i in range(6)]


def at(hour):
    """A moment: so many hours after midnight of the first day of the year."""
    return f"2026-01-{1 + hour // 24:02d}T{hour % 24:02d}:00:00Z"


def curves(points=15, groups=12):
    epochs = range(1, points + 1)
    return {
        "epoch": [float(e) for e in epochs],
        "retain_loss": [0.8 * math.exp(-e / 3) + 0.1 for e in epochs],
        "forget_loss": [11.5 * (1 - math.exp(-e / 2)) for e in epochs],
        "retain_accuracy": [1 - 0.3 * math.exp(-e / 2) for e in epochs],
        "forget_accuracy": [math.exp(-e) for e in epochs],
        "active_groups": [float(max(groups - e, groups // 2)) for e in epochs],
    }


def entry(number, *, blocks=BLOCKS, zero=None, **more):
    """Task `number`, which forgot the class with this number at this hour."""
    zero = blocks[number % 3 :: 3] if zero is None else zero
    active = [name for name in blocks if name not in zero]
    kept = 0.97 - 0.0005 * number
    first = number == 1
    values = {
        "name": f"task_{number:03d}",
        "request": {"classes": [number], "requested_at": at(number), "note": "because", "request_id": "case 4711"},
        "classes": [number],
        "class_names": [f"person_{number:02d}"],
        "started_at": at(number),
        "finished_at": at(number),
        "sizes": {"forget": 137, "retain": 1210, "steps": 390},
        "settings": {"config": {"r": 8}, "training": {"learning_rate": 0.01}, "data": {"shots": None}},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "groups": {
            "total": len(blocks),
            "active": active,
            "zero": list(zero),
            "zero_group_ratio": len(zero) / len(blocks),
            "norms": {name: 0.0 if name in zero else 1 + (number * place) % 7 for place, name in enumerate(blocks)},
        },
        "scores": {
            "data": "test",
            "base": {"acc_all": 0.976, "acc_retain": 0.973},
            "before": {"acc_retain": kept + 0.001, "acc_forget": 0.98, "acc_old": None if first else 0.0},
            "after": {"acc_retain": kept, "acc_forget": 0.0123, "acc_old": None if first else 0.002, "h_mean": 0.969},
        },
        "curves": curves(groups=len(blocks)),
    }
    return TaskEntry(**{**values, **more})


def run(count, *, base=BASE, changes=None, **more):
    """A ledger of so many tasks; `changes` has other fields by number of the task."""
    entries = [entry(number, **{**more, **(changes or {}).get(number, {})}) for number in range(1, count + 1)]
    return ForgettingLedger("not-used", base, None, entries)


def audited(ledger, **more):
    """The same ledger with an audit of its tasks in effect, whose report may be published."""
    gap = {
        "points": 12.34,
        "margin": 2.5,
        "attack": "knn",
        "title": "nearest neighbours",
        "setting": "all",
        "where": "",
    }
    record = {
        "tasks": [task.name for task in ledger.active_tasks],
        "verdict": audit_verdict(gap, True, "retrained"),
        "recovered": True,
        "recovery_gap": gap,
        "reference": "retrained",
        "references": 3,
        "attacks": ["answer", "knn"],
        "quick": False,
        "recorded_at": at(99),
        "files": {"audit/report.md": "ab" * 32},
        **more,
    }
    return ForgettingLedger(ledger.folder, ledger.base_model, ledger.label_names, ledger.tasks, audit=record)


def revoked(hour, **scores):
    """The fields of a task that was revoked at some hour."""
    record = {"revoked_at": at(hour), "reason": "asked back", "scores_before": None, "scores_after": None, **scores}
    return {"status": "revoked", "revocation": record}
