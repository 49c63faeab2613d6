"""Between two steps: the proximal step and what it freezes, and the moving average."""

from types import SimpleNamespace

import pytest
import torch
from errors import refused
from tasks import adapter_state, arguments, differences, peft_vit, scoring_set, trainer_for, two_adapters
from transformers import TrainerCallback

from gs_lora_peft import LoraGroups
from gs_lora_peft.methods import EMACallback, SparsityCallback


class Watch(TrainerCallback):
    """The adapter before and after each optimizer step, the learning rate it used, and the epoch it began at.

    It is called before the trainer's own callbacks, so that `after` is what the optimizer alone has done.
    """

    def __init__(self, model):
        self.model = model
        self.before, self.after, self.final, self.rates, self.epochs = [], [], [], [], []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.before.append(adapter_state(self.model))
        self.epochs.append(state.epoch or 0.0)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.after.append(adapter_state(self.model))
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        self.final.append(adapter_state(self.model))


def watch(model, folder, **settings):
    watcher = Watch(model)
    kwargs = settings.pop("kwargs", {})
    trainer = trainer_for(model, folder, kwargs={**kwargs, "callbacks": [watcher]}, **settings)
    trainer.train()
    return trainer, watcher


def shrunk(state, step: float):
    """The proximal step of block-wise group lasso, written down matrix by matrix in float64."""
    blocks = {}
    for name in state:
        blocks.setdefault(name.split(".layers.")[1].split(".")[0], []).append(name)
    result = {}
    for names in blocks.values():
        entries = sum(state[name].numel() for name in names)
        norm = sum(state[name].double().square().sum() for name in names).sqrt()
        factor = max(0.0, 1.0 - step * entries**0.5 / norm.item())
        result.update({name: state[name].double() * factor for name in names})
    return result


# The proximal step


def test_proximal_step_follows_the_optimizers_with_its_learning_rate(tmp_path):
    """g ← max(0, 1 − lr·α·√n/‖g‖)·g with the rate just used, while the schedule changes it every step."""
    _, watcher = watch(peft_vit(), tmp_path, sparsity_weight=0.3, warmup_steps=2)
    assert len(set(watcher.rates)) > 10
    assert watcher.rates[0] == 0.0
    for after, final, rate in zip(watcher.after, watcher.final, watcher.rates, strict=True):
        for name, expected in shrunk(after, 0.3 * rate).items():
            torch.testing.assert_close(final[name].double(), expected, rtol=1e-5, atol=1e-7)


def test_groups_may_have_learning_rates_of_their_own(tmp_path):
    """With one parameter group per block each group is shrunk by its own rate."""
    model = peft_vit()
    groups = LoraGroups(model)
    by_rate = [
        {"params": [p for p, g in zip(groups.parameters, groups.group_of, strict=True) if g == index], "lr": rate}
        for index, rate in enumerate((1e-3, 2e-3, 0.0))
    ]
    optimizer = torch.optim.SGD(by_rate)
    before = groups.norms()
    SparsityCallback(groups).on_optimizer_step(
        arguments(tmp_path, sparsity_weight=0.5), SimpleNamespace(epoch=0.0), SimpleNamespace(), optimizer=optimizer
    )
    lost = (before - groups.norms()) / torch.tensor(groups.sizes).sqrt()
    torch.testing.assert_close(lost, 0.5 * torch.tensor([1e-3, 2e-3, 0.0]), rtol=1e-3, atol=1e-6)


def test_no_proximal_step_where_the_scaler_skipped_the_optimizers(tmp_path, monkeypatch):
    """fp16: where gradients overflow the optimizer does nothing, and neither may the proximal step."""
    from accelerate.optimizer import AcceleratedOptimizer

    skipped = iter([False, True, True, False] * 3)
    state = {"skip": False}
    original = AcceleratedOptimizer.step

    def step(self, closure=None):
        state["skip"] = next(skipped)
        if not state["skip"]:
            original(self, closure)

    monkeypatch.setattr(AcceleratedOptimizer, "step", step)
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda self: state["skip"]))
    _, watcher = watch(peft_vit(), tmp_path, sparsity_weight=0.3)
    for position, (before, final) in enumerate(zip(watcher.before, watcher.final, strict=True)):
        changed = differences(before, final)
        assert bool(changed) == (position % 4 in (0, 3)), position


