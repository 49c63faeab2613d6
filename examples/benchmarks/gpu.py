r"""What a training step costs on a GPU: img/s, share of the matmul rate, and peak memory, against two other loops.

    python examples/benchmarks/gpu.py                 # ViT-B/16 and ViT-L/16 at 224, the face model at 112
    python examples/benchmarks/gpu.py --tiny          # a test of this script: tiny models, on a CPU

bf16 autocast, random weights, with and without torch.compile. Each variant of `step.py` trains on one joint batch:
`stock` is the Trainer with PEFT LoRA on the same modules, `two_passes` a loop like the papers', `gs_lora` has all
groups live, and in `half_zero` the lower half of them is zero. The share is that of the rate of a large matrix
product in bf16, measured in the same run. torch.compile comes last, for `stock` and `gs_lora`: each compilation takes
a part of a minute. What does not fit in `--minutes` is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time

import torch
from step import WARMUP, Flops, load_model, matmul_rate, peak_memory, run_steps
from torch import nn

PAIRS = {"vit-b": 64, "vit-l": 32, "face": 128}  # images to keep in the joint batch
VARIANTS = ("stock", "two_passes", "gs_lora", "half_zero")
COMPILED = ("stock", "gs_lora")
COLUMNS = ("model", "variant", "compiled", "img/s", "time of stock", "share of matmul", "MiB", "MiB of stock")


def measure(base: nn.Module, variant: str, options: argparse.Namespace, flops: int | None) -> tuple[float, int, float]:
    """The median seconds of a step, its floating-point operations and the peak memory in MiB (0 on a CPU)."""
    gc.collect()
    if options.compile:
        torch.compiler.reset()
    if options.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # A compiled step hides its operations: they are those of the same step without it.
    counter = Flops(WARMUP + options.steps + 1) if flops is None else None
    seconds = statistics.median(run_steps(base, variant, options, counter))
    memory = 0.0 if options.device == "cpu" else peak_memory(options.device)
    return seconds, flops if counter is None else counter.count, memory


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PAIRS, default=list(PAIRS), help="models to measure")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each variant")
    parser.add_argument("--r", type=int, default=8, help="rank")
    parser.add_argument("--minutes", type=float, default=6, help="time after which nothing more is started")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--tiny", action="store_true", help="tiny models and one step, on a CPU")
    options = parser.parse_args(words)
    options.device, options.bf16 = "cpu" if options.tiny else "cuda", True
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --tiny runs on a CPU")
    if options.tiny:
        options.steps, options.backend = 1, "eager"

    start = time.monotonic()
    rate = matmul_rate(options.device, torch.bfloat16, 128 if options.tiny else 8192)
    name = "CPU" if options.tiny else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}: {rate / 1e12:.3g} TFLOP/s in a matrix product of bf16")
    runs = [(model, variant, None) for model in options.models for variant in VARIANTS]
    runs += [(model, variant, options.backend) for model in options.models for variant in COMPILED]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    found: dict[tuple[str, str, str | None], tuple[float, int, float]] = {}
    bases: dict[str, nn.Module] = {}
    for run in runs:
        model, variant, options.compile = run
        if time.monotonic() - start > 60 * options.minutes:
            print(f"| {model} | {variant} | {bool(options.compile)} | left out: out of time |", flush=True)
            continue
        print(f"{model}, {variant}", file=sys.stderr)
        options.pairs = 2 if options.tiny else PAIRS[model]
        if model not in bases:
            bases[model] = load_model(model, dropout=True, tiny=options.tiny)
        known = found.get((model, variant, None))
        found[run] = measure(bases[model], variant, options, known and known[1])
        print("| " + " | ".join(row(run, found, rate, options.pairs)) + " |", flush=True)


def row(run: tuple, found: dict[tuple, tuple[float, int, float]], rate: float, pairs: int) -> list[str]:
    """The cells of one run; ratios are to `stock` with the same use of torch.compile."""
    seconds, flops, memory = found[run]
    stock = found.get((run[0], "stock", run[2]))
    return [
        run[0], run[1], str(run[2] is not None), f"{2 * pairs / seconds:.0f}",
        f"{seconds / stock[0]:.2f}" if stock else "", f"{flops / seconds / rate:.0%}",
        f"{memory:.0f}" if memory else "", f"{memory / stock[2]:.2f}" if stock and memory else "",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
