"""A new method is one file and one line: it trains, forgets, is evaluated, resumed, and carries out a run."""

import sys
import textwrap

import pytest
import torch
from errors import refused
from peft import PeftModel
from tasks import (
    adapter_state,
    arguments,
    differences,
    forget_set,
    knowing_vit,
    peft_vit,
    retain_set,
    samples,
    scoring_set,
)

from gs_lora_peft import (
    ContinualForgetter,
    ForgetRequest,
    GSLoraConfig,
    NoStepError,
    OtherSettingsError,
    load_forgotten,
)
from gs_lora_peft.methods import METHODS, get_method
from gs_lora_peft.training import LOSS_OPTIONS, ForgettingTrainer, Method

MODULE = '''
    """NegGrad+ with a pull towards the weights as they were, and a method that edits instead of training."""

    from dataclasses import dataclass

    import torch
    from torch.nn.functional import cross_entropy

    from gs_lora_peft.training import Method


    @dataclass(kw_only=True)
    class NegGrad(Method):
        name = "neggrad"
        share: float = 0.9
        pull: float = 0.0

        def loss(self, model, inputs, output):
            kept, gone = (cross_entropy(*half(inputs, output)) for half in (self.retain_half, self.forget_half))
            loss = self.share * kept - (1 - self.share) * gone
            if self.pull:
                pairs = zip(self.trainer.trained.parameters, self.trainer.trained.start, strict=True)
                loss = loss + self.pull * sum((weight - start).square().sum() for weight, start in pairs)
            return loss


    @dataclass(kw_only=True)
    class Noise(Method):
        name = "noise"
        trains = "weights"
        takes_steps = False
        strength: float = 1.0

        def on_train_begin(self, args, state, control, **kwargs):
            with torch.no_grad():
                for weight in self.trainer.trained.parameters:
                    weight += self.strength * torch.randn_like(weight)
'''


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    (tmp_path / "rivals_of_a_test.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "neggrad", "rivals_of_a_test:NegGrad")
    monkeypatch.setitem(METHODS, "noise", "rivals_of_a_test:Noise")
    yield
    sys.modules.pop("rivals_of_a_test", None)


def trainer_of(method, model, folder, **changes):
    args = arguments(folder, method, **{"eval_strategy": "epoch", "num_train_epochs": 6, **changes})
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set(), "eval_dataset": scoring_set()}
    return ForgettingTrainer(model, args, method=method, **data)


def last_scores(trainer):
    return [row for row in trainer.state.log_history if "eval_loss" in row][-1]


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
def test_it_forgets_and_keeps(tmp_path, build):
    """By an adapter, or by the weights of a model without one."""
    rate = 5e-3 if build is knowing_vit else 5e-2
    trainer = trainer_of(get_method("neggrad"), build(), tmp_path, learning_rate=rate, num_train_epochs=8)
    assert (trainer.trained.adapter is None) == (build is knowing_vit)
    trainer.train()
    scores = last_scores(trainer)
    assert scores["eval_acc_forget"] < 0.3
    assert scores["eval_acc_retain"] > 0.9
    assert scores["eval_drop"] > 0.7


def test_hyper_parameters_are_obeyed(tmp_path):
    """A strong pull leaves the weights near where they were."""
    moved = {}
    for pull in (0.0, 100.0):
        model = knowing_vit()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainer_of(get_method("neggrad", pull=pull), model, tmp_path, learning_rate=1e-3).train()
        moved[pull] = sum((tensor - before[name]).norm() for name, tensor in model.state_dict().items())
    assert moved[100.0] < 0.5 * moved[0.0]


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
def test_it_is_resumed_bit_for_bit(tmp_path, build):
    """Without a line of its own for it."""
    settings = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 3}
    whole, resumed = (
        trainer_of(get_method("neggrad", pull=0.1), build(dropout=0.1), tmp_path / name, **settings)
        for name in ("one", "two")
    )
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-6"))
    assert not differences(whole.model.state_dict(), resumed.model.state_dict())


def test_what_is_logged(tmp_path):
    """Losses of both halves, and norms of the groups of an adapter; nothing of the sparsity that it does not have."""
    trainer = trainer_of(get_method("neggrad"), peft_vit(), tmp_path, logging_strategy="epoch")
    trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    assert {"retain_loss", "forget_loss", "active_groups"} <= row.keys()
    assert "sparsity_term" not in row


def test_a_method_that_edits(tmp_path):
    """No optimizer step is taken; Drop refers to the model before the edit, the scores to the one after it."""
    model = knowing_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = trainer_of(get_method("noise"), model, tmp_path)
    output = trainer.train()
    assert output.global_step == 0
    assert differences(before, model.state_dict())
    assert trainer.accuracy_forget_before == {"eval": 1.0}
    assert last_scores(trainer)["eval_acc_forget"] < 1.0


