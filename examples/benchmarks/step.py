r"""A training step of GS-LoRA against one of the stock Trainer with stock PEFT LoRA on the same modules.

    python examples/benchmarks/step.py                              # ViT-S/16 at 224, random weights
    python examples/benchmarks/step.py --model face-model --pairs 48
    python examples/benchmarks/step.py --profile gs_lora            # where the time of a step goes
    python examples/benchmarks/step.py --variants gs_lora gs_lora+bf16 gs_lora+bf16+eager

Both train on the same joint batch of `--pairs` images to keep and as many to forget. The variants run in turns in one
process, each after warm-up steps, and a round gives one ratio to the stock step: the table has the median over rounds.
On the CPU the clock counts CPU seconds, so that other work on the machine matters less. The peak memory comes from a
new process for each variant.

Variants: `stock`; `gs_lora`, all groups live; `half_zero`, the lower half of the groups zero, with the outputs of the
frozen blocks kept after the first step; `half_zero_uncached`, the same without keeping them; `two_passes`, a step like
the papers': stock PEFT LoRA with a forward and a backward pass for each half, and the norms of all groups. An ending
changes a variant: `gs_lora+bf16` trains in mixed precision, `gs_lora+bf16+eager` also with plain instead of fused
attention, and `gs_lora+compile` with torch.compile.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from gs_lora_peft import (
    FaceTransformerConfig,
    FaceTransformerForRecognition,
    GSLoraConfig,
    GSLoraTrainer,
    GSLoraTrainingArguments,
    LoraGroups,
    find_ffn_blocks,
)
from gs_lora_peft.runs import peak_bytes

VARIANTS = ("stock", "gs_lora", "half_zero", "half_zero_uncached")
WARMUP = 3

# Of ViTs with 16×16 patches at 224; the face model has the sizes of the papers, at 112.
WIDTHS = {
    "vit-s": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "vit-b": {},
    "vit-l": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 24},
    "face": {},
}
TINY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2, "image_size": 32}


class Clock(TrainerCallback):
    """Seconds of each step after the warm-up: CPU seconds, or those of the accelerator's clock."""

    def __init__(self, device: str):
        self.device, self.times = device, []

    def now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > WARMUP:
            self.times.append(self.now() - self.start)


class Flops(TrainerCallback):
    """Counts the floating-point operations of one step.

    Args:
        step: The step, counted from 1.
    """

    def __init__(self, step: int):
        self.step, self.count = step, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.counter.__exit__(None, None, None)
            self.count = self.counter.get_total_flops()


class TwoPasses(Trainer):
    """A step like the papers': each half has a forward and a backward pass, and the norms of all groups are added."""

    groups: list[list[nn.Parameter]]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        half, total = len(inputs["labels"]) // 2, torch.zeros((), device=self.args.device)
        for forgets, rows in ((False, slice(None, half)), (True, slice(half, None))):
            with self.compute_loss_context_manager():
                loss = model(**{name: tensor[rows] for name, tensor in inputs.items()}).loss
                if forgets:
                    loss = 0.1 * torch.relu(105 - loss)
                else:
                    loss = loss + 1e-4 * sum(sum(p.square().sum() for p in group).sqrt() for group in self.groups)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total


def load_model(name: str, dropout: bool, tiny: bool = False) -> nn.Module:
    """A model of `WIDTHS` with random weights, of its own or of a tiny size; or a local folder of a model."""
    torch.manual_seed(0)
    if name in WIDTHS:
        face = name == "face"
        config, kind = (
            (FaceTransformerConfig, FaceTransformerForRecognition) if face else (ViTConfig, ViTForImageClassification)
        )
        model: nn.Module = kind(config(num_labels=2, **(TINY if tiny else WIDTHS[name])))
    else:
        model = AutoModelForImageClassification.from_pretrained(name)
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model


