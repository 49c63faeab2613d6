"""The papers' settings: every YAML file beside the benchmark can be run as it is, and wrong ones are refused early."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

BENCHMARKS = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"
FILES = sorted([*BENCHMARKS.glob("faces/*.yaml"), *(BENCHMARKS / f"{n}.yaml" for n in ("imagenet100", "cifar100"))])
FILES.append(BENCHMARKS / "tiny_imagenet_100.yaml")


@pytest.fixture
def protocol(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import protocol

    yield protocol
    sys.modules.pop("protocol", None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files(protocol, path, tmp_path):
    """Every key is known, every task has its training arguments, and figures are there for every task."""
    settings = protocol.Settings(**yaml.safe_load(path.read_text(encoding="utf-8")))
    tasks = len(settings.kept)
    # bf16 asks for an accelerator that understands it.
    settings.training.pop("bf16", None)
    for task in range(tasks):
        settings.arguments(task, output_dir=str(tmp_path))
    for scores in settings.published.values():
        assert all(len(values) == tasks for values in scores.values() if isinstance(values, list))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_task": {"forget_weight": [0.1]}}, "expected one for each of the 2 tasks"),
        ({"missing": 2}, "expected fewer than the 2 classes that stay"),
        ({"method": "FFN"}, "must be one of"),
    ],
)
def test_wrong_settings(protocol, changes, message):
    """What would fail at a later task is refused before the first."""
    with pytest.raises(ValueError, match=message):
        protocol.Settings(kept=[4, 2], **changes)


def test_published_figures(protocol):
    """The figures and constants of the first table are the papers'."""
    file = BENCHMARKS / "faces" / "casia_continual.yaml"
    settings = protocol.Settings(**yaml.safe_load(file.read_text(encoding="utf-8")))
    assert settings.published["gs_lora_plus_plus"]["h_mean"] == [73.97, 73.48, 74.20, 75.23]
    assert settings.per_task["forget_weight"] == [0.2, 0.25, 0.25, 0.2]
    # CosFace with s = 64 and m = 0.35 adds s·m to the cross-entropy that the papers bound by 105.
    assert settings.training["forget_bound"] == pytest.approx(105 - 64 * 0.35)