def test_an_edit_that_changes_nothing_is_an_error(tmp_path):
    """As a training in which the optimizer changes nothing is."""
    with pytest.raises(NoStepError) as caught:
        trainer_of(get_method("noise", strength=0.0), knowing_vit(), tmp_path).train()
    assert caught.value.method == "noise"


def test_a_run_is_carried_out_by_it(tmp_path):
    """It leaves plain LoRA, and the ledger says by which method; another method is another setting."""
    base = knowing_vit()
    args = arguments(tmp_path / "out", "neggrad", num_train_epochs=8, learning_rate=2e-2)

    def forgetter(method):
        options = {"config": GSLoraConfig(r=2), "args": args, "eval_dataset": scoring_set(), "method": method}
        return ContinualForgetter(knowing_vit(), samples(), tmp_path / "run", **options)

    entry = forgetter(get_method("neggrad", share=0.8)).forget(ForgetRequest(["echidna"]))
    assert entry.settings["method"] == {"name": "neggrad", "share": 0.8, "pull": 0.0}
    assert not [name for name in entry.settings["training"] if name.startswith(("sparsity", "ema_"))]  # do not act
    assert entry.scores["after"]["acc_forget"] < 0.3
    model = PeftModel.from_pretrained(base, tmp_path / "run" / "tasks" / "task_001")
    assert any(matrix.any() for matrix in adapter_state(model).values())
    for method in ("gs_lora", get_method("neggrad", share=0.7)):
        with pytest.raises(OtherSettingsError) as error:
            forgetter(method).run([ForgetRequest(["echidna"])])
        assert set(error.value.differences["task_001"]) == {"method"}
    assert len(forgetter(get_method("neggrad", share=0.8)).run([ForgetRequest(["echidna"])])) == 1


def test_a_run_is_carried_out_by_a_method_that_edits(tmp_path):
    """It takes no optimizer step, and its adapter is stored like that of a training."""

    class Edit(Method):
        name = "edit"
        takes_steps = False

        def on_train_begin(self, args, state, control, **kwargs):
            with torch.no_grad():
                for weight in self.trainer.trained.parameters:
                    weight += torch.randn_like(weight)

    options = {"config": GSLoraConfig(r=2), "args": arguments(tmp_path / "out", Edit()), "eval_dataset": scoring_set()}
    forgetter = ContinualForgetter(knowing_vit(), samples(), tmp_path / "run", method=Edit(), **options)
    entry = forgetter.forget(ForgetRequest(["echidna"]))
    assert (entry.sizes["steps"], entry.settings["method"]) == (0, {"name": "edit"})
    assert len(entry.groups["active"]) == 3


def test_a_run_of_gs_lora_records_no_method(tmp_path):
    """Ledgers made before read as they did."""
    args = arguments(tmp_path / "out", max_steps=1)
    forgetter = ContinualForgetter(knowing_vit(), samples(), tmp_path / "run", config=GSLoraConfig(r=2), args=args)
    assert set(forgetter.recipe.settings()) == {"config", "training", "data"}


def test_a_run_of_a_method_that_trains_weights(tmp_path):
    """It leaves the new values of the weights that changed, see tests/runs/test_weights.py."""
    args = arguments(tmp_path / "out", "noise")
    forgetter = ContinualForgetter(knowing_vit(), samples(), tmp_path / "run", args=args, method="noise")
    entry = forgetter.forget(ForgetRequest(["echidna"]))
    assert (entry.leaves_weights, entry.sizes["steps"]) == (True, 0)
    merged = load_forgotten(knowing_vit(), tmp_path / "run")
    assert not differences(merged.state_dict(), forgetter.model.state_dict())


def test_what_is_no_method_is_refused(tmp_path):
    """A trainer takes methods; names are for `get_method`."""
    with refused("method", "neggrad"):
        trainer_of("neggrad", knowing_vit(), tmp_path)


def test_the_earlier_model_answers_while_the_weights_train(tmp_path):
    """Teachers need no copy of the model: the pass in between leaves weights and gradients as they are."""
    seen = []

    class Comparing(Method):
        name = "comparing"
        reads = LOSS_OPTIONS

        def loss(self, model, inputs, output):
            seen.append(self.earlier_logits(model, inputs))
            return output.loss

    class Plain(Method):
        name = "plain"

    results = []
    for method in (Comparing(), Plain()):
        model = knowing_vit()
        trainer = trainer_of(method, model, tmp_path, num_train_epochs=1, learning_rate=1e-2)
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            expected = model.eval()(pixel_values=batch["pixel_values"]).logits
        trainer.train()
        results.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert not differences(*results)
    torch.testing.assert_close(seen[0], expected)
