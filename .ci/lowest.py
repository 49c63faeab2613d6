"""Prints the lowest releases that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lowest() -> list[str]:
    """Returns `name==bound` for what the package and its tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    own = project["name"]
    return [re.sub(r">=([\d.]+).*", r"==\1", need) for need in needed if not need.startswith(own)]


if __name__ == "__main__":
    print("\n".join(lowest()))