@pytest.mark.parametrize("bounded_by", ["epochs", "steps"])
def test_sparsity_acts_from_the_warm_up_to_the_refit(tmp_path, bounded_by):
    """α is 0 before `sparsity_warmup_epochs` and from `sparsity_until_epoch` on, however the run's length is given."""
    length = {"num_train_epochs": 4} if bounded_by == "epochs" else {"max_steps": 16}
    settings = {"sparsity_weight": 0.2, "sparsity_warmup_epochs": 1, "sparsity_until_epoch": 2.5}
    _, watcher = watch(peft_vit(), tmp_path, **settings, **length)
    acted = [bool(differences(after, final)) for after, final in zip(watcher.after, watcher.final, strict=True)]
    assert acted == [1 <= epoch < 2.5 for epoch in watcher.epochs]
    assert sum(acted) == 6


def test_alpha_rises_after_the_warm_up(tmp_path):
    """Linearly from 0 over `sparsity_ramp_epochs`: a fresh adapter has time to learn before it is judged."""
    settings = {"sparsity_weight": 0.2, "sparsity_warmup_epochs": 0.5, "sparsity_ramp_epochs": 2}
    _, watcher = watch(peft_vit(), tmp_path, **settings)
    for after, final, rate, epoch in zip(watcher.after, watcher.final, watcher.rates, watcher.epochs, strict=True):
        weight = 0.2 * min(max((epoch - 0.5) / 2, 0.0), 1.0)
        for name, expected in shrunk(after, weight * rate).items():
            torch.testing.assert_close(final[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert {0.0, 0.75, 1.5, 2.75} <= set(watcher.epochs)


def test_penalty_follows_the_same_epochs(tmp_path):
    """With sparsity='penalty' the term is in the loss between the same two epochs, and nothing is frozen."""
    losses = {}
    for weight in (0.0, 1.0):
        trainer, _ = watch(
            peft_vit(),
            tmp_path,
            sparsity="penalty",
            sparsity_weight=weight,
            sparsity_warmup_epochs=1,
            sparsity_ramp_epochs=1,  # of the proximal step alone
            sparsity_until_epoch=2,
            logging_strategy="steps",
            logging_steps=1,
            learning_rate=1e-12,
        )
        losses[weight] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    norms = trainer.groups.norms().sum().item()
    gained = [with_it - without for with_it, without in zip(losses[1.0], losses[0.0], strict=True)]
    assert gained == pytest.approx([0.0] * 4 + [norms] * 4 + [0.0] * 4, abs=1e-4)


# Groups that reach zero

DYING = {
    "sparsity_weight": 0.9,
    "sparsity_until_epoch": 2,
    "learning_rate": 3e-2,
    "num_train_epochs": 5,
    "lr_scheduler_type": "constant",
}


def dying_task(folder, model, **changes):
    """A run in which two of the three groups reach zero in the second of five epochs."""
    return trainer_for(model, folder, **{**DYING, **changes})


def lora_a_calls(model, adapter="default"):
    calls = []
    for path, module in model.named_modules():
        if path.endswith(f"lora_A.{adapter}"):
            module.register_forward_hook(lambda *_, path=path: calls.append(path))
    return calls


def test_dropped_groups_stay_zero_get_no_gradient_and_cost_no_forward(tmp_path):
    """From the step that drops a group: exactly zero, requires_grad False, no gradient, its lora_A is never called."""
    model = peft_vit()
    trainer = dying_task(tmp_path, model)
    calls = lora_a_calls(model)
    dead, seen = set(), []

    class Check(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            for name in dead:
                assert not any(f".{name}." in path for path in calls)
                for parameter in members(name):
                    assert parameter.grad is None
                    assert not parameter.requires_grad
                    assert torch.count_nonzero(parameter) == 0
            calls.clear()

        def on_step_end(self, args, state, control, **kwargs):
            dead.update(trainer.groups.zero_groups())
            seen.append(len(dead))

    def members(name):
        index = trainer.groups.names.index(name)
        return [p for p, g in zip(trainer.groups.parameters, trainer.groups.group_of, strict=True) if g == index]

    trainer.add_callback(Check())
    trainer.train()
    assert seen[0] == 0
    assert seen[-1] == 2
    assert set(trainer.groups.zero_groups()) == dead
    assert seen.index(seen[-1]) < len(seen) - 2  # momentum has had steps to bring them back


def test_the_model_is_an_ordinary_one_again_after_training(tmp_path):
    """Thawed at the end: every matrix trains as before, every layer has its adapter, zero stays zero."""
    model = peft_vit()
    trainer = dying_task(tmp_path, model)
    trainer.train()
    assert trainer.groups.zero_groups()
    assert all(p.requires_grad for p in trainer.groups.parameters)
    calls = lora_a_calls(model)
    model(pixel_values=torch.zeros(1, 3, 8, 8))
    assert len(calls) == 6


def test_training_on_keeps_zero_groups_zero(tmp_path):
    """A second run, by the same trainer with its momentum or by a new one, leaves out what was dropped."""
    model = peft_vit()
    trainer = dying_task(tmp_path, model)
    trainer.train()
    zero = set(trainer.groups.zero_groups())
    before = adapter_state(model)
    for again in (trainer, trainer_for(model, tmp_path, num_train_epochs=1)):
        again.train()
        assert set(again.groups.zero_groups()) >= zero
    assert differences(before, adapter_state(model))


def test_an_interrupted_run_leaves_an_ordinary_model(tmp_path):
    """Whatever stops a run, frozen groups are thawed and evaluation scores the model's own weights."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 18:
                raise KeyboardInterrupt

    model = peft_vit()
    trainer = dying_task(tmp_path, model, ema_decay=0.9)
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.groups.zero_groups()
    assert all(p.requires_grad for p in trainer.groups.parameters)
    left, scored = adapter_state(model), []
    model.get_base_model().register_forward_hook(lambda *_: scored.append(adapter_state(model)))
    trainer.score(scoring_set())
    assert not differences(left, scored[0])


def test_when_groups_are_frozen_does_not_change_the_result(tmp_path, monkeypatch):
    """On accelerators groups are frozen a step later, to save a synchronisation; weights are the same bit for bit."""
    states = []
    for often in (True, False):
        monkeypatch.setattr(SparsityCallback, "_synchronises_for_free", lambda self, often=often: often)
        model = peft_vit()
        # The very last proximal step drops a group, which the optimizer's momentum would move away from zero again.
        trainer = dying_task(tmp_path, model, sparsity_until_epoch=1.25)
        trainer.train()
        assert trainer.groups.zero_groups()
        states.append(adapter_state(model))
    assert not differences(*states)


def test_off_the_cpu_groups_are_frozen_before_the_next_optimizer_step(tmp_path, monkeypatch):
    """No log and no save is needed for it: a group dropped at one step takes no part from the next one's end on."""
    monkeypatch.setattr(SparsityCallback, "_synchronises_for_free", lambda self: False)
    late = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            norms = zip(trainer.groups.names, trainer.groups.norms().tolist(), strict=True)
            self.zero = {name for name, norm in norms if norm == 0}

        def on_step_end(self, args, state, control, **kwargs):
            alive = {
                g for p, g in zip(trainer.groups.parameters, trainer.groups.group_of, strict=True) if p.requires_grad
            }
            late.extend(self.zero & {trainer.groups.names[g] for g in alive})
            self.seen = len(self.zero)

    trainer = dying_task(tmp_path, peft_vit(), logging_strategy="no")
    look = Look()
    trainer.add_callback(look)
    trainer.train()
    assert look.seen
    assert not late


def test_a_matrix_that_is_not_in_the_optimizer_is_refused(tmp_path):
    """Its learning rate would count as 0, so that its whole group would never shrink."""
    groups = LoraGroups(peft_vit())
    optimizer = torch.optim.SGD(groups.parameters[:-1], lr=1e-3)
    with refused("optimizer", optimizer):
        SparsityCallback(groups).on_optimizer_step(
            arguments(tmp_path, sparsity_weight=0.5),
            SimpleNamespace(epoch=0.0),
            SimpleNamespace(),
            optimizer=optimizer,
        )
    groups.parameters[-1].requires_grad_(False)
    SparsityCallback(groups)._learning_rates(optimizer)


def test_the_last_group_lives_and_forgets(tmp_path):
    """However strong the sparsity: an adapter without any group would leave the request undone."""
    settings = {"sparsity_until_epoch": 2, "forget_weight": 2.0, "learning_rate": 3e-2, "num_train_epochs": 20}
    trainer = trainer_for(peft_vit(r=8), tmp_path, sparsity_weight=30.0, **settings)
    trainer.train()
    assert len(trainer.groups.active_groups()) == 1
    assert trainer.score(scoring_set())["acc_forget"] < 0.1


def test_an_adapter_of_zeros_does_not_train_and_says_so(tmp_path, caplog):
    """Nothing is left to train: no crash in the backward, a warning, and what was known is known."""
    model = peft_vit()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.zeros_(parameter)
    trainer = trainer_for(model, tmp_path, sparsity_weight=0.5, logging_strategy="epoch")
    trainer.train()
    assert trainer.state.global_step == 1
    assert "Every group of the adapter is zero" in caplog.text
    assert trainer.groups.zero_group_ratio() == 1.0
    assert trainer.score(scoring_set())["acc_forget"] > 0.9


@pytest.mark.parametrize("group_by", ["module", "matrix"])
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_finer_groups_train(tmp_path, group_by, warmup_steps):
    """By matrix every fresh lora_B is zero: it must not be taken for dropped, nor be dropped by a step of rate 0."""
    model = peft_vit(group_by=group_by)
    trainer = trainer_for(model, tmp_path, sparsity_weight=0.05, warmup_steps=warmup_steps)
    assert len(trainer.groups) == {"module": 6, "matrix": 12}[group_by]
    trainer.train()
    assert trainer.groups.zero_groups() == []


def test_an_earlier_frozen_task_keeps_its_weights_and_its_place(tmp_path):
    """With a frozen active adapter next to the one that trains, only the latter is grouped, dropped and thawed."""
    model = two_adapters()
    before = adapter_state(model)
    trainer = dying_task(tmp_path, model)
    calls = lora_a_calls(model, "task_001")
    trainer.train()
    after = adapter_state(model)
    assert all(".task_002." in name for name in differences(before, after))
    assert trainer.groups.zero_groups()
    assert len(calls) == 6 * trainer.state.global_step
    assert list(model.base_model.active_adapters) == ["task_001", "task_002"]
    assert all(list(layer.active_adapters) == ["task_001", "task_002"] for layer in trainer.groups._layers.values())


# The moving average


def closed_form(states, decay, start):
    """ē = d^k·w_0 + (1−d)·Σ d^(k−i)·w_i in float64, over the epochs from `start` on."""
    states = states[start:]
    last = len(states) - 1
    weights = [decay**last] + [(1 - decay) * decay ** (last - i) for i in range(1, last + 1)]
    return {
        name: sum(weight * state[name].double() for weight, state in zip(weights, states, strict=True))
        for name in states[0]
    }


class EpochEnds(TrainerCallback):
    """The weights that train at the end of each epoch."""

    def __init__(self, model):
        self.model, self.states = model, []

    def on_epoch_end(self, args, state, control, **kwargs):
        self.states.append(adapter_state(self.model))


@pytest.mark.parametrize(("decay", "start_epoch", "first"), [(0.9, 0, 0), (0.5, 3, 2), (0.3, 2.5, 2)])
def test_average_is_the_closed_form_and_is_what_the_model_ends_with(tmp_path, decay, start_epoch, first):
    """Updated once an epoch, from the weights at the end of `ema_start_epoch` on; left in the model at the end."""
    model = peft_vit()
    ends = EpochEnds(model)
    trainer_for(
        model, tmp_path, kwargs={"callbacks": [ends]}, ema_decay=decay, ema_start_epoch=start_epoch, num_train_epochs=5
    ).train()
    for name, expected in closed_form(ends.states, decay, first).items():
        torch.testing.assert_close(adapter_state(model)[name].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("start_epoch", "first"), [(0, 0), (1.5, 5)])
def test_average_by_step_is_the_closed_form(tmp_path, start_epoch, first):
    """`ema_update="step"`: every optimizer step counts, after its proximal step, from `ema_start_epoch` on."""
    model = peft_vit()
    trainer, watcher = watch(
        model, tmp_path, ema_decay=0.8, ema_update="step", ema_start_epoch=start_epoch, sparsity_weight=0.2
    )
    assert len(watcher.final) == trainer.state.global_step == 12
    for name, expected in closed_form(watcher.final, 0.8, first).items():
        torch.testing.assert_close(adapter_state(model)[name].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ema_start_epoch", {"ema_decay": 0.9, "ema_start_epoch": 2}),
        ("ema_start_epoch", {"ema_decay": 0.9, "ema_start_epoch": 1.5}),
        ("sparsity_warmup_epochs", {"sparsity_warmup_epochs": 2}),
    ],
)
def test_what_lies_behind_the_last_of_so_many_steps_is_refused(tmp_path, name, settings):
    """With `max_steps` only the data says how many epochs there are; nothing is trained before that is asked."""
    model = peft_vit()
    before = adapter_state(model)
    trainer = trainer_for(model, tmp_path, max_steps=6, **settings)
    with refused(name, settings[name]) as error:
        trainer.train()
    assert "the 1.5 epochs" in error.value.expected
    assert trainer.state.global_step == 0
    assert not differences(before, adapter_state(model))


def test_epochs_of_so_many_steps_are_counted_by_batches(tmp_path):
    """Six batches an epoch, four a step: two steps make an epoch, and a third one ends at 1.67, not at 1.5."""
    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "max_steps": 3, "ema_decay": 0.5}
    trainer = trainer_for(peft_vit(), tmp_path, ema_start_epoch=1.6, **settings)
    trainer.train()
    assert trainer.ema.average is not None
    trainer = trainer_for(peft_vit(), tmp_path, ema_start_epoch=trainer.state.epoch, **settings)
    with refused("ema_start_epoch") as error:
        trainer.train()
    assert "the 1.66667 epochs" in error.value.expected


def test_average_is_evaluated_and_does_not_disturb_training(tmp_path):
    """Evaluation sees the average, the next step goes on from the weights that train."""
    kept = []

    class Spy(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            kept.append(adapter_state(model))

    plain, runs = peft_vit(), []
    trainer_for(plain, tmp_path).train()
    model = peft_vit()
    trainer = trainer_for(
        model,
        tmp_path,
        kwargs={"eval_dataset": scoring_set(), "callbacks": [Spy()]},
        ema_decay=0.9,
        eval_strategy="epoch",
    )
    original = trainer.prediction_step
    trainer.prediction_step = lambda *args, **kwargs: (runs.append(adapter_state(model)), original(*args, **kwargs))[1]
    trainer.train()
    assert differences(runs[-1], kept[-1])
    assert not differences(runs[-1], adapter_state(model))
    assert differences(adapter_state(plain), adapter_state(model))
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged["eval_loss"], rel=1e-6)


def test_a_dropped_group_is_zero_in_the_average(tmp_path):
    """The average remembers a group's past; what was dropped must not come back through it."""
    model = peft_vit()
    trainer = dying_task(tmp_path, model, ema_decay=0.9)
    trainer.train()
    zero = trainer.groups.zero_groups()
    assert 0 < len(zero) < 3
    for name, weight in adapter_state(model).items():
        assert (torch.count_nonzero(weight) == 0) == any(f".{group}." in name for group in zero)


def test_a_second_run_starts_an_average_of_its_own(tmp_path):
    """What an earlier run of the same trainer averaged is over."""
    model = peft_vit()
    ends = EpochEnds(model)
    trainer = trainer_for(model, tmp_path, kwargs={"callbacks": [ends]}, ema_decay=0.9)
    trainer.train()
    ends.states.clear()
    trainer.train()
    for name, expected in closed_form(ends.states, 0.9, 0).items():
        torch.testing.assert_close(adapter_state(model)[name].double(), expected, rtol=1e-5, atol=1e-7)


def test_a_last_epoch_cut_short_counts(tmp_path):
    """2.5 epochs: the end of the run is an update too, so that its last steps are not lost."""
    model = peft_vit()
    ends = EpochEnds(model)
    trainer_for(model, tmp_path, kwargs={"callbacks": [ends]}, ema_decay=0.5, num_train_epochs=2.5).train()
    assert len(ends.states) == 3
    for name, expected in closed_form(ends.states, 0.5, 0).items():
        torch.testing.assert_close(adapter_state(model)[name].double(), expected, rtol=1e-5, atol=1e-7)


def test_the_best_model_is_the_average_that_was_scored(tmp_path):
    """`load_best_model_at_end` with an average: that of the best epoch, which gave the best score, not the last."""
    model = peft_vit(r=8)
    trainer = trainer_for(
        model,
        tmp_path,
        kwargs={"eval_dataset": scoring_set()},
        ema_decay=0.6,
        num_train_epochs=6,
        learning_rate=6e-2,
        forget_weight=2.0,
        forget_bound=30.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",  # rises with every step of forgetting, whatever the order of batches
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = min(entries, key=lambda entry: entry["eval_loss"])
    assert best is not entries[-1]
    after = trainer.evaluate()
    assert trainer.state.best_metric == best["eval_loss"]
    assert after["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-6)
    assert after["eval_h_mean"] == best["eval_h_mean"]


def test_half_precision_matrices_are_averaged_in_float32(tmp_path):
    """bf16 steps of 1 − d would be lost in bf16."""
    model = peft_vit().to(torch.bfloat16)
    average = EMACallback(LoraGroups(model))
    args, state = (
        SimpleNamespace(ema_decay=0.999, ema_start_epoch=0.0, ema_update="epoch"),
        SimpleNamespace(epoch=1.0, global_step=1, max_steps=9),
    )
    average.on_epoch_end(args, state, None)
    start = [tensor.clone() for tensor in average.average]
    with torch.no_grad():
        for parameter in average.groups.parameters:
            parameter.add_(1.0)
    state.global_step = 2
    average.on_epoch_end(args, state, None)
    assert {tensor.dtype for tensor in average.average} == {torch.float32}
    for before, after in zip(start, average.average, strict=True):
        torch.testing.assert_close(after - before, torch.full_like(before, 1e-3), rtol=0.05, atol=1e-5)
