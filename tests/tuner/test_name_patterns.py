"""Patterns in configurations of others: names, quick searches, and those that may not end."""

import re

import pytest
from hypothesis import given, strategies as st

from gs_lora_peft.tuner.targets import is_quick, names_modules

NAMES = st.lists(
    st.text(min_size=1).filter(lambda name: not re.search(r"[\s\x00-\x1f]", name)), min_size=1, max_size=4
)
ENDLESS = ["(a+)+$", "(a|aa)+$", "a?" * 30 + "a" * 30, "(x+x+)+y", ".*" * 6 + "b", "(a){2,}", r"(a)\1", "(a|a)" * 30]


@given(NAMES)
def test_escaped_names_are_names(names):
    """Whatever names a model's modules have, escaped and joined as this package does it, they match themselves."""
    joined = "|".join(map(re.escape, names))
    for pattern in (joined, f"^(?:{joined})", f"^{re.escape(names[0])}"):
        assert names_modules(pattern)
        assert re.fullmatch(pattern, names[0])


@pytest.mark.parametrize(
    "pattern", [*ENDLESS, "", "a|", "a*", "a+", "a?", "[ab]", "a{2}", "(?=a)b", "a\\d", "(a)", None, 3]
)
def test_searches_are_no_names(pattern):
    """Anything that repeats, chooses or looks around is no name."""
    assert not names_modules(pattern)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_what_may_not_end(pattern):
    """The known ways to make a search last for ever."""
    assert not is_quick(pattern)


@pytest.mark.parametrize(
    "pattern", [r".*layers\.(0|1|2)$", r"layers\.[0-5]$", r"^(?!.*head).*fc1$", "ffn", r"h\.(?:0|1)\.mlp\.fc[12]"]
)
def test_what_people_write(pattern):
    """Patterns by which blocks and layers are chosen are taken over from a published run."""
    assert is_quick(pattern)


@given(st.text("ab.*+?()|[]\\{}2,", max_size=14))
def test_quick_is_quick(pattern):
    """What passes as quick is searched for in an instant on a long name, whatever it is made of."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError):
        return
    if is_quick(pattern):
        compiled.fullmatch("a" * 60 + "c")
