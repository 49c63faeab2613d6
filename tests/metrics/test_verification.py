"""Verification from pairs of embeddings, against slow loops and hand-made cases."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from errors import refused
from hypothesis import given, settings, strategies as st

from gs_lora_peft.metrics import verification_by_role, verification_scores
from gs_lora_peft.metrics.verification import _pairs_of


def rates_at(threshold, similarities, same):
    """FAR and TAR of one threshold, counted pair by pair."""
    accepted = [similarity >= threshold for similarity in similarities]
    true = sum(a and s for a, s in zip(accepted, same, strict=True)) / sum(same)
    false = sum(a and not s for a, s in zip(accepted, same, strict=True)) / (len(same) - sum(same))
    return false, true


def slow_curve(similarities, same):
    thresholds = [float("inf"), *sorted(set(similarities), reverse=True)]
    return [(threshold, *rates_at(threshold, similarities, same)) for threshold in thresholds]


def slow_eer(similarities, same):
    """Where the straight line between two thresholds crosses FAR = 1 − TAR."""
    curve = slow_curve(similarities, same)
    for (_, far, tar), (_, next_far, next_tar) in pairwise(curve):
        before, after = far + tar - 1, next_far + next_tar - 1
        if before <= 0 <= after:
            return far + (next_far - far) * (-before / (after - before))
    raise AssertionError("a curve from (0, 0) to (1, 1) crosses")


def slow_accuracy(similarities, same, folds):
    """Folds of consecutive pairs of either kind; both kinds count half."""
    kinds = [[i for i, s in enumerate(same) if s == kind] for kind in (True, False)]
    accuracies = []
    for fold in range(folds):
        held = {i for rows in kinds for i in rows[fold * len(rows) // folds : (fold + 1) * len(rows) // folds]}
        others = [i for i in range(len(same)) if i not in held]
        curve = slow_curve([similarities[i] for i in others], [same[i] for i in others])
        threshold = max(curve, key=lambda point: point[2] - point[1])[0]
        far, tar = rates_at(threshold, [similarities[i] for i in sorted(held)], [same[i] for i in sorted(held)])
        accuracies.append((tar + 1 - far) / 2)
    return sum(accuracies) / folds


@pytest.mark.parametrize("seed", range(4))
def test_against_slow_loops(seed):
    """All of it equals counting pair by pair, with ties and with unequal numbers of pairs."""
    random = np.random.default_rng(seed)
    same = random.permutation([True] * 40 + [False] * 120)
    similarities = np.round(random.normal(size=160) + 1.2 * same, seed % 3 + 1)
    found = verification_scores(similarities, same, false_accept_rates=(0.1, 0.02, 1e-3))
    far_tar = [point[1:] for point in slow_curve(similarities.tolist(), same.tolist())]
    for rate in (0.1, 0.02, 1e-3):
        assert found[f"tar_at_far_{rate:g}"] == pytest.approx(max(tar for far, tar in far_tar if far <= rate))
    assert found["eer"] == pytest.approx(slow_eer(similarities.tolist(), same.tolist()))
    assert found["accuracy"] == pytest.approx(slow_accuracy(similarities.tolist(), same.tolist(), 10))
    assert (found["n_same"], found["n_different"]) == (40, 120)


def test_by_hand():
    """Four pairs of one person, four of two; one of the latter looks more alike than one of the former."""
    scores = verification_scores([0.9, 0.8, 0.7, 0.3, 0.5, 0.2, 0.1, 0.0], [True] * 4 + [False] * 4, folds=2)
    assert scores["tar_at_far_0.01"] == scores["tar_at_far_0.001"] == 0.75
    assert scores["eer"] == 0.25
    # First half held out: threshold 0.3 or 0.7 of the others. Second half held out: 0.8 rejects what it should not.
    assert scores["accuracy"] == slow_accuracy([0.9, 0.8, 0.7, 0.3, 0.5, 0.2, 0.1, 0.0], [True] * 4 + [False] * 4, 2)


def test_extremes():
    """Told apart perfectly, not at all (everything equally alike), and the wrong way round."""
    same = [True, False] * 20
    right = verification_scores([float(s) for s in same], same)
    blind = verification_scores([0.5] * 40, same)
    wrong = verification_scores([-float(s) for s in same], same)
    assert (right["accuracy"], right["eer"], right["tar_at_far_0.001"]) == (1, 0, 1)
    assert (blind["accuracy"], blind["eer"], blind["tar_at_far_0.001"]) == (0.5, 0.5, 0)
    assert (wrong["eer"], wrong["tar_at_far_0.01"]) == (1, 0)


def test_too_few_pairs():
    """What cannot be measured is None: everything without both kinds of pairs, the accuracy with fewer than folds."""
    alone = verification_scores([0.9, 0.8], [True, True])
    assert {alone[name] for name in ("accuracy", "eer", "tar_at_far_0.01", "tar_at_far_0.001")} == {None}
    assert (alone["n_same"], alone["n_different"]) == (2, 0)
    few = verification_scores([0.9, 0.8, 0.1], [True, True, False])
    assert few["accuracy"] is None
    assert few["eer"] == 0
    assert verification_scores([], [])["eer"] is None


pairs = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60)


@settings(max_examples=40, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_what_does_not_matter(rows, random):
    """Rates and the EER depend neither on the order of the pairs nor on the units of similarity."""
    names = ["eer", "tar_at_far_0.01", "tar_at_far_0.001", "n_same", "n_different"]
    shuffled = random.sample(rows, len(rows))
    first = verification_scores([s for s, _ in rows], [b for _, b in rows])
    second = verification_scores(torch.tensor([3.0 * s - 1 for s, _ in shuffled]), [int(b) for _, b in shuffled])
    assert [first[name] for name in names] == pytest.approx([second[name] for name in names], nan_ok=False)


def test_roles():
    """Every role's own pairs, by the cosine; lengths of embeddings do not matter."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3, 7], 12)
    centres = random.normal(size=(8, 6))
    embeddings = centres[labels] + 0.8 * random.normal(size=(60, 6))
    found = verification_by_role(
        torch.tensor(embeddings) * torch.rand(60, 1), torch.tensor(labels), forget_classes=[2, 3], old_classes=[7]
    )
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for role, members in {"retain": [0, 1], "forget": [2, 3]}.items():
        rows = [i for i, label in enumerate(labels) if label in members]
        slow = [(unit[i] @ unit[j], labels[i] == labels[j]) for k, i in enumerate(rows) for j in rows[k + 1 :]]
        assert found[role] == pytest.approx(verification_scores([s for s, _ in slow], [b for _, b in slow]))
        assert found[role]["n_same"] == 2 * 12 * 11 / 2
    assert (found["old"]["n_same"], found["old"]["n_different"], found["old"]["eer"]) == (66, 0, None)
    assert found["missing"]["n_same"] == 0
    named = verification_by_role(embeddings, labels, forget_classes=[2], retain_classes=[0])
    assert (named["retain"]["n_same"], named["retain"]["n_different"]) == (66, 0)


