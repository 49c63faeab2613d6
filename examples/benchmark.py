"""Compare methods of forgetting: accuracy, what attacks get back, closeness to retrained models, time and bytes.

    python examples/benchmark.py
    python examples/benchmark.py --only --methods gs_lora,my_module:MyMethod --seeds 0
    python examples/benchmark.py examples/benchmarks/digits_audit.yaml

This is `gs-lora benchmark`. Without CONFIG it takes benchmarks/digits.yaml. A CONFIG that names no model is about the
handwritten digits of forget.py, whose model is pre-trained first. A stopped command goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

from digits import load_digits, pretrained_vit
from huggingface_hub import cached_assets_path

from gs_lora_peft.benchmark import BenchmarkConfig
from gs_lora_peft.cli import main as gs_lora

DIGITS = Path(__file__).parent / "benchmarks" / "digits.yaml"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        argv = [str(DIGITS), *argv]
    if "--help" not in argv and BenchmarkConfig.read(argv[0]).model is None:
        argv = [*argv, *saved_digits()]
    gs_lora(["benchmark", *argv])


def saved_digits() -> list[str]:
    """Writes the digits and their model to files, as any user has them; returns the options that name them."""
    folder = cached_assets_path("gs_lora_peft", namespace="examples", subfolder="digits-benchmark")
    dataset = load_digits()
    dataset.save_to_disk(folder / "data")
    pretrained_vit(dataset).save_pretrained(folder / "model")
    return ["--model", str(folder / "model"), "--dataset", str(folder / "data")]


if __name__ == "__main__":
    main()
