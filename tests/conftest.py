"""Fixtures for every room."""

import gc
import os
from pathlib import Path

# Tiny models on few cores: threads that wait for each other cost more than they bring, in child processes too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A loaded machine must not fail a test.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


def pytest_collection_finish():
    """Spares garbage collections all that is imported by now.

    Every training begins with a full one (`Accelerator.free_memory`), which looks at each object of torch and
    transformers: 0.2 s, more than most trainings here take.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """What the tests of a file have imported on top is spared, too."""
    if nextitem is not None and nextitem.path != item.path:
        pytest_collection_finish()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the benchmark data, outside the repository; the test is skipped where it is absent."""
    root = os.environ.get("GS_LORA_SHARED") or Path(__file__).resolve().parents[1].parent / "shared"
    folder = Path(root) / "data"
    if not folder.is_dir():
        pytest.skip("the shared benchmark data is absent; GS_LORA_SHARED can name the folder it is in")
    return folder
