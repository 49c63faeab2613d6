"""A class has one role, and the roles of a task are checked where they come in."""

import pickle
from dataclasses import FrozenInstanceError
from itertools import combinations

import numpy as np
import pytest
import torch
from errors import refused
from hypothesis import given, strategies as st

from gs_lora_peft.roles import ClassRoles, SharedClassesError, class_ids

ROLES = ("forget", "retain", "old", "missing")
IDS = st.lists(st.integers(0, 30), max_size=12)


@st.composite
def disjoint(draw):
    """Ids of each role in any order, some twice."""
    role_of = draw(st.dictionaries(st.integers(0, 10**6), st.sampled_from(ROLES), max_size=15))
    return {
        role: draw(st.permutations([c for c in role_of if role_of[c] == role] * draw(st.integers(1, 2))))
        for role in ROLES
    }


@given(classes=disjoint())
def test_disjoint_roles_are_accepted_in_any_order(classes):
    roles = ClassRoles(**classes)
    assert roles.as_dict() == {role: tuple(sorted(set(ids))) for role, ids in classes.items()}
    assert roles == ClassRoles(**{role: ids[::-1] for role, ids in classes.items()})
    assert hash(roles) == hash(pickle.loads(pickle.dumps(roles)))
    assert roles.as_keywords() == {f"{role}_classes": sorted(set(ids)) for role, ids in classes.items()}


@given(
    classes=disjoint(),
    pair=st.sampled_from(list(combinations(ROLES, 2))),
    extra=st.sets(st.integers(0, 9), min_size=1),
)
def test_an_overlap_is_refused_and_names_roles_and_classes(classes, pair, extra):
    shared = sorted(10**6 + 1 + item for item in extra)
    for role in pair:
        classes[role] = [*shared, *classes[role]]
    with refused(f"{pair[1]}_classes", shared, SharedClassesError) as error:
        ClassRoles(**classes)
    assert error.value.roles == pair
    assert all(f"`{role}`" in error.value.expected for role in pair)
    again = pickle.loads(pickle.dumps(error.value))
    assert (again.roles, again.value, str(again)) == (pair, shared, str(error.value))


@given(ids=st.fixed_dictionaries(dict.fromkeys(ROLES, IDS)))
def test_any_four_lists_are_disjoint_or_refused(ids):
    shared = [set(ids[a]) & set(ids[b]) for a, b in combinations(ROLES, 2)]
    if any(shared):
        with pytest.raises(SharedClassesError) as error:
            ClassRoles(**ids)
        first, second = error.value.roles
        assert error.value.value == sorted(set(ids[first]) & set(ids[second])) != []
    else:
        assert ClassRoles(**ids).as_dict() == {role: tuple(sorted(set(ids[role]))) for role in ROLES}


@given(classes=disjoint(), role=st.sampled_from(ROLES), present=st.sets(st.integers(0, 50)))
def test_the_rest_takes_one_role(classes, role, present):
    before = ClassRoles(**classes)
    after = before.with_rest(role, present)
    rest = present.difference(*classes.values())
    assert after.as_dict() == {**before.as_dict(), role: tuple(sorted({*classes[role], *rest}))}


def test_retain_may_be_left_to_the_rest():
    assert ClassRoles.of([0], [1], [2], present=range(5)) == ClassRoles([0], [3, 4], [1], [2])
    assert ClassRoles.of([0], retain=[4], present=range(5)) == ClassRoles([0], [4])
    assert ClassRoles.of([0], retain=[], present=range(5)) == ClassRoles([0])


@pytest.mark.parametrize(
    "given_ids",
    [
        np.array([5, 2]),
        np.array([5, 2], np.uint8),
        [np.int64(5), 2],
        torch.tensor([5, 2]),
        {2, 5},
        iter((5, 2)),
        (5, 2, 5),
    ],
    ids=lambda given_ids: type(given_ids).__name__,
)
def test_ids_of_every_kind_become_integers(given_ids):
    found = ClassRoles(forget=given_ids).forget
    assert found == (2, 5)
    assert {type(class_id) for class_id in found} == {int}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("bad", [-1, np.int64(-1), 1.5, np.float32(2), True, np.bool_(True), "cat", None, (1,)])
@pytest.mark.parametrize("kind", [list, set, iter])
def test_what_is_not_an_id_is_refused(role, bad, kind):
    classes = kind([bad]) if kind is set else kind([3, bad])
    with refused(f"{role}_classes[{0 if kind is set else 1}]", bad):
        ClassRoles(**{role: classes})


@pytest.mark.parametrize("bad", ["cat", b"cat", 3, None, {"cat": 3}])
def test_what_is_not_a_list_is_refused(bad):
    with refused("old_classes", bad):
        ClassRoles(old=bad)
    with refused("mine", bad):
        class_ids("mine", bad)


def test_roles_do_not_change():
    with pytest.raises(FrozenInstanceError):
        ClassRoles([1]).forget = (2,)
