"""Cost of a training step against the stock Trainer with stock PEFT LoRA, and other costs, as one JSON object.

    python examples/benchmarks/speed.py

ViT-S/16 at 224 with random weights, a joint batch of 16 images (8 to keep, 8 to forget). Each variant runs in a new
process, in turns, so that slow phases of the machine affect all of them; ratios are of medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

HALF, STEPS, ROUNDS, WARMUP = 8, 4, 2, 2
VARIANTS = ("stock", "gs_lora", "gs_lora_half_zero", "gs_lora_task_20")


def peak_memory() -> float:
    """Returns the peak resident memory of this process so far, in MiB. It does not begin with that of its parent."""
    import torch

    from gs_lora_peft.runs import peak_bytes

    return peak_bytes(torch.device("cpu")) / 2**20


def measure(variant: str) -> dict:
    """Returns the seconds of each step, and the peak memory before and after."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

    from gs_lora_peft import GSLoraConfig, GSLoraTrainer, GSLoraTrainingArguments, LoraGroups, find_ffn_blocks

    torch.manual_seed(0)
    size = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    base = ViTForImageClassification(ViTConfig(num_labels=2, **size))
    if variant == "gs_lora_task_20":
        for number in range(1, 20):  # 19 earlier tasks, merged as by ContinualForgetter
            earlier = get_peft_model(base, GSLoraConfig(init_lora_weights=False), adapter_name=f"task_{number:03d}")
            base = earlier.merge_and_unload()
    images = torch.randn(2 * HALF, 3, 224, 224)
    labels = [0] * HALF + [1] * HALF

    class Rows(torch.utils.data.Dataset):
        def __init__(self, rows):
            self.rows = list(rows)

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return {"pixel_values": images[self.rows[index]], "label": labels[self.rows[index]]}

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            times.append(time.perf_counter() - self.start)

    common = {
        "output_dir": "/tmp/gs-lora-speed", "max_steps": STEPS + WARMUP, "use_cpu": True, "disable_tqdm": True,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "remove_unused_columns": False,
        "learning_rate": 1e-4, "weight_decay": 0.05,
    }  # fmt: skip
    if variant == "stock":
        paths = [path for block in find_ffn_blocks(base).values() for path in block]
        model = get_peft_model(base, LoraConfig(r=8, lora_alpha=1, target_modules=paths))
        args = TrainingArguments(per_device_train_batch_size=2 * HALF, **common)
        trainer = Trainer(model, args, train_dataset=Rows(range(2 * HALF)), callbacks=[Clock()])
    else:
        model = get_peft_model(base, GSLoraConfig(r=8))
        if variant == "gs_lora_half_zero":
            groups = LoraGroups(model)
            with torch.no_grad():
                for parameter, group in zip(groups.parameters, groups.group_of, strict=True):
                    if group < len(groups) // 2:
                        parameter.zero_()
        args = GSLoraTrainingArguments(per_device_train_batch_size=HALF, sparsity_weight=1e-6, **common)
        trainer = GSLoraTrainer(
            model,
            args,
            forget_dataset=Rows(range(HALF, 2 * HALF)),
            retain_dataset=Rows(range(HALF)),
            callbacks=[Clock()],
        )
    before = peak_memory()
    trainer.train()
    return {"times": times[WARMUP:], "memory": peak_memory(), "memory_before": before}


def import_seconds(code: str) -> float:
    """Returns the fastest of five new interpreters."""

    def once() -> float:
        program = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        return float(
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        )

    return min(once() for _ in range(5))


def search_seconds() -> float:
    """Times `find_ffn_blocks` on ViT-L, the fastest of five."""
    import torch
    from transformers import ViTConfig, ViTModel

    from gs_lora_peft import find_ffn_blocks

    with torch.device("meta"):
        size = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        model = ViTModel(ViTConfig(**size))
    timings = []
    for _ in range(5):
        start = time.perf_counter()
        find_ffn_blocks(model)
        timings.append(time.perf_counter() - start)
    return min(timings)


def main() -> None:
    results: dict[str, dict] = {variant: {"times": [], "memory": []} for variant in VARIANTS}
    for round_number in range(ROUNDS):
        for variant in VARIANTS:
            print(f"round {round_number + 1} of {ROUNDS}: {variant}", file=sys.stderr)
            run = subprocess.run(
                [sys.executable, __file__, variant], capture_output=True, text=True, check=True
            ).stdout.splitlines()
            row = json.loads(run[-1])
            results[variant]["times"] += row["times"]
            results[variant]["memory"].append(row["memory"])
    step = {variant: statistics.median(result["times"]) for variant, result in results.items()}
    memory = {variant: statistics.median(result["memory"]) for variant, result in results.items()}
    peft = import_seconds("import peft")
    report = {
        "seconds per step": {name: round(value, 3) for name, value in step.items()},
        "step, ratio to stock": {name: round(value / step["stock"], 3) for name, value in step.items()},
        "step, task 20 / task 1": round(step["gs_lora_task_20"] / step["gs_lora"], 3),
        "peak memory MiB": {name: round(value) for name, value in memory.items()},
        "peak memory, ratio to stock": {name: round(value / memory["stock"], 3) for name, value in memory.items()},
        "import peft, seconds": round(peft, 2),
        "import gs_lora_peft on top, seconds": round(import_seconds("import peft, gs_lora_peft") - peft, 2),
        "find_ffn_blocks on ViT-L, seconds": round(search_seconds(), 4),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
