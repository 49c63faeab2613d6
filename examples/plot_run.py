"""Draw a run: accuracies after each request, and which Transformer blocks carry each adapter.

python examples/plot_run.py runs/digits docs/images/digits.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from safetensors.torch import load_file

from gs_lora_peft import ForgettingLedger

# Okabe–Ito colours: told apart with any kind of colour vision, on light and dark pages.
KEPT, FORGOTTEN, EARLIER = "#009E73", "#D55E00", "#0072B2"


def group_norms(ledger: ForgettingLedger) -> tuple[list[str], np.ndarray]:
    """Block paths, and the norm of each block's matrices in each task (0 where the task left the block alone)."""
    groups = sorted({*ledger.tasks[0].groups["active"], *ledger.tasks[0].groups["zero"]}, key=natural)
    norms = np.zeros((len(groups), len(ledger.tasks)))
    for column, entry in enumerate(ledger.tasks):
        tensors = load_file(ledger.folder / "tasks" / entry.name / "adapter_model.safetensors")
        for row, group in enumerate(groups):
            squares = [float(t.pow(2).sum()) for name, t in tensors.items() if f".{group}." in name]
            norms[row, column] = sum(squares) ** 0.5
    return groups, norms


def natural(name: str) -> list:
    """Sort key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]


def draw(folder: str, out: str) -> None:
    ledger = ForgettingLedger.load(folder)
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 2), layout="constrained")
    labels = [", ".join(entry.class_names or map(str, entry.classes or [])) for entry in ledger.tasks]
    for offset, (name, key, when, colour) in enumerate(
        [
            ("kept classes", "acc_retain", "after", KEPT),
            ("these classes, before", "acc_forget", "before", "#999999"),
            ("these classes, after", "acc_forget", "after", FORGOTTEN),
            ("forgotten earlier", "acc_old", "after", EARLIER),
        ]
    ):
        values = [100 * (entry.scores[when].get(key) or 0.0) for entry in ledger.tasks]
        places = np.arange(len(values)) + 0.2 * (offset - 1.5)
        left.bar(places, values, width=0.18, color=colour, label=name)
        for x, y, entry in zip(places, values, ledger.tasks, strict=True):
            if entry.scores[when].get(key) is not None:
                left.text(x, y + 1.5, f"{y:.0f}", ha="center", fontsize=9)
    left.set(ylabel="test accuracy (%)", ylim=(0, 112), title="Accuracy after each request")
    left.set_xticks(range(len(labels)), [f"forget\n{label}" for label in labels])
    left.legend(ncols=2, frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18))

    groups, norms = group_norms(ledger)
    image = right.imshow(np.where(norms > 0, norms, np.nan), cmap="viridis", aspect="auto", vmin=0)
    for row, column in zip(*np.nonzero(norms == 0), strict=True):
        right.text(column, row, "0", ha="center", va="center", color="#777777")
    right.set_xticks(range(len(labels)), labels)
    right.set_yticks(range(len(groups)), [f"block {group.rsplit('.', 1)[-1]}" for group in groups])
    right.set_title("Norm of each block's update (0: untouched)")
    figure.colorbar(image, ax=right, shrink=0.8)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, facecolor="white")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(*sys.argv[1:])
