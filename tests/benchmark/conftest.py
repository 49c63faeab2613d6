"""The tiny classifier and its data, once for all tests of a benchmark."""

import bench_cases as cases
import pytest


@pytest.fixture(scope="session")
def data():
    return cases.dataset()


@pytest.fixture(scope="session")
def model(data):
    return cases.trained(data)


@pytest.fixture(scope="session")
def finished(data, model, tmp_path_factory):
    """A benchmark of two methods with a search: its configuration and results. Not to be changed by a test."""
    from gs_lora_peft.benchmark import run_benchmark

    folder = tmp_path_factory.mktemp("benchmark")
    config = cases.config(folder, search={"trials": 2, "learning_rates": [1e-3, 1e-2], "requests": 1})
    return config, run_benchmark(config, model, data, disable_tqdm=True)
