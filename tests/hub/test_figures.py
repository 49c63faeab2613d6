"""Pictures of a run: what they show, that they say no more than they may, and that they are the same every time."""

import io
import itertools
import runpy
import struct
import sys
import warnings
from pathlib import Path

import card_cases as cases
import matplotlib
import numpy as np
import pytest
from hypothesis import given, strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.hub import run_figures as figures
from gs_lora_peft.hub.run_figures import draw_figures
from gs_lora_peft.reports import own_style, shortened_names

ALL = ["figures/accuracies.png", "figures/group_norms.png", "figures/training_curves.png"]
ROOT = Path(__file__).resolve().parents[2]


def drawn(ledger, folder):
    """The pictures of a ledger, by name; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = draw_figures(ledger, folder)
    assert names == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return {name: (folder / name).read_bytes() for name in names}


def chunks(png):
    """The types of the chunks of a PNG."""
    place, found = 8, []
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        found.append(png[place + 4 : place + 8].decode())
        place += 12 + length
    return found


def test_a_real_run_is_drawn(finished, tmp_path):
    """A run with the tiny classifier records what all three pictures need, and they open as pictures."""
    ledger = ForgettingLedger.load(finished[0])
    pictures = drawn(ledger, tmp_path)
    assert sorted(pictures) == ALL
    for png in pictures.values():
        with Image.open(io.BytesIO(png)) as image:
            image.load()
            assert image.width > 500
            assert image.getpixel((0, 0))[:3] == (255, 255, 255)  # a ground of its own, on pages of any colour


def test_nothing_but_pixels_and_size(tmp_path):
    """No date, no software, no text of any kind is stored in the files."""
    for png in drawn(cases.run(3), tmp_path).values():
        assert set(chunks(png)) <= {"IHDR", "pHYs", "IDAT", "IEND"}


def test_the_same_ledger_gives_the_same_bytes(tmp_path):
    """Pushing again changes no picture, whatever style the caller uses meanwhile; that style is left alone."""
    first = drawn(cases.run(3), tmp_path / "first")
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "black", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert drawn(cases.run(3), tmp_path / "second") == first
        assert dict(matplotlib.rcParams) == before


def test_classes_do_not_matter(tmp_path):
    """Other classes, names, notes and numbers of samples give the same bytes: none of them is in a picture."""
    other = {
        "classes": [700],
        "class_names": ["somebody else"],
        "request": {"classes": ["somebody else"]},
        "sizes": {},
    }
    assert drawn(cases.run(1, **other), tmp_path / "other") == drawn(cases.run(1), tmp_path / "plain")


def test_pyplot_is_not_used(tmp_path, monkeypatch):
    """Drawing neither opens windows nor touches the figures of a notebook."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert list(drawn(cases.run(2), tmp_path)) == ALL


def test_what_was_not_recorded_is_not_drawn(tmp_path):
    """A ledger of an earlier version has scores alone; one without any task has nothing."""
    old = cases.run(2, groups={"total": 1, "active": ["a"], "zero": []}, curves=None)
    assert list(drawn(old, tmp_path / "old")) == ["figures/accuracies.png"]
    assert drawn(cases.run(2, groups={}, curves=None, scores={}), tmp_path / "bare") == {}
    assert drawn(cases.run(0), tmp_path / "empty") == {}


@pytest.mark.parametrize(("count", "blocks"), [(1, cases.BLOCKS), (20, cases.LONG_BLOCKS), (100, cases.BLOCKS)])
def test_few_and_many_tasks_fit(count, blocks, tmp_path):
    """From one task to a hundred the pictures stay within the width of a page, and no two tick labels overlap."""
    ledger = cases.run(count, blocks=blocks, changes={2: cases.revoked(500)} if count > 1 else None)
    for png in drawn(ledger, tmp_path).values():
        with Image.open(io.BytesIO(png)) as image:
            assert 600 <= image.width <= 2200
            assert 500 <= image.height <= 1800
    with own_style():
        for draw in (figures._accuracies, figures._group_norms, figures._training_curves):
            figure = draw(ledger.tasks)
            renderer = FigureCanvasAgg(figure).get_renderer()
            figure.draw(renderer)
            labels = figure.axes[0].get_xticklabels() if draw is not figures._training_curves else []
            boxes = [label.get_window_extent(renderer) for label in labels]
            assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_exact_zeros_are_marked_and_nothing_else():
    """A cross on every group that is exactly zero, none on one that is tiny, nothing where nothing was recorded."""
    norms = {1: {"a": 0.0, "b": 1e-30, "c": 2.0}, 2: {"a": 3.0, "b": 0.0}}
    ledger = cases.run(2, changes={n: {"groups": {"total": 3, "norms": norms[n]}} for n in norms})
    with own_style():
        figure = figures._group_norms(ledger.tasks)
    crosses = figure.axes[0].collections[0].get_offsets()
    assert {tuple(map(int, place)) for place in crosses} == {(0, 0), (1, 1)}  # (task, group)
    zeros, coloured = (np.ma.filled(image.get_array(), np.nan) for image in figure.axes[0].images)
    assert np.isnan(coloured[2, 1])
    assert np.isnan(zeros[2, 1])
    assert coloured[1, 0] > 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "exactly zero: the task leaves the group as it was",
        "not adapted, or not recorded",
    ]


def test_revoked_tasks_carry_a_star():
    """A task that is no longer in effect is not shown as if it were."""
    with own_style():
        axes = figures._accuracies(cases.run(3, changes={2: cases.revoked(9)}).tasks).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2*", "3"]
    assert axes.get_xlabel() == "task (* revoked)"


def test_odd_numbers_are_drawn_without_a_warning(tmp_path):
    """All groups zero, losses of zero, a single logged moment, missing scores of one task."""
    flat = {name: [0.0] for name in cases.curves()}
    changes = {1: {"zero": cases.BLOCKS, "curves": flat}, 2: {"scores": {}, "curves": None}}
    assert list(drawn(cases.run(3, changes=changes), tmp_path / "mixed")) == ALL
    assert list(drawn(cases.run(2, zero=cases.BLOCKS, curves=flat), tmp_path / "flat")) == ALL


@given(st.sets(st.lists(st.sampled_from("ab") | st.text("cde_0", min_size=1), min_size=1, max_size=4).map(tuple)))
def test_short_names_stay_different(paths):
    """However much is cut away, two groups never get the same label, and short paths are only split."""
    names = [".".join(path) for path in paths]
    prefix, labels = shortened_names(names, longest=6)
    assert len(set(labels)) == len(names)
    prefix, labels = shortened_names(names, longest=10**6)
    assert [f"{prefix}.{label}" if prefix else label for label in labels] == names


def test_long_names_are_cut_where_they_agree():
    """What tells blocks apart survives."""
    prefix, labels = shortened_names(cases.LONG_BLOCKS)
    assert prefix == "model"
    assert max(map(len, labels)) <= 40
    assert "stage_3" in labels[30]
    assert labels[-1] == "decoder.layers.5"


def test_the_example_draws_a_folder(finished, tmp_path, monkeypatch, capsys):
    """`examples/plot_run.py RUN OUT` writes the pictures and says which."""
    monkeypatch.setattr(sys, "argv", ["plot_run.py", str(finished[0]), str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "plot_run.py"), run_name="__main__")
    assert capsys.readouterr().out.split() == ALL
    assert all((tmp_path / name).is_file() for name in ALL)
