"""The figures of the attacks are what their docstrings define, and come the same again; models stay as they are."""

import copy
import math

import numpy as np
import pytest
import torch
from attack_cases import FORGET, KEEP, by_key, context, random, samples, silent
from hypothesis import given, strategies as st
from test_attacks_planted import EVERY, named

from gs_lora_peft.audit.attacks.adapter import AdapterRemoval
from gs_lora_peft.audit.attacks.answers import Answer
from gs_lora_peft.audit.attacks.membership import (
    Membership,
    MembershipClassifier,
    ShadowMembership,
    area,
    balanced,
    signals,
    wins,
)  # fmt: skip
from gs_lora_peft.audit.attacks.patterns import youden
from gs_lora_peft.audit.attacks.verification import Enrolment, Verification
from gs_lora_peft.audit.base import AuditContext, Measurement
from gs_lora_peft.audit.samples import Samples
from gs_lora_peft.audit.statistics import interval_of_hits, interval_of_values
from gs_lora_peft.audit.subjects import EMBEDDING, LOGITS, Subject
from gs_lora_peft.metrics import verification_by_role
from gs_lora_peft.roles import ClassRoles


@pytest.mark.parametrize("attack", EVERY, ids=named)
def test_a_model_stays_as_it_is_and_the_figures_come_again(attack):
    """Whatever was drawn before, and for every model the same keys."""
    subject = silent("permuted")
    state = copy.deepcopy(subject.model.state_dict())
    first = attack.run(subject, context())
    torch.rand(3)
    np.random.rand(3)
    again = attack.run(Subject("forgotten", "forgotten", copy.deepcopy(subject.model)), context())
    assert first == again
    assert all(torch.equal(value, state[name]) for name, value in subject.model.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert not subject.model.training
    keys = [found.key for found in first]
    assert len(set(keys)) == len(keys) > 0
    assert [found.key for found in attack.run(context().references[0], context())] == keys
    for found in first:
        assert found.low <= found.high
        assert Measurement.from_dict(found.to_dict()) == found


# Membership


def test_signals_are_those_of_the_definitions():
    """Against a slow reference, sample by sample."""
    _, judge = samples()
    rows = np.arange(7)
    found = signals(context().original, judge, rows)
    for number, row in enumerate(rows):
        logits = context().original.states(judge)[LOGITS][row].astype(float)
        p, own = np.exp(logits) / np.exp(logits).sum(), judge.labels[row]
        others = [i for i in range(len(p)) if i != own]
        modified = -(1 - p[own]) * math.log(p[own]) - sum(p[i] * math.log(1 - p[i]) for i in others)
        expected = {
            "loss": math.log(p[own]),
            "entropy": sum(q * math.log(q) for q in p),
            "correctness": float(p.argmax() == own),
            "confidence": p.max(),
            "modified entropy": -modified,
        }
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected, abs=1e-6)


def test_members_and_others_are_of_the_same_classes_and_as_many():
    attacker, judge = samples()
    members, others = balanced(context(), FORGET, 60)
    for class_id in FORGET:
        assert (attacker.labels[members] == class_id).sum() == (judge.labels[others] == class_id).sum() == 30


def overfitted():
    """A model that learned its few members by heart, and the audit of it: the attacker's samples are the members."""
    attacker, judge = samples()
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(attacker.of([c]))[:12] for c in (*FORGET, *KEEP)])
    few = Samples(attacker.dataset, attacker.data_collator, rows=rows)
    model = copy.deepcopy(random(8).model).train()
    data = few.batch(np.arange(len(few)))
    data["labels"] = data["labels"][torch.randperm(len(few), generator=torch.Generator().manual_seed(0))]
    few.labels = data["labels"].numpy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(**data).loss.backward()
        optimizer.step()
    subject = Subject("original", "original", model)
    references = [random(5), Subject("a", "retrained", random(6).model), Subject("b", "retrained", random(7).model)]
    return subject, AuditContext(ClassRoles(forget=FORGET, retain=KEEP), few, judge, subject, references)


def test_members_learned_by_heart_are_found_and_random_weights_have_none():
    subject, few = overfitted()
    found = by_key(Membership().run(subject, few))
    nothing = by_key(Membership().run(few.references[0], few))
    for name in ("loss", "correctness", "modified entropy"):
        assert found[name].low > 80
        assert 30 < nothing[name].value < 70  # 24 members
    (by_ratio,) = ShadowMembership().run(subject, few)
    assert by_ratio.low > 80
    (called,) = MembershipClassifier().run(subject, few)
    assert called.value > 80


