"""Plots the zero-group ratio against H, from the results of `yale_faces.py sweep`.

python examples/benchmarks/plot_sweep.py runs/yale docs/images/sweep.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLES = {("base", False): ("#0072B2", "o-"), ("base", True): ("#0072B2", "s--"),
          ("small", False): ("#D55E00", "o-"), ("small", True): ("#D55E00", "s--")}  # fmt: skip


def draw(work: str, out: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (size, refit), (colour, style) in STYLES.items():
        path = Path(work, f"sweep_{size}.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        # Runs that dropped every group forget nothing (H = 0), and would compress the scale.
        rows = [row for row in rows if row["zero_group_ratio"] < 1]
        rows = [row for row in rows if (row["settings"]["sparsity_until_epoch"] is not None) == refit]
        rows = sorted(rows, key=lambda row: (row["zero_group_ratio"], row["settings"]["sparsity_weight"]))
        if not rows:
            continue
        label = f"{size}, survivors refitted" if refit else f"{size}, sparsity to the end"
        x, y = [row["zero_group_ratio"] for row in rows], [100 * row["h_mean"] for row in rows]
        axes.plot(x, y, style, color=colour, label=label)
        for row in rows:
            axes.annotate(
                f"{row['settings']['sparsity_weight']:g}",
                (row["zero_group_ratio"], 100 * row["h_mean"]),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=8,
            )
    axes.set(xlabel="zero groups / all groups", ylabel="H (%)", title="Sparsity against H; labels are the weight α")
    axes.set_xlim(right=1)
    axes.legend(frameon=False, loc="center", bbox_to_anchor=(0.5, 0.62))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, facecolor="white")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(*sys.argv[1:])
