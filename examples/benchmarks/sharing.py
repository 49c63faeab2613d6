"""The cost of sharing a run: bytes of a task, and the time to load and to sum a hundred tasks. Prints three tables.

    python examples/benchmarks/sharing.py

ViT-B/16 at 224 with random weights and tasks with random matrices, r=8, in a temporary folder of about 1 GB. Times are
the best of three, or of one if they are long; files come from the page cache. `--small` uses ViT-S.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from gs_lora_peft import (
    ForgettingLedger,
    GSLoraConfig,
    GSLoraTrainingArguments,
    LoraGroups,
    export_lora,
    load_forgotten,
    weights_fingerprint,
)
from gs_lora_peft.adapters import model_identity
from gs_lora_peft.hub import verify_repository, write_composite
from gs_lora_peft.io import sha256_of, write_json_atomic
from gs_lora_peft.ledger import CURVE_NAMES, TaskEntry
from gs_lora_peft.runs import MAX_CURVE_POINTS, Recipe, adapter_settings, library_versions

SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
CONFIG = GSLoraConfig(r=8)


def make_model(small: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=200, **(SMALL if small else {}))).eval()


def make_run(folder: Path, model: PreTrainedModel, active: list[int]) -> ForgettingLedger:
    """Makes a run as `ContinualForgetter` does, with a task for each number of active groups."""
    ledger = ForgettingLedger.create(folder, base_model=model_identity(model))
    args = GSLoraTrainingArguments(output_dir=str(folder), use_cpu=True)
    settings = Recipe(CONFIG, args, "label", None, data_collator=list).settings()
    peft_model = get_peft_model(model, CONFIG)
    groups = LoraGroups(peft_model)
    chosen = random.Random(0)
    for number, count in enumerate(active):
        name = ledger.next_task_name()
        kept = set(chosen.sample(range(len(groups)), count))
        with torch.no_grad():
            for parameter, group in zip(groups.parameters, groups.group_of, strict=True):
                parameter.normal_(0, 0.02) if group in kept else parameter.zero_()
        out = export_lora(peft_model, folder / "tasks" / name, base_model_name_or_path="org/vit")
        own = {"adapter": name, **adapter_settings(CONFIG), "groups": groups.names}
        write_json_atomic(out / "gs_lora_config.json", own)
        curve = [float(f"{chosen.random():.6g}") for _ in range(MAX_CURVE_POINTS)]
        ledger.append(
            TaskEntry(
                name=name,
                request={"classes": [number], "note": None, "requested_at": "2026-01-01T00:00:00Z"},
                classes=[number],
                class_names=[f"class {number}"],
                started_at="2026-01-01T00:00:00Z",
                finished_at="2026-01-01T00:01:00Z",
                sizes={"forget": 100, "retain": 9900, "steps": 300},
                settings=settings,
                versions=library_versions(),
                files={f"tasks/{name}/{path.name}": sha256_of(path) for path in sorted(out.iterdir())},
                groups={**groups.state(), "norms": dict(zip(groups.names, groups.norms().tolist(), strict=True))},
                scores={stage: {"acc_forget": 0.0, "acc_retain": 0.97} for stage in ("base", "before", "after")},
                curves=dict.fromkeys(CURVE_NAMES, curve),
            )
        )
    peft_model.unload()
    ledger.save()
    return ledger


def seconds(action: Callable[[Any], Any], prepare: Callable[[], Any] = lambda: None, rounds: int = 3) -> float:
    """Returns the fastest of some rounds. `prepare` is not timed; its result is passed to `action`."""
    timings = []
    for _ in range(rounds):
        prepared = prepare()
        start = time.perf_counter()
        action(prepared)
        timings.append(time.perf_counter() - start)
    return min(timings)


def show(title: str, rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    print(f"\n{title}\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows), flush=True)


def bytes_of_tasks(folder: Path, small: bool) -> None:
    """Shows the published bytes of a task against the share of active groups."""
    counts = [12, 0, 1, 2, 3, 6, 9, 11]
    ledger = make_run(folder, make_model(small), counts)
    size = [sum((folder / name).stat().st_size for name in entry.files) for entry in ledger.tasks]
    rows = []
    for count, found in sorted(zip(counts, size, strict=True)):
        over = found - size[0] * count / 12
        verdict = "holds" if over <= 4096 else "FAILS"
        rows.append(
            (f"{count:2d} of 12 groups", f"{found:9,d} bytes, {over:+8,.0f} against k/n of the dense: {verdict}")
        )
    show("A published task with k of n groups active; allowed are k/n of the dense one and 4,096 bytes more", rows)


def loading(folder: Path, small: bool, tasks: int) -> None:
    """Shows the cost of loading a hundred tasks against reading their files once."""
    ledger = make_run(folder, make_model(small), [6] * tasks)
    paths = [folder / name for entry in ledger.tasks for name in entry.files]
    total = sum(path.stat().st_size for path in paths)

    def read(_: None) -> None:
        for path in paths:
            content = path.read_bytes()
            hashlib.sha256(content).digest()
            if path.suffix == ".safetensors":
                load(content)

    def stock(model: PreTrainedModel) -> None:
        names = [entry.name for entry in ledger.tasks]
        adapted = PeftModel.from_pretrained(model, folder / "tasks" / names[0], adapter_name=names[0])
        for name in names[1:]:
            adapted.load_adapter(folder / "tasks" / name, adapter_name=name)

    def fresh() -> PreTrainedModel:
        return make_model(small)

    once = seconds(read)
    fingerprint = seconds(weights_fingerprint, fresh)
    loaded = seconds(lambda model: load_forgotten(model, folder), fresh)
    merged = seconds(lambda model: load_forgotten(model, folder, merge=True), fresh, rounds=1)
    by_peft = seconds(stock, fresh, rounds=1)
    count = sum(len(load(path.read_bytes())) // 2 for path in paths if path.suffix == ".safetensors")
    rows = [
        ("files, ledger", f"{len(paths)} with {total / 1e6:.1f} MB, {ledger.path.stat().st_size / 1e6:.2f} MB"),
        ("ForgettingLedger.load", f"{seconds(lambda _: ForgettingLedger.load(folder)):.3f} s (allowed: 0.2 s)"),
        ("reading, hashing and parsing every file once", f"{once:.2f} s"),
        ("fingerprint of the base model", f"{fingerprint:.2f} s"),
        ("load_forgotten, opens each file", f"{opens(folder, small) / len(paths):.2f} times"),
        ("load_forgotten", f"{loaded:.2f} s, {loaded / (once + fingerprint):.2f} of reading once and fingerprint"),
        ("  of which not reading and not checking", f"{loaded - once - fingerprint:.2f} s for {count:,} LoRA layers"),
        ("stock PEFT, which checks nothing", f"{by_peft:.2f} s; load_forgotten takes {loaded / by_peft:.2f} of it"),
        ("load_forgotten(merge=True)", f"{merged:.2f} s"),
    ]
    show(f"Loading {tasks} tasks with 6 of 12 groups", rows)


def opens(folder: Path, small: bool) -> int:
    """Counts how often `load_forgotten` opens files of tasks."""
    seen: list[str] = []
    watched = [str(folder / "tasks")]

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and watched and str(arguments[0]).startswith(watched[0]):
            seen.append(str(arguments[0]))

    sys.addaudithook(watch)
    load_forgotten(make_model(small), folder)
    watched.clear()
    return len(seen)


@torch.no_grad()
def root_adapter(folder: Path, small: bool, tasks: int, active: int) -> None:
    """Shows the cost of the adapter in the root, its size, and its difference to the merged model."""
    ledger = (
        ForgettingLedger.load(folder) if folder.exists() else make_run(folder, make_model(small), [active] * tasks)
    )
    size = make_model(small).config.hidden_size
    start = time.perf_counter()
    report = write_composite(ledger, folder)
    written = time.perf_counter()
    problems = verify_repository(folder).problems
    verified = time.perf_counter()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    found = PeftModel.from_pretrained(make_model(small), folder)(images).logits
    merged = load_forgotten(make_model(small), folder, merge=True)(images).logits
    base = make_model(small)(images).logits
    weights = (folder / "adapter_model.safetensors").stat().st_size
    rows = [
        ("largest rank", f"{report.rank} (the layers have {size}): {'holds' if report.rank <= size else 'FAILS'}"),
        ("bytes", f"{weights / 1e6:.1f} MB"),
        ("modules recompressed, relative error", f"{len(report.recompressed)}, {report.relative_error:.1e}"),
        ("write_composite", f"{written - start:.1f} s"),
        ("verify_repository", f"{verified - written:.1f} s, {len(problems)} problems"),
        ("logits, largest difference to merged tasks", f"{(found - merged).abs().max():.1e}"),
        ("logits, largest difference to the base model", f"{(base - merged).abs().max():.1e}"),
    ]
    show(f"The root adapter of {tasks} tasks with {active} of 12 groups", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="ViT-S instead of ViT-B")
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bytes_of_tasks(Path(folder, "bytes"), options.small)
        loading(Path(folder, "half"), options.small, options.tasks)
        root_adapter(Path(folder, "half"), options.small, options.tasks, 6)
        root_adapter(Path(folder, "dense"), options.small, options.tasks, 12)


if __name__ == "__main__":
    main()
