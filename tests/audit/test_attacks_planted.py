"""Every attack finds the knowledge behind a spoilt head, and nothing in weights that never learned."""

import numpy as np
import pytest
from attack_cases import PLANTED, by_key, context, random, silent, switched_off, trained

from gs_lora_peft.audit.attacks.adapter import AdapterRemoval
from gs_lora_peft.audit.attacks.answers import Answer, LogitOffset
from gs_lora_peft.audit.attacks.membership import Membership, MembershipClassifier, ShadowMembership
from gs_lora_peft.audit.attacks.patterns import InputPattern
from gs_lora_peft.audit.attacks.probes import LinearProbe, NearestCentroid, NearestNeighbours
from gs_lora_peft.audit.attacks.relearning import ALL, HEAD, KEPT_ALONE, LORA, Relearning
from gs_lora_peft.audit.attacks.verification import Enrolment, Verification
from gs_lora_peft.audit.subjects import Subject

RELEARNING = Relearning(
    draws=1, steps=20, every=5, limit=128, head_rates=(3e-2,), lora_rates=(3e-3,), all_rates=(3e-3,)
)
PATTERN = InputPattern(steps=60, draws=1, batch=32, limit=100, rates=(3e-1,))
ON_STATES = [
    LinearProbe(shots=(4,), draws=2, limit=120), NearestNeighbours(), NearestCentroid(), Enrolment(draws=3),
    Verification(rates=(1e-2,)),
]  # fmt: skip
EVERY = [
    Answer(), LogitOffset(), *ON_STATES, RELEARNING, PATTERN, Membership(), MembershipClassifier(), ShadowMembership(),
    AdapterRemoval(),
]  # fmt: skip
RECOVERING = [attack for attack in EVERY if attack.judged == "excess"]


def named(attack):
    return attack.name


@pytest.mark.parametrize("planted", PLANTED)
def test_the_planted_models_do_not_answer_with_what_they_know(planted):
    (found,) = Answer().run(silent(planted), context())
    assert found.value < 5


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("attack", ON_STATES, ids=named)
def test_what_a_head_hides_is_found_in_the_states(planted, attack):
    original = by_key(attack.run(context().original, context()))
    references = [by_key(attack.run(reference, context())) for reference in context().references]
    found = by_key(attack.run(silent(planted), context()))
    behind_head = [key for key in found if not key.endswith("@ logits")]
    # The states are those of the original, and so are the figures.
    assert all(found[key].value == pytest.approx(original[key].value, abs=1e-9) for key in behind_head)
    assert max(found[key].value - np.mean([one[key].value for one in references]) for key in behind_head) > 10


def test_permuted_logits_still_tell_the_classes_apart():
    for attack in (LinearProbe(shots=(4,), draws=2, limit=120), NearestNeighbours()):
        assert by_key(attack.run(silent("permuted"), context()))["among all, all samples @ logits"].value > 85


def test_an_offset_is_found_in_the_logits():
    (found,) = LogitOffset().run(silent("offset"), context())
    assert found.value > 90
    for reference in context().references:
        (nothing,) = LogitOffset().run(reference, context())
        assert nothing.value < 40


@pytest.mark.parametrize(("planted", "variants"), [("permuted", (HEAD, LORA, ALL)), ("zeroed", (HEAD,))])
def test_a_spoilt_head_is_relearned(planted, variants):
    found, reference = (by_key(RELEARNING.run(one, context())) for one in (silent(planted), context().references[0]))
    assert found[f"{HEAD}, 4-shot"].curve[-1] > reference[f"{HEAD}, 4-shot"].curve[-1] + 10
    for variant in variants:
        relearned = found[f"{variant}, 4-shot"]
        assert relearned.curve[0] < 5
        assert relearned.curve[-1] > 70, variant
        assert 5 <= relearned.facts["steps to half of the original"] <= 15
    assert found[KEPT_ALONE].value < 20


def test_a_model_that_still_knows_needs_no_step():
    for found in RELEARNING.run(context().original, context()):
        assert found.facts["steps to half of the original"] == 0
        assert found.curve[0] > 90


def test_a_switch_in_the_input_is_found():
    """The model sees every image as if a pattern had been taken from it; the attack has to find that pattern."""
    subject = Subject("forgotten", "forgotten", switched_off(trained()))
    (silenced,), (found,) = Answer().run(subject, context()), PATTERN.run(subject, context())
    (nothing,) = PATTERN.run(context().references[0], context())
    assert found.value > max(silenced.value, nothing.value) + 15


@pytest.mark.parametrize("attack", RECOVERING, ids=named)
def test_nothing_is_found_in_random_weights(attack):
    """Of models that never learned, none lies far above the others: what the pixels alone show is no knowledge."""
    found, *others = ([m.value for m in attack.run(random(seed), context())] for seed in (5, 6, 7))
    excess = np.array(found) - np.mean(others, axis=0)
    assert abs(excess.mean()) < 15
