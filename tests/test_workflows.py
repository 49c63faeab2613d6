"""What the workflows on GitHub run is what `.ci/run` runs, on the versions of Python that the package names."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TESTS = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))


def targets(text):
    return {target for line in re.findall(r"\bmake ([a-z -]+)", text) for target in line.split()}


def test_every_check_of_a_commit_runs_for_a_pull_request():
    steps = [step.get("run", "") for job in TESTS["jobs"].values() if "if" not in job for step in job["steps"]]
    wanted = targets((ROOT / ".ci" / "run").read_text("utf-8"))
    assert {"style", "types", "docs", "test"} <= wanted
    assert wanted <= targets("\n".join(steps))


def test_the_tests_run_on_every_python_that_the_package_supports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = [re.search(r":: (3\.\d+)$", text) for text in project["classifiers"]]
    supported = [found[1] for found in named if found]
    assert TESTS["jobs"]["tested"]["strategy"]["matrix"]["python"] == supported
    assert project["requires-python"] == f">={supported[0]}"
    versions = [step["with"]["python-version"] for job in TESTS["jobs"].values() for step in job["steps"]
                if "setup-python" in step.get("uses", "")]  # fmt: skip
    assert {version for version in versions if not version.startswith("${{")} <= set(supported)
