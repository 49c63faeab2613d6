"""Compare methods of forgetting: accuracy, what attacks get back, closeness to retrained models, time and bytes.

    python examples/benchmark.py
    python examples/benchmark.py --only --methods gs_lora,my_module:MyMethod --seeds 0
    python examples/benchmark.py examples/benchmarks/digits_audit.yaml

Without CONFIG: benchmarks/digits.yaml. A CONFIG that names no model is about the handwritten digits of forget.py;
otherwise this is `gs-lora benchmark CONFIG`. A stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from digits import load_digits, pretrained_vit

from gs_lora_peft.benchmark import BenchmarkConfig, run_benchmark
from gs_lora_peft.cli import main as gs_lora, run_script

DIGITS = Path(__file__).parent / "benchmarks" / "digits.yaml"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=DIGITS, help="YAML file; by default the digits")
    parser.add_argument("--methods", help="further methods: names, or module:Class of your own, split by commas")
    parser.add_argument("--only", action="store_true", help="run those of --methods alone")
    parser.add_argument("--seeds", help="other seeds, as 0,1,2")
    parser.add_argument("--output", help="another folder for results")
    parser.add_argument("--processes", type=int, help="runs at a time")
    options, _ = parser.parse_known_args(argv)
    if BenchmarkConfig.read(options.config).model is not None:
        gs_lora(["benchmark", *argv])
    options = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())
    seeds = None if options.seeds is None else [int(seed) for seed in options.seeds.split(",")]
    given = {"seeds": seeds, "output": options.output, "processes": options.processes}
    chosen = {name: value for name, value in given.items() if value is not None}
    config = BenchmarkConfig.read(options.config, **chosen)
    if options.methods is not None:
        config = config.with_methods(options.methods.split(","), only=options.only)
    dataset = load_digits()
    results = run_benchmark(config, pretrained_vit(dataset), dataset)
    for setting in results.settings:
        print(results.table(setting).to_text(), end="\n\n")
    print(f"Results: {config.output}")


if __name__ == "__main__":
    run_script(main)