def slow_against_all(embeddings, labels, members, scored):
    """Similarities of all pairs with a member in it, person by person, and which show one person."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    of = [i for member in sorted(members) for i, label in enumerate(labels) if label == member]
    others = [i for i, label in enumerate(labels) if label in scored and label not in members]
    slow = [(unit[i] @ unit[j], labels[i] == labels[j]) for k, i in enumerate(of) for j in [*of[k + 1 :], *others]]
    return [s for s, _ in slow], [b for _, b in slow]


@pytest.mark.parametrize(
    ("roles", "scored"),
    [
        ({"forget_classes": [2]}, range(8)),
        ({"forget_classes": [2, 5], "old_classes": [7], "missing_classes": [4]}, range(8)),
        ({"forget_classes": [2], "old_classes": [0, 7], "retain_classes": [1, 3]}, [0, 1, 2, 3, 7]),
    ],
)
def test_forgotten_against_all(roles, scored):
    """One forgotten person is enough: compared with everybody who has a role, and with nobody else, pair by pair."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(8), 7))
    embeddings = random.normal(size=(8, 6))[labels] + 0.8 * random.normal(size=(56, 6))
    found = verification_by_role(embeddings, labels, **roles)
    for role in ("forget", "old"):
        members = roles.get(f"{role}_classes", [])
        slow = slow_against_all(embeddings, labels, members, scored)
        assert found[f"{role}_against_all"] == pytest.approx(verification_scores(*slow))
        assert found[f"{role}_against_all"]["n_same"] == found[role]["n_same"] == 21 * len(members)
    alone = found["forget_against_all"]
    assert alone["n_different"] > 0
    assert None not in alone.values()


