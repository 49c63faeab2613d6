"""The presets of GS-LoRA: their own arguments suit them, others are refused, and they train what their name says."""

import pytest
from errors import refused
from method_trainers import scores_after, trainer_of
from tasks import adapter_state, arguments, differences, knowing_vit, peft_vit, samples, scoring_set

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, GSLoraTrainingArguments
from gs_lora_peft.methods import GSLora, get_method
from gs_lora_peft.objectives import DepthObjective, PrototypeObjective
from gs_lora_peft.training import adapter_of_recipe

PRESETS = ["lora", "gs_lora_published", "gs_lora_pp_published", "gs_lora_deep"]


@pytest.mark.parametrize("name", PRESETS)
def test_its_own_arguments_suit_it(tmp_path, name):
    """They are valid, and go through its check; what the caller says comes last."""
    method = get_method(name)
    args = GSLoraTrainingArguments(**{**method.published, "output_dir": str(tmp_path), "learning_rate": 0.5})
    method.check(args)
    assert args.learning_rate == 0.5
    GSLoraConfig(**method.adapter)


def test_the_constants_of_the_papers(tmp_path):
    """As in the authors' scripts for faces."""
    plain, plus = (
        GSLoraTrainingArguments(output_dir=str(tmp_path), **get_method(name).published) for name in PRESETS[1:3]
    )
    for args in (plain, plus):
        found = args.learning_rate, args.num_train_epochs, args.forget_bound, args.forget_weight, args.sparsity_weight
        assert found == (1e-2, 100, 105.0, 0.2, 1e-4)
        assert (args.sparsity, args.sparsity_until_epoch, args.epoch_covers) == ("penalty", None, "retain")
    assert (plus.prototype_bound, plus.prototype_forget_weight) == (18.0, 0.01)
    assert (plus.ema_decay, plus.ema_start_epoch) == (0.9, 30)
    assert (plain.ema_decay, plain.prototype_forget_weight) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("lora", "sparsity", "proximal"),
        ("gs_lora_published", "sparsity", "proximal"),
        ("gs_lora_published", "forget_loss", "log_odds"),
        ("gs_lora_published", "prototype_forget_weight", 0.1),
        ("gs_lora_published", "ema_decay", 0.9),
        ("gs_lora_published", "depth_weight", 1.0),
        ("gs_lora_pp_published", "prototype_forget_weight", 0.0),
        ("gs_lora_pp_published", "sparsity", "none"),
        ("gs_lora_deep", "depth_weight", 0.0),
    ],
)
def test_arguments_that_contradict_the_name_are_refused(tmp_path, name, argument, value):
    """Ledgers and tables would call another training by that name."""
    own = get_method(name).published if name != "gs_lora_deep" else {}
    with refused(argument, value) as error:
        trainer_of(name, peft_vit(), tmp_path, **{**own, argument: value})
    assert "published" in error.value.fix


def test_plain_lora_is_gs_lora_without_sparsity(tmp_path):
    """To the last bit."""
    models = [peft_vit(), peft_vit()]
    for name, model in zip(("lora", "gs_lora"), models, strict=True):
        trainer_of(name, model, tmp_path, sparsity="none").train()
    assert not differences(*map(adapter_state, models))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lora", {}),
        ("gs_lora_published", {"forget_bound": 9.0, "forget_weight": 0.5}),
        ("gs_lora_pp_published", {"forget_bound": 9.0, "forget_weight": 0.5, "ema_start_epoch": 5}),
        ("gs_lora_deep", {}),
    ],
)
def test_it_forgets_and_keeps(tmp_path, name, changes):
    """With the bound of a plain softmax head, and steps enough."""
    own = {**get_method(name).published, "num_train_epochs": 10, "learning_rate": 5e-2, **changes}
    own |= {"epoch_covers": "both", "per_device_train_batch_size": 4}
    model = peft_vit(r=4, lora_alpha=4) if name == "gs_lora_deep" else peft_vit()
    forgotten, retained = scores_after(trainer_of(name, model, tmp_path, **own))
    assert forgotten < 0.3
    assert retained > 0.9


def test_the_terms_of_the_loss(tmp_path):
    """Prototypes and a moving average with ++, states with depth."""
    plus = trainer_of("gs_lora_pp_published", peft_vit(), tmp_path, **get_method("gs_lora_pp_published").published)
    assert isinstance(plus.task_objective, PrototypeObjective)
    assert plus.method.ema is not None
    deep = trainer_of("gs_lora_deep", peft_vit(), tmp_path, **get_method("gs_lora_deep").published)
    assert isinstance(deep.task_objective, DepthObjective)
    assert isinstance(deep.method, GSLora)
    recipe = adapter_of_recipe("deep")
    assert get_method("gs_lora_deep").adapter == {"r": recipe.r, "lora_alpha": recipe.lora_alpha}


def test_a_run_is_carried_out_by_a_preset(tmp_path):
    """The ledger names it, with the arguments of sparsity, which are its own."""
    args = arguments(tmp_path / "out", max_steps=2, sparsity="none")
    options = {"config": GSLoraConfig(r=2), "args": args, "eval_dataset": scoring_set(), "method": "lora"}
    entry = ContinualForgetter(knowing_vit(), samples(), tmp_path / "run", **options).forget(
        ForgetRequest(["echidna"])
    )
    assert entry.settings["method"] == {"name": "lora"}
    assert entry.settings["training"]["sparsity"] == "none"
