"""Forgets the first people of the papers' protocol, and audits the model beside one that never saw them.

    python examples/benchmarks/audit_faces.py MODEL DATA REFERENCE --settings examples/benchmarks/faces/yale_deep.yaml

MODEL and REFERENCE are folders that retrain_faces.py wrote, with `--requests 0` and the same `--requests` as here: a
reference of another recipe knows or lacks other things in its blocks. DATA is a folder with `train.parquet` and
`test.parquet`, or a Hub id. Quick budgets. Repeat the command to go on with an audit that was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from protocol import prepare, read_settings, with_gs_lora
from transformers import AutoModelForImageClassification

from gs_lora_peft import ForgettingLedger, audit_models, load_forgotten
from gs_lora_peft.audit import Comparison
from gs_lora_peft.reports import Table

ATTACKS = ["answer", "knn", "enrolment", "verification", "relearning"]


def figures(one: Comparison) -> tuple[str, ...]:
    """Points recovered from the original, the forgotten and the retrained model, and the excess."""
    values = one.original.value, one.forgotten.value, one.reference
    return (*(f"{value:.1f}" for value in values), f"{one.excess:+.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the model that knows all people: a folder")
    parser.add_argument("data", help="folder with train.parquet and test.parquet, or a Hub id")
    parser.add_argument("reference", help="a model that was trained without the people: a folder")
    parser.add_argument("--settings", type=Path, required=True, help="YAML file of protocol.py")
    parser.add_argument("--requests", type=int, default=1, help="requests, one after another; all their people count")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--work", type=Path, default=Path("runs/audit_faces"), help="folder for the run and the audit")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    settings = read_settings(options.settings, {}, {})
    protocol = prepare(settings, options.model, options.data, options.seed)
    requests, run = protocol.tasks[: options.requests], options.work / "run"
    people = [person for request in requests for person in request]
    done = len(ForgettingLedger.load(run).tasks) if (run / "forgetting.json").is_file() else 0
    arguments = {"seed": options.seed, "disable_tqdm": True, "output_dir": str(run)}
    if done < len(requests):
        carry_out = with_gs_lora(protocol, settings, run, arguments)
        for task in range(done, len(requests)):
            carry_out(task)

    def plain(folder: str) -> Any:
        return AutoModelForImageClassification.from_pretrained(folder).eval()

    forgotten = load_forgotten(plain(options.model), run, merge=True)
    whole = prepare(
        read_settings(options.settings, {"train_fraction": 1.0}, {}), options.model, options.data, 0
    ).dataset
    report = audit_models(
        plain(options.model),
        forgotten,
        dict(whole),
        people,
        reference=plain(options.reference),
        attacks=ATTACKS,
        quick=True,
        folder=options.work / "parts",
        processing_class=protocol.processor,
    )
    report.save(options.work / "report")
    judged = [one for one in report.comparisons() if one.attack.judged != "shown"]
    rows = [(one.attack.name, one.setting, one.where, *figures(one)) for one in judged]
    header = ("attack", "setting", "where", "original", "forgotten", "retrained", "excess")
    print(Table(header, rows, align="lllrrrr").to_text())
    print(
        f"{sum(one.excess > 5 for one in judged)} of {len(judged)} figures are more than 5 points above the reference."
    )
    print(report.verdict)


if __name__ == "__main__":
    main()
