"""What the sources of the methods say: their training arguments can be used, and a search stays within the ranges."""

import pytest
from tasks import arguments

from gs_lora_peft.methods import METHODS, get_method

NAMES = [name for name, place in METHODS.items() if ".unlearning." in place]


@pytest.mark.parametrize("name", NAMES)
def test_published_arguments_are_accepted(tmp_path, name):
    """A misspelt one, or an optimizer that does not exist, shows here."""
    args = arguments(tmp_path, name, **get_method(name).published)
    for argument, value in get_method(name).published.items():
        assert getattr(args, argument) == value


@pytest.mark.parametrize("name", NAMES)
def test_a_search_stays_within_the_ranges(name):
    """Three values of each hyper-parameter, and the method takes each of them."""
    for field, values in get_method(name).space.items():
        assert len(set(values)) == 3
        for value in values:
            assert getattr(get_method(name, **{field: value}), field) == value


def test_the_folder_holds_what_the_registry_names():
    assert set(NAMES) == {
        "bad_teacher", "boundary_shrink", "delete", "finetune", "gradient_ascent", "l1_sparse", "lotus",
        "neggrad_plus", "npo", "random_labels", "salun", "simnpo",
    }  # fmt: skip
