"""Tables in the papers' layout, and figures of closeness against formulas that are written out."""

import numpy as np
import pytest

from gs_lora_peft.benchmark import BenchmarkResults
from gs_lora_peft.benchmark.yardsticks import closeness
from gs_lora_peft.reports import Table


def row(method, seed, gap, kept, outcome="forgotten", **more):
    facts = {
        "method": method,
        "setting": "one",
        "seed": seed,
        "task": 1,
        "tasks": 1,
        "final": True,
        "outcome": outcome,
    }
    return facts | {"recovery_gap": gap, "acc_retain": kept, "acc_forget": 0.0, "cpu_seconds": 2.0} | more


ROWS = [
    row("original", 0, 90.0, 0.99, "yardstick"),
    row("b", 0, 10.0, 0.9), row("b", 1, 14.0, 0.8),
    row("a", 0, 30.0, 0.97), row("a", 1, 30.0, 0.97),
    row("idle", 0, 1.0, 0.99), row("idle", 1, 80.0, 0.99, "not forgotten"),
    row("broken", 0, None, None, "diverged"), row("broken", 1, None, None, "diverged"),
]  # fmt: skip


def test_lines_in_the_order_of_the_gap_and_marks():
    """Those that did not forget come last, and are best in nothing."""
    lines = BenchmarkResults(ROWS).table().to_markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("|")]
    assert cells[0] == ["method", "Acc_r ↑", "Acc_f ↓", "recovery gap ↓", "s ↓", "forgotten"]
    assert [line[0] for line in cells[2:]] == ["original", "b", "a", "idle", "broken"]
    assert cells[3] == ["b", "<u>85.0 ± 7.1</u>", "**0.0 ± 0.0**", "**12.0 ± 2.8**", "**2.0 ± 0.0**", "2 of 2"]
    assert cells[4] == ["a", "**97.0 ± 0.0**", "**0.0 ± 0.0**", "<u>30.0 ± 0.0</u>", "**2.0 ± 0.0**", "2 of 2"]
    assert cells[5] == ["idle", "99.0 ± 0.0", "0.0 ± 0.0", "40.5 ± 55.9", "2.0 ± 0.0", "1 of 2"]
    assert cells[6][-1] == "0 of 2; 2 diverged"


@pytest.mark.parametrize(("kept", "said"), [(0.49, True), (0.51, False)])
def test_references_that_know_too_little_are_named_below_the_table(kept, said):
    """Beside them much looks remembered, so the column that decides would mislead."""
    rows = [*ROWS, row("original", 1, 90.0, 1.0, "yardstick"), row("retrained", 0, 1.0, kept, "yardstick")]
    lines = BenchmarkResults(rows).table().to_markdown().splitlines()
    words = f"no fair yardstick: Acc_r {100 * kept:.1f}, the original 99.5."
    assert any(words in line for line in lines) is said


def test_latex_and_csv():
    table = BenchmarkResults(ROWS).table()
    assert r"\underline{85.0 $\pm$ 7.1}" in table.to_latex()
    assert r"Acc\_r $\uparrow$" in table.to_latex()
    assert "b,85.0 ± 7.1,0.0 ± 0.0,12.0 ± 2.8,2.0 ± 0.0,2 of 2" in table.to_csv().splitlines()


def test_marks_go_around_what_is_escaped():
    table = Table(["a"], [["x_1*"], ["50%"]], best=[(0, 0)], second=[(1, 0)])
    assert r"| **x_1\*** |" in table.to_markdown()
    assert r"\underline{50\%} \\" in table.to_latex()
    assert table.to_csv() == "a\nx_1*\n50%\n"


def test_request_by_request():
    rows = [row("a", 0, None, 0.9, task=task, tasks=2, h_mean=0.5 * task, final=task == 2) for task in (1, 2)]
    table = BenchmarkResults(rows).task_table()
    assert table.header == ["method", "H, 1 ↑", "Acc_r, 1 ↑", "Acc_f, 1 ↓", "H, 2 ↑", "Acc_r, 2 ↑", "Acc_f, 2 ↓"]
    assert table.rows == [["a", "50.0", "90.0", "0.0", "100.0", "90.0", "0.0"]]


def test_closeness_to_a_retrained_model():
    """Tug-of-war and KL(reference ‖ model), sample by sample in float64."""
    rng = np.random.default_rng(0)
    labels = [np.array([0, 0, 1, 2, 2]), np.array([0, 1, 2])]
    own, reference = ([rng.normal(size=(len(part), 3)) for part in labels] for _ in "ab")
    found = closeness(own, reference, labels, [0])

    def p(logits):
        return np.exp(logits) / np.exp(logits).sum()

    def kl(place, rows):
        each = [np.sum(p(reference[place][r]) * np.log(p(reference[place][r]) / p(own[place][r]))) for r in rows]
        return np.mean(each)

    def accuracy(logits, place, rows):
        return np.mean([logits[place][r].argmax() == labels[place][r] for r in rows])

    parts = {"forget": (0, [0, 1]), "retain": (0, [2, 3, 4]), "test": (1, [0, 1, 2])}
    for name, part in parts.items():
        assert found[f"kl_{name}"] == pytest.approx(kl(*part))
    gaps = [abs(accuracy(own, *part) - accuracy(reference, *part)) for part in parts.values()]
    assert found["tow"] == pytest.approx(np.prod([1 - gap for gap in gaps]))
    same = closeness(own, own, labels, [0])
    assert (same["tow"], same["kl_forget"]) == (1, 0)


def test_attacks_at_the_place_where_they_get_back_most():
    """Means over seeds come first, then the largest: not the largest of every seed. The last lines sum up."""
    figures = {("knn", "all", "block 1"): (50.0, 20.0), ("knn", "all", "block 2"): (60.0, 6.0)}
    rows = [
        {"method": "a", "setting": "one", "seed": seed, "attack": attack, "attack_setting": own, "where": where}
        | {"value": value + seed, "excess": excess - 30 * seed * (where == "block 1")}
        for seed in (0, 1)
        for (attack, own, where), (value, excess) in figures.items()
    ]
    lines = BenchmarkResults(ROWS, attacks=rows).attack_table().to_csv().splitlines()
    assert lines[1:] == ['"knn, all",60.5 (+6.0)', "figures above 5,1 of 2", "largest excess,6.0"]
