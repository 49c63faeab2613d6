"""Models and data that train in a fraction of a second are those of the trainer's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