def test_a_reference_is_no_shadow_of_itself():
    """Its figure does not change when its own place among the references does."""
    (first,) = ShadowMembership().run(context().references[0], context())
    turned = AuditContext(
        context().roles, context().attacker, context().judge, context().original, context().references[::-1],
        context().seed,
    )  # fmt: skip
    (second,) = ShadowMembership().run(context().references[0], turned)
    assert first == second
    assert not ShadowMembership().fits(
        AuditContext(context().roles, *samples(), context().original, context().references[:1])
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_the_area_is_that_of_scikit_learn(members, others):
    from sklearn.metrics import roc_auc_score

    found = area("", wins(np.array(members, dtype=float), np.array(others, dtype=float)))
    labels = [1] * len(members) + [0] * len(others)
    assert found.value == pytest.approx(100 * roc_auc_score(labels, members + others))
    assert -1e-9 <= found.low <= found.high <= 100 + 1e-9


# Embeddings


def test_verification_is_that_of_the_face_audit():
    found = by_key(Verification().run(context().original, context()))
    embeddings, judge = context().original.states(context().judge)[EMBEDDING], context().judge
    expected = verification_by_role(embeddings, judge.labels, forget_classes=FORGET)
    for among, role in (("among the forgotten", "forget"), ("among all", "forget_against_all")):
        for rate in ("0.01", "0.001"):
            of_faces = 100 * expected[role][f"tar_at_far_{rate}"]
            assert found[f"{among}, TAR at FAR {rate}"].value == pytest.approx(of_faces, abs=0.5)


def test_enrolment_names_the_class_with_the_nearest_template():
    attack = Enrolment(shots=(2,), draws=1)
    rows = context().draw(2, FORGET, attack.name, 2, 0)
    enrolled = context().original.states(context().attacker)[EMBEDDING][rows]
    probes = context().original.states(context().judge)[EMBEDDING]
    hits = []
    for row in context().judge.of(FORGET):
        cosines = []
        for class_id in FORGET:
            own = enrolled[context().attacker.labels[rows] == class_id]
            template = np.mean([vector / np.linalg.norm(vector) for vector in own], axis=0)
            cosines.append(probes[row] @ template / np.linalg.norm(template))
        hits.append(FORGET[int(np.argmax(cosines))] == context().judge.labels[row])
    assert attack.run(context().original, context())[0].value == pytest.approx(100 * np.mean(hits))


# One answer for all images, the adapters left off


def test_an_answer_that_is_always_the_same_recovers_nothing():
    labels = np.array([3, 3, 7, 7, 0, 1, 2])
    for class_id in (3, 7, 0):
        assert youden(np.full(7, class_id), labels, 4).mean() == pytest.approx(0)
    assert youden(labels, labels, 4).mean() == pytest.approx(1)
    assert youden(np.array([3, 0, 0, 7, 3, 1, 2]), labels, 4).mean() == pytest.approx(0.5 - (0.2 + 0) / 2)


def test_without_its_adapters_the_forgotten_model_is_the_original():
    (original,) = Answer().run(context().original, context())
    (left,) = AdapterRemoval().run(silent("offset"), context())
    assert left.value == original.value > 90
    (retrained,) = AdapterRemoval().run(context().references[0], context())
    assert retrained.value < 5


# A single forgotten class


def test_a_single_forgotten_class_is_attacked_among_all():
    roles = ClassRoles(forget=FORGET[:1], retain=(*KEEP, FORGET[1]))
    single = AuditContext(roles, *samples(), context().original, context().references)
    for attack in EVERY:
        found = attack.run(context().original, single)
        assert found
        assert not any("among the forgotten" in one.key for one in found)


# Intervals

HITS = st.integers(1, 4).flatmap(
    lambda draws: st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=draws, max_size=draws)
)


@given(HITS)
def test_an_interval_lies_within_what_was_seen_and_around_its_mean(hits):
    array = np.array(hits, dtype=float)
    low, high = interval_of_hits(array)
    assert 0 <= low <= high <= 1
    assert low - 1e-9 <= array.mean() <= high + 1e-9
    assert interval_of_hits(array) == (low, high)
    flipped = interval_of_hits(1 - array)
    assert flipped == pytest.approx((1 - high, 1 - low))
    if array.min() == array.max():
        # Six samples alike do not show that all are: Wilson's interval.
        assert high - low == pytest.approx(1.96**2 / (6 + 1.96**2))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_an_interval_of_values_lies_between_them(values):
    low, high = interval_of_values(np.array(values))
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    if len(set(values)) == 1:
        assert low == pytest.approx(high)


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = interval_of_hits(rng.random((1, 80)) < 0.3, resamples=300)
        covered += low <= 0.3 <= high
    assert 0.87 <= covered / 100 <= 0.99


def test_more_draws_and_samples_narrow_an_interval():
    rng = np.random.default_rng(0)
    few, many = (np.ptp(interval_of_hits(rng.random(shape) < 0.5)) for shape in ((2, 20), (10, 400)))
    assert many < few / 2
