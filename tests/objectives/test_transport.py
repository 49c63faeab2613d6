"""Targets by optimal transport: as good as a linear program finds, spread over kept samples, and never drawn."""

import numpy as np
import pytest
import torch
from errors import refused
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog
from scipy.spatial.distance import cdist

from gs_lora_peft.objectives import StateSample, TransportTargets

WEIGHTS = [1.0, 3.0]


def states(count, seed, width=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, width, generator=generator) for _ in WEIGHTS]


def slow_costs(forgotten, kept):
    """In float64, by scipy."""
    pairs = zip(WEIGHTS, forgotten, kept, strict=True)
    return sum(w * cdist(one, other, "sqeuclidean") / one.shape[1] for w, one, other in pairs) / sum(WEIGHTS)


@given(kept=st.integers(4, 12), forgotten=st.integers(2, 10), seed=st.integers(0, 2**20))
@settings(max_examples=25)
def test_the_potentials_are_as_good_as_those_of_a_linear_program(kept, forgotten, seed):
    """The dual value of the potentials is at most the optimum, and near it: the plan is smoothed a little."""
    own, gone = states(kept, seed), states(forgotten, seed + 1)
    costs = slow_costs(gone, own)
    rows, columns = costs.shape
    sums = np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))
    exact = linprog(
        costs.ravel(), A_eq=sums[0], b_eq=np.full(rows, 1 / rows), A_ub=sums[1], b_ub=np.full(columns, 2 / columns)
    ).fun
    found = TransportTargets(own, gone, WEIGHTS).potentials.double().numpy()
    assert (found <= 0).all()
    dual = (costs - found).min(1).mean() + found.sum() * 2 / columns
    assert dual == pytest.approx(exact, abs=0.1 * costs.std())
    assert dual <= exact + 1e-4


def test_targets_are_whole_kept_samples_and_the_same_in_every_batch():
    """All readings of one target are of one sample; a state that was not seen before gets one too."""
    own, gone = states(20, 0), states(12, 1)
    targets = TransportTargets(own, gone, WEIGHTS)
    together = targets.of(gone)
    alone = [targets.of([state[[row]] for state in gone]) for row in range(12)]
    for reading in range(2):
        assert torch.cat([found[reading] for found in alone]).equal(together[reading])
    rows = [
        [(kept == target).all(1).nonzero().item() for target in found]
        for kept, found in zip(own, together, strict=True)
    ]
    assert rows[0] == rows[1]
    assert targets.of(states(1, 9))[0].shape == (1, 3)


def test_a_group_of_like_samples_is_spread():
    """The nearest kept sample would take all of them, and they would be found again as a cluster."""
    own = [torch.arange(10.0)[:, None]] * 2
    gone = [4 + torch.linspace(-0.2, 0.2, 10)[:, None]] * 2
    found = TransportTargets(own, gone, WEIGHTS).of(gone)[0].flatten().tolist()
    assert max(map(found.count, found)) <= 3
    assert max(abs(value - 4) for value in found) <= 4


def test_equal_costs_and_single_samples():
    same = [torch.ones(4, 3)] * 2
    assert TransportTargets(same, same, WEIGHTS).potentials.equal(torch.zeros(4))
    only = TransportTargets(states(1, 0), states(3, 1), WEIGHTS)
    assert only.of(states(2, 2))[1].equal(states(1, 0)[1].expand(2, 3))


@pytest.mark.parametrize(("kept", "forgotten"), [(0, 3), (3, 0)])
def test_a_process_without_samples_is_refused(kept, forgotten):
    name = "kept" if not kept else "forgotten"
    with refused(f"{name} samples in this process", 0):
        TransportTargets(states(kept, 0), states(forgotten, 1), WEIGHTS)


def test_a_sample_of_states_is_bounded_and_drawn_evenly():
    """From all batches, not from the first ones; again the same rows, and torch's generator stays as it is."""
    before = torch.get_rng_state()
    counts = torch.zeros(400)
    drawn = []
    for _ in range(2):
        sample = StateSample(size=100)
        for rows in torch.arange(400.0).split(40):
            sample.add([rows[:, None], -rows[:, None]])
        assert sample.states[0].equal(-sample.states[1])
        drawn.append(sample.states[0].flatten().long())
        counts[drawn[-1]] += 1
    assert len(drawn[0].unique()) == 100
    assert drawn[0].equal(drawn[1])
    halves = [int((drawn[0] < 200).sum()), int((drawn[0] >= 200).sum())]
    assert min(halves) > 30
    assert torch.get_rng_state().equal(before)
    few = StateSample(size=100)
    few.add([torch.arange(3.0)[:, None]])
    assert few.states[0].flatten().tolist() == [0, 1, 2]