def test_drawn_pairs():
    """Of too many pairs as many as asked for are drawn, the same every time; they tell what all pairs do."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(12), 40))
    embeddings = random.normal(size=(12, 6))[labels] + 0.8 * random.normal(size=(480, 6))
    roles = {"forget_classes": [2, 5, 6, 7, 8], "old_classes": [3]}
    everything = verification_by_role(embeddings, labels, **roles)["forget_against_all"]
    assert (everything["n_same"], everything["n_different"]) == (5 * 40 * 39 / 2, 10 * 1600 + 200 * 280)
    drawn = verification_by_role(embeddings, labels, **roles, max_pairs=3000)["forget_against_all"]
    assert (drawn["n_same"], drawn["n_different"]) == (3000, 3000)
    assert drawn["eer"] == pytest.approx(everything["eer"], abs=0.02)
    assert drawn == verification_by_role(embeddings, labels, **roles, max_pairs=3000)["forget_against_all"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=24),
    st.sets(st.integers(0, 5)),
    st.integers(1, 40),
)
def test_every_drawn_pair_is_one_of_all(people, members, most):
    """Of either kind as many pairs as there are or as asked for, none twice; those of one person come first."""
    people = np.array(people, dtype=int)
    of = np.isin(people, sorted(members))
    rows = [i for i in range(len(people)) if of[i]]
    every = {True: set(), False: set()}
    for i in rows:
        for j in range(len(people)):
            if j != i:
                every[bool(people[i] == people[j])].add(frozenset((i, j)))
    first, second = _pairs_of(people, np.flatnonzero(of), np.flatnonzero(~of), most)
    found = [frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    counts = {kind: min(most, len(pairs)) for kind, pairs in every.items()}
    for kind, drawn in ((True, found[: counts[True]]), (False, found[counts[True] :])):
        assert len(drawn) == len(set(drawn)) == counts[kind]
        assert set(drawn) <= every[kind]


def test_drawn_pairs_are_spread():
    """Pairs are drawn over everybody alike, not from the first people of a list."""
    people = np.repeat(np.arange(20), 30)
    first, second = _pairs_of(people, np.arange(600), np.arange(0), 2000)
    same, different = (slice(0, 2000), slice(2000, None))
    # Of 2,000 pairs of one person everybody has 100 on average, with a deviation of 9.
    assert np.abs(np.bincount(people[first[same]], minlength=20) - 100).max() < 50
    # Everybody is on one side or the other of 200 pairs of two people, with a deviation of 13.
    sides = np.concatenate([people[first[different]], people[second[different]]])
    assert np.abs(np.bincount(sides, minlength=20) - 200).max() < 70


def test_who_cannot_be_compared():
    """A single image is no pair of one person, and a person alone in the data has nobody to be compared with."""
    vectors = np.eye(4)
    once = verification_by_role(vectors, [0, 1, 1, 1], forget_classes=[0])["forget_against_all"]
    assert (once["n_same"], once["n_different"], once["eer"]) == (0, 3, None)
    alone = verification_by_role(vectors, [0, 0, 0, 0], forget_classes=[0])["forget_against_all"]
    assert (alone["n_same"], alone["n_different"], alone["eer"]) == (6, 0, None)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (([0.1, 0.2], [True]), "similarities.shape", (2,)),
        (([[0.1]], [[True]]), "similarities.shape", (1, 1)),
        (([0.1, float("inf")], [True, False]), "similarities", float("inf")),
        (([0.1, 0.2], [2, 0]), "same", 2),
    ],
)
def test_bad_pairs(arguments, name, value):
    """The error says what is wrong with the pairs."""
    with refused(name, value):
        verification_scores(*arguments)


def test_nan_is_not_a_similarity():
    """NaN compares with nothing, and so it would be sorted anywhere."""
    with refused("similarities") as error:
        verification_scores([0.1, float("nan")], [True, False])
    assert np.isnan(error.value.value)


def test_bad_settings():
    """Rates are fractions, one fold is none, embeddings belong to labels and have a direction."""
    with refused("false_accept_rates", 5):
        verification_scores([0.1, 0.2], [True, False], false_accept_rates=[5])
    with refused("folds", 1):
        verification_scores([0.1, 0.2], [True, False], folds=1)
    with refused("embeddings.shape", (2, 3)):
        verification_by_role(np.ones((2, 3)), [0, 1, 2], forget_classes=[])
    with refused("embeddings[1]", [0, 0]):
        verification_by_role([[1.0, 0.0], [0.0, 0.0]], [0, 1], forget_classes=[0])
    with refused("old_classes", [0]):
        verification_by_role(np.ones((2, 3)), [0, 1], forget_classes=[0], old_classes=[0])
    with refused("max_pairs", 0):
        verification_by_role(np.ones((2, 3)), [0, 1], forget_classes=[0], max_pairs=0)