def make_trainer(base: nn.Module, variant: str, options: argparse.Namespace, steps: int, folder: str) -> Trainer:
    """A trainer on a copy of the model, with the joint batch as its only batch."""
    base, pairs = copy.deepcopy(base), options.pairs
    variant, *endings = variant.split("+")
    if "eager" in endings:
        cast(PreTrainedModel, base).set_attn_implementation("eager")
    backend = "inductor" if "compile" in endings else options.compile
    size: Any = base.config
    shape = (2 * pairs, size.num_channels, size.image_size, size.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = [{"pixel_values": image, "label": 1 - number // pairs} for number, image in enumerate(images)]
    common: dict[str, Any] = {
        "output_dir": folder, "max_steps": steps, "use_cpu": options.device == "cpu", "disable_tqdm": True,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "remove_unused_columns": False,
        "learning_rate": 1e-4, "weight_decay": 0.05, "bf16": options.bf16 or "bf16" in endings,
        "dataloader_pin_memory": False, "torch_compile": backend is not None, "torch_compile_backend": backend,
    }  # fmt: skip
    if variant in ("stock", "two_passes"):
        blocks = find_ffn_blocks(base)
        paths = [path for block in blocks.values() for path in block]
        model = get_peft_model(base, LoraConfig(r=options.r, lora_alpha=1, target_modules=paths))
        args = TrainingArguments(per_device_train_batch_size=2 * pairs, **common)
        if variant == "stock":
            return Trainer(model, args, train_dataset=rows)
        trainer = TwoPasses(model, args, train_dataset=rows)
        own = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        trainer.groups = [[p for name, p in own if f".{block}." in name] for block in blocks]
        return trainer
    model = get_peft_model(base, GSLoraConfig(r=options.r))
    if variant.startswith("half_zero"):
        groups = LoraGroups(model)
        with torch.no_grad():
            for parameter, group in zip(groups.parameters, groups.group_of, strict=True):
                parameter.mul_(group >= len(groups) // 2)
    # A sparsity that drops nothing: the groups stay as they are while the clock runs.
    common["prefix_cache"] = "off" if variant.endswith("uncached") else "auto"
    # Without distillation, which holds the other classes of the head by one more forward.
    args = GSLoraTrainingArguments(
        per_device_train_batch_size=pairs, sparsity_weight=1e-6, distillation_weight=0, **common
    )
    return GSLoraTrainer(model, args, forget_dataset=rows[pairs:], retain_dataset=rows[:pairs])


def run_steps(
    base: nn.Module, variant: str, options: argparse.Namespace, last: TrainerCallback | None = None
) -> list[float]:
    """The seconds of each measured step. `last` is for one more step, which is not measured."""
    clock = Clock(options.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(base, variant, options, WARMUP + options.steps + (last is not None), folder)
        trainer.add_callback(clock)
        if last is not None:
            trainer.add_callback(last)
        trainer.train()
    return clock.times[: options.steps]


def peak_memory(device: str) -> float:
    """The peak memory of this process so far, in MiB: resident, or allocated on the accelerator."""
    return peak_bytes(torch.device(device)) / 2**20


def memory_of(variant: str) -> float:
    """The peak memory of a new process with the same options that takes the steps of one variant."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", variant]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def matmul_rate(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    """The floating-point operations per second of a large matrix product: the best of five."""
    one, clock = torch.randn(size, size, device=device, dtype=dtype), Clock(device)
    best = float("inf")
    for _ in range(5):
        start = clock.now()
        one @ one
        best = min(best, clock.now() - start)
    return 2 * size**3 / best


def profile(base: nn.Module, variant: str, options: argparse.Namespace) -> None:
    """Prints the operations of one step by their own time, its floating-point operations and its share of the rate."""

    class Profiler(TrainerCallback):
        """Profiles the last step."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == state.max_steps:
                self.profiler = torch.profiler.profile()
                self.profiler.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                self.profiler.__exit__(None, None, None)

    profiler, flops = Profiler(), Flops(WARMUP + options.steps + 1)
    run_steps(base, variant, options, profiler)
    seconds = statistics.median(run_steps(base, variant, options, flops))
    by = "self_cpu_time_total" if options.device == "cpu" else "self_device_time_total"
    print(profiler.profiler.key_averages().table(sort_by=by, row_limit=options.rows, max_name_column_width=40))
    rate = matmul_rate(options.device, torch.bfloat16 if options.bf16 else torch.float32)
    print(f"{variant}: {flops.count / 1e9:.1f} GFLOP in {seconds:.3f} s, {flops.count / seconds / rate:.0%} of the "
          f"matmul rate of {rate / 1e9:.0f} GFLOP/s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-s", help=f"one of {list(WIDTHS)}, or a folder of an image classifier")
    parser.add_argument("--pairs", type=int, default=8, help="images to keep in the joint batch")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--r", type=int, default=8, help="rank")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="variants after 'stock'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="'cpu' or 'cuda'")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--compile", metavar="BACKEND", help="torch.compile with this backend, such as 'inductor'")
    parser.add_argument("--no_dropout", action="store_true", help="set every nn.Dropout to 0")
    parser.add_argument("--no_memory", action="store_true", help="measure no memory")
    parser.add_argument("--profile", metavar="VARIANT", help="profile one variant instead")
    parser.add_argument("--rows", type=int, default=15, help="rows of the profile")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()

    base = load_model(options.model, not options.no_dropout)
    if options.memory_of:
        run_steps(base, options.memory_of, options)
        print(peak_memory(options.device))
        return
    if options.profile:
        profile(base, options.profile, options)
        return
    names = list(dict.fromkeys(["stock", *options.variants]))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
            seconds[name].append(statistics.median(run_steps(base, name, options)))
    ratios = {
        name: statistics.median(own / stock for own, stock in zip(seconds[name], seconds["stock"], strict=True))
        for name in names
    }
    memory = {} if options.no_memory else {name: memory_of(name) for name in names}
    for name in names:
        row = {"seconds": round(statistics.median(seconds[name]), 4), "ratio": round(ratios[name], 3)}
        if memory:
            row |= {"MiB": round(memory[name]), "ratio of MiB": round(memory[name] / memory["stock"], 3)}
        print(f"{name}: {json.dumps(row)}")


if __name__ == "__main__":
    main()
