"""Every attack finds knowledge behind a spoilt head, and nothing in weights that never learned."""

import copy

import numpy as np
import pytest
import torch
from attack_cases import (
    CLASSES, FORGET, KEEP, PLANTED, by_key, collated, context_of, digits, offset, trained, untrained,
)  # fmt: skip

from gs_lora_peft.audit.attacks.adapter import AdapterRemoval
from gs_lora_peft.audit.attacks.answers import Answer, LogitOffset
from gs_lora_peft.audit.attacks.membership import Membership, MembershipClassifier, ShadowMembership
from gs_lora_peft.audit.attacks.patterns import InputPattern
from gs_lora_peft.audit.attacks.probes import LinearProbe, NearestCentroid, NearestNeighbours
from gs_lora_peft.audit.attacks.relearning import ALL, HEAD, KEPT_ALONE, LORA, Relearning
from gs_lora_peft.audit.attacks.verification import Enrolment, Verification
from gs_lora_peft.audit.samples import Samples
from gs_lora_peft.audit.subjects import Subject

FEW = Relearning(draws=1, steps=12, every=4, head_rates=(3e-2,), lora_rates=(3e-3,), all_rates=(1e-3,))
PATTERN = InputPattern(steps=40, draws=1, batch=32, rates=(1e-1,))
ON_STATES = [
    LinearProbe(shots=(4,), draws=3), NearestNeighbours(), NearestCentroid(), Enrolment(draws=3), Verification(),
]  # fmt: skip
EVERY = [
    Answer(), LogitOffset(), *ON_STATES, FEW, PATTERN, Membership(), MembershipClassifier(), ShadowMembership(),
    AdapterRemoval(),
]  # fmt: skip


@pytest.fixture(scope="module")
def samples():
    attacker, judge = digits()
    return Samples(attacker, collated), Samples(judge, collated)


@pytest.fixture(scope="module")
def subjects(samples):
    """The original, and two models that were trained without the forgotten classes."""
    attacker, _ = samples
    return (
        Subject("original", "original", trained(attacker, tuple(CLASSES))),
        *(Subject(f"retrained {n}", "retrained", trained(attacker, KEEP, seed=n)) for n in (1, 2)),
    )


@pytest.fixture(scope="module")
def context(samples, subjects):
    original, *references = subjects
    return context_of(*samples, original, references)


@pytest.fixture(scope="module")
def silent(subjects):
    """Models that know the forgotten classes, and do not answer with them."""
    made = {name: spoilt(subjects[0].model) for name, spoilt in PLANTED.items()}
    return {name: Subject("forgotten", "forgotten", model) for name, model in made.items()}


@pytest.fixture(scope="module")
def never_learned(subjects):
    return [Subject(f"random {seed}", "random", untrained(seed)) for seed in (5, 6)]


def named(attack):
    return attack.name


@pytest.mark.parametrize("planted", PLANTED)
def test_the_planted_models_do_not_answer_with_what_they_know(context, silent, planted):
    (found,) = Answer().run(silent[planted], context)
    assert found.value < 5


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("attack", ON_STATES, ids=named)
def test_what_a_head_hides_is_found_in_the_states(context, silent, planted, attack):
    original = by_key(attack.run(context.original, context))
    references = [by_key(attack.run(reference, context)) for reference in context.references]
    found = by_key(attack.run(silent[planted], context))
    behind_head = [key for key in found if not key.endswith("@ logits")]
    # The states are those of the original, and so are the figures.
    assert all(found[key].value == pytest.approx(original[key].value, abs=1e-9) for key in behind_head)
    excess = max(found[key].value - np.mean([one[key].value for one in references]) for key in behind_head)
    assert excess > 10


def test_an_offset_is_found_in_the_logits(context, silent):
    (found,) = LogitOffset().run(silent["offset"], context)
    assert found.value > 90
    for reference in context.references:
        (nothing,) = LogitOffset().run(reference, context)
        assert nothing.value < 40


@pytest.mark.parametrize("planted", PLANTED)
def test_a_spoilt_head_is_relearned_at_once(context, silent, planted):
    found = by_key(FEW.run(silent[planted], context))
    for variant in (HEAD, LORA, ALL):
        key = f"{variant}, 4-shot"
        # An offset of a thousand logits is out of reach of a few small steps of the whole model.
        if planted == "permuted":
            assert found[key].value > 60, key
            assert found[key].curve[0] < 5
            assert found[key].curve[-1] > 80
            assert 4 <= found[key].facts["steps to half of the original"] <= 8
    assert found[KEPT_ALONE].value < 20
