"""What closed tabs leave behind: no folder, no thread, and nothing that their last requests make anew."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_app_sources import picture

from gs_lora_peft.models import small_vit

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def app():
    sys.path.insert(0, str(ROOT / "app"))
    import sessions
    import sources
    import visits

    yield SimpleNamespace(sessions=sessions, sources=sources, visits=visits)
    sys.path.remove(str(ROOT / "app"))


@pytest.fixture
def source(app):
    """24 pictures of three classes, and a model that is not trained."""
    labels = np.repeat(np.arange(3), 8)
    images = np.random.default_rng(0).uniform(-1, 1, (24, 1, 8, 8)).astype(np.float32)
    recipe = app.sources.RetrainRecipe(epochs=100_000, batch_size=8)
    return app.sources.Source(app.sources.split(images, labels, NAMES), small_vit(NAMES, 8), recipe)


def test_a_request_that_comes_after_its_tab_was_closed_makes_no_new_visit(app, source, tmp_path):
    """The queue still carries out what a visitor asked for before."""
    visits = app.sessions.Visits(tmp_path, source)
    first, other = visits.of("first"), visits.of("other")
    assert first.folder.is_dir()
    visits.leave("first")
    with pytest.raises(app.visits.VisitEnded):
        visits.of("first")
    assert list(tmp_path.iterdir()) == [other.folder]
    assert visits.of("other") is other


def test_a_visit_that_nobody_uses_ends_without_another_visitor(app, source, tmp_path):
    visits = app.sessions.Visits(tmp_path, source)
    idle, used = visits.of("idle"), visits.of("used")
    idle.used -= app.sessions.IDLE_SECONDS + 1
    visits.end_idle()
    assert list(tmp_path.iterdir()) == [used.folder]


@pytest.mark.parametrize("work", ["choose", "bring", "forget", "retrain", "attack", "download"])
def test_nothing_is_made_after_the_end(app, source, tmp_path, work):
    """A request may have found its visit just before the tab was closed."""
    visit = app.visits.Visit(tmp_path, source)
    visit.entry = SimpleNamespace(classes=[0])
    upload = tmp_path / "people.zip"
    upload.write_bytes(picture())
    arguments = {"choose": [source], "bring": [upload, source.recipe], "forget": [[0], "fast"], "attack": [1]}
    visit.close()
    with pytest.raises(app.visits.VisitEnded):
        list(getattr(visit, work)(*arguments.get(work, [])) or ())
    assert list(tmp_path.iterdir()) == ([] if work == "bring" else [upload])


def test_a_closed_tab_stops_the_training_of_its_comparison(app, source, tmp_path):
    """It would go on for minutes, and others would wait for it."""
    visit = app.visits.Visit(tmp_path, source)
    visit.entry = SimpleNamespace(classes=[0])
    errors = []

    def work():
        try:
            visit.retrain()
        except app.visits.VisitEnded as error:
            errors.append(error)

    before = own_threads()
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    wait_until(lambda: list(tmp_path.rglob("checkpoint-*")))
    visit.close()
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert len(errors) == 1
    assert list(tmp_path.iterdir()) == []
    assert own_threads() == before


def own_threads():
    """All but the one that tqdm starts with the first bar of a process, and keeps."""
    return {thread for thread in threading.enumerate() if type(thread).__name__ != "TMonitor"}


def wait_until(condition, seconds=60):
    for _ in range(20 * seconds):
        if condition():
            return
        time.sleep(0.05)
    assert condition()
