r"""Memory and losses with a whole base model in each process (DDP) and with a sharded one (FSDP 2): two CPU processes.

    python examples/benchmarks/sharding.py                # ViT-L/16 at 224, random weights
    python examples/benchmarks/sharding.py --model vit-b

It starts itself with `torchrun`, once for each way. Linux only: a process reads its resident memory, and the peak
since a mark, from /proc. Freed memory goes back to the system at once (MALLOC_MMAP_THRESHOLD_), so that it does not
count. The losses of the steps must be equal to 1e-5, else it fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from step import load_model
from transformers import TrainerCallback

from gs_lora_peft import GSLoraConfig, GSLoraTrainer, GSLoraTrainingArguments

PROCESSES = 2
# What `accelerate launch --config_file examples/accelerate/fsdp2.yaml` sets.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
TOLERANCE = 1e-5
WAYS: dict[str, dict[str, str]] = {"DDP": {}, "FSDP 2": FSDP2}


def resident(field: str) -> float:
    """Memory of this process in MiB: `VmRSS` now, `VmHWM` at most since the mark."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def mark() -> None:
    """Lets the peak start again from what is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


class Meter(TrainerCallback):
    """Notes what is resident before the first step, and the peak of all steps."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        mark()
        self.before = resident("VmRSS")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.peak = resident("VmHWM")


def train(options: argparse.Namespace) -> None:
    """Trains in one of the processes, and prints its memory."""
    size = 32 if options.tiny else 224 if options.model != "face" else 112
    images = torch.randn(2 * PROCESSES, 3, size, size, generator=torch.Generator().manual_seed(0))
    rows = [{"pixel_values": image, "label": number % 2} for number, image in enumerate(images)]
    args = GSLoraTrainingArguments(
        options.folder, use_cpu=True, max_steps=options.steps, per_device_train_batch_size=1, disable_tqdm=True,
        distillation_weight=0, dataloader_pin_memory=False, sparsity="none", logging_steps=1,
    )  # fmt: skip
    start = resident("VmRSS")
    model = get_peft_model(load_model(options.model, dropout=True, tiny=options.tiny), GSLoraConfig(r=8))
    trainer = GSLoraTrainer(model, args, forget_dataset=rows[1::2], retain_dataset=rows[0::2])
    meter = Meter()
    trainer.add_callback(meter)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    found = {"base MiB": meter.before - start, "peak MiB": meter.peak - start, "losses": losses}
    Path(options.folder, f"{args.process_index}.json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-l", help="'vit-s', 'vit-b', 'vit-l' or 'face'")
    parser.add_argument("--steps", type=int, default=2, help="steps of the training")
    parser.add_argument("--tiny", action="store_true", help="a tiny size of the model: a test of this script")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        train(options)
        return
    shared = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    print("| | process | resident before the first step, MiB | peak of the steps, MiB |\n|---|---|---|---|")
    losses: dict[str, list[float]] = {}
    for way, settings in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
            command += [__file__, *sys.argv[1:], "--folder", folder]
            subprocess.run(command, env={**os.environ, **shared, **settings}, check=True, stdout=sys.stderr)
            for number in range(PROCESSES):
                found = json.loads(Path(folder, f"{number}.json").read_text())
                print(f"| {way} | {number} | {found['base MiB']:.0f} | {found['peak MiB']:.0f} |", flush=True)
                losses[way] = found["losses"]  # means over all processes
    apart = max(abs(one - other) for one, other in zip(*losses.values(), strict=True))
    print(f"\nlargest difference of the losses of {options.steps} steps: {apart:.1e}")
    if apart > TOLERANCE:
        sys.exit(f"expected at most {TOLERANCE:g}")


if __name__ == "__main__":
    main()
