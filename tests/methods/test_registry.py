"""Methods by name."""

from dataclasses import dataclass

import pytest
from errors import refused

from gs_lora_peft.methods import METHODS, GSLora, get_method
from gs_lora_peft.training import Method


@pytest.mark.parametrize("name", METHODS)
def test_every_line_leads_to_a_method_of_that_name(name):
    """The name in the registry is the one in ledgers; a mistyped line shows here."""
    method = get_method(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert method.settings()["name"] == name


def test_a_name_that_does_not_exist():
    """The names that do are listed."""
    with refused("method", "gslora") as error:
        get_method("gslora")
    assert all(name in error.value.expected for name in METHODS)


def test_a_hyper_parameter_that_does_not_exist():
    """Ignored it would look as if it worked."""
    with refused("hyper-parameter of 'ffn'", "sparsity"):
        get_method("ffn", sparsity=1)


@dataclass(kw_only=True)
class Toy(Method):
    name = "toy"
    share: float = 0.5


def test_a_method_is_given_back_as_it_is():
    """What takes a name takes a method, too."""
    toy = Toy(share=0.25)
    assert get_method(toy) is toy
    assert toy.settings() == {"name": "toy", "share": 0.25}


def test_two_trainers_do_not_share_what_a_method_keeps():
    """Hooks keep state on the method: each trainer has its own copy, with the same hyper-parameters."""
    toy = Toy(share=0.25)
    one, other = toy.of(object()), toy.of(object())
    one.kept = 1
    assert not hasattr(other, "kept")
    assert not hasattr(toy, "trainer")
    assert (one.share, one.trainer) != (other.share, other.trainer)
    assert one.share == other.share == 0.25


def test_gs_lora_has_no_hyper_parameters_of_its_own():
    """They are arguments of the trainer, which ledgers record already."""
    assert GSLora().settings() == {"name": "gs_lora"}


def test_a_method_that_could_train_an_adapter_is_set_to_weights():
    """Also the copy that a trainer works with, and the same hyper-parameters."""
    method = get_method("npo", beta=0.2)
    chosen = method.on_weights()
    assert (method.trains, chosen.trains, chosen.beta) == ("any", "weights", 0.2)
    assert chosen.of(object()).trains == "weights"
    with refused("method", "gs_lora"):
        get_method("gs_lora").on_weights()
