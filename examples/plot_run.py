"""Draw a run: the groups that each request changes, accuracies before and after each, and the training curves.

python examples/plot_run.py runs/digits docs/images    # writes docs/images/figures/*.png
"""

from __future__ import annotations

import sys

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.hub import draw_figures

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(*draw_figures(ForgettingLedger.load(sys.argv[1]), sys.argv[2]), sep="\n")
