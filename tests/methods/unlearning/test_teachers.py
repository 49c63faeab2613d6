"""Bad teacher, DELETE and LoTUS: losses, teachers, and what LoTUS carries through a checkpoint."""

import json
import math

import pytest
import torch
from errors import refused
from tasks import NAMES, knowing_vit, peft_vit, samples
from torch import nn
from unlearning_cases import before64, joint_batch, loss_on, move, resumed_differs, rows64, trained_scores, trainer_of

from gs_lora_peft.methods import get_method
from gs_lora_peft.methods.unlearning.bad_teacher import random_network


def softmax(row):
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def divergence(teacher, student):
    """KL(softmax(teacher) ‖ softmax(student)) by its definition."""
    pairs = zip(softmax(teacher), softmax(student), strict=True)
    return sum(p * math.log(p / q) for p, q in pairs if p > 0)


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
@pytest.mark.parametrize("official", [False, True])
def test_the_loss_of_bad_teacher(tmp_path, build, official):
    """Per sample, not per class; the good teacher for the half to keep, the bad one for the other."""
    trainer = trainer_of("bad_teacher", build(), tmp_path, hyper={"temperature": 2.0, "official_compat": official})
    bad = trainer.method.incompetent = random_network(trainer.model, seed=3)
    move(trainer)
    batch = joint_batch()
    pixels = batch["pixel_values"]
    teachers = before64(pixels)[:4] + rows64(bad, pixels)[4:]
    halved = ([[z / 2 for z in row] for row in rows] for rows in (teachers, rows64(trainer.model, pixels)))
    mean = sum(divergence(*pair) for pair in zip(*halved, strict=True)) / 8
    assert loss_on(trainer, batch).item() == pytest.approx(mean / len(NAMES) if official else 4 * mean, rel=1e-3)


class Handmade(nn.Module):
    """Not from transformers, with a parameter that no layer of torch draws."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(8))
        self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)


@pytest.mark.parametrize("build", [knowing_vit, peft_vit, Handmade])
def test_the_bad_teacher_is_a_random_network(build):
    """Of the same architecture, from the seed alone, without a trace in the model or in the random generator."""
    model = build()
    before, state = {name: w.clone() for name, w in model.state_dict().items()}, torch.get_rng_state()
    one, same, other = (random_network(model, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    weights = [torch.cat([w.flatten() for w in network.parameters()]) for network in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not any(w.requires_grad for w in one.parameters())
    if build is Handmade:
        assert not (one.token == 1).any()
        assert not torch.equal(one.attention.in_proj_weight, model.attention.in_proj_weight)
    else:
        data = samples(per_class=8, seed=3)[:]
        assert (one(pixel_values=data["pixel_values"]).logits.argmax(1) == data["label"]).float().mean() < 0.5


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
def test_the_loss_of_delete(tmp_path, build):
    """The earlier answer without the own class, renormalised; nothing of the half to keep."""
    trainer, batch = trainer_of("delete", build(), tmp_path), joint_batch()
    move(trainer)
    teachers, labels = before64(batch["pixel_values"]), batch["labels"].tolist()
    masked = [[-1e4 if c == y else z for c, z in enumerate(row)] for row, y in zip(teachers, labels, strict=True)]
    students = rows64(trainer.model, batch["pixel_values"])
    mean = sum(divergence(masked[i], students[i]) for i in range(4, 8)) / 4
    assert loss_on(trainer, batch).item() == pytest.approx(mean, rel=1e-4)


def test_the_loss_of_lotus(tmp_path):
    """Both halves get targets with Gumbel noise: one-hot for samples to keep, at temperature τ for the others."""
    trainer, batch = trainer_of("lotus", knowing_vit(), tmp_path), joint_batch()
    move(trainer)
    trainer.method.temperature = 3.0
    torch.manual_seed(4)
    noise = [[-math.log(e) for e in torch.empty(6).exponential_().tolist()] for _ in range(8)]
    pairs = zip(before64(batch["pixel_values"]), noise, strict=True)
    noisy = [[z + g for z, g in zip(*pair, strict=True)] for pair in pairs]
    targets = [[float(z == max(row)) for z in row] for row in noisy[:4]]
    targets += [softmax([z / 3 for z in row]) for row in noisy[4:]]
    students = [softmax(row) for row in rows64(trainer.model, batch["pixel_values"])]
    mean = -sum(t * math.log(p) for ts, ps in zip(targets, students, strict=True) for t, p in zip(ts, ps, strict=True))
    torch.manual_seed(4)
    assert loss_on(trainer, batch).item() == pytest.approx(mean / 8, rel=1e-3)


@pytest.mark.parametrize(("target", "exponent"), [(0.0, 32.0), (0.75, 8.0), (1.0, 0.0)])
def test_the_temperature_of_lotus(tmp_path, target, exponent):
    """exp(α·(Acc_f − target)): all samples are recognised at first."""
    trainer = trainer_of("lotus", knowing_vit(), tmp_path, hyper={"target": target})
    trainer.method.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert trainer.method.temperature == pytest.approx(math.exp(exponent))


def test_lotus_stops_at_the_target_and_officially_learns_again(tmp_path):
    """Of whole classes the target is 0: no accuracy is 0.01 below it, and τ = 1 is the earlier model's answer."""
    settings = {"learning_rate": 5e-3, "num_train_epochs": 10, "eval_strategy": "no"}
    reached = {}
    for official in (False, True):
        trainer = trainer_of("lotus", knowing_vit(), tmp_path, hyper={"official_compat": official}, **settings)
        trainer.train()
        reached[official] = (trainer.state.global_step, trainer.method._forget_accuracy())
    assert reached[False][0] < 40
    assert reached[False][1] == 0
    assert reached[True][0] == 40
    assert reached[True][1] > 0.5


@pytest.mark.parametrize("checkpoint", [4, 6])
def test_lotus_is_resumed_bit_for_bit(tmp_path, checkpoint):
    """At the end of an epoch, and in the middle of one, where its temperature can no longer be measured."""
    build, rate = (lambda: knowing_vit(dropout=0.1)), 3e-3
    assert not resumed_differs("lotus", build, tmp_path, checkpoint, learning_rate=rate)
    file = tmp_path / "one" / f"checkpoint-{checkpoint}" / "lotus.json"
    assert json.loads(file.read_text())["temperature"] > 0


def test_lotus_stops_where_a_checkpoint_left_it(tmp_path):
    """A checkpoint of the last step was written before the accuracy was measured that ends the training."""
    settings = {"learning_rate": 5e-3, "num_train_epochs": 10, "save_strategy": "steps", "save_steps": 1}
    whole, resumed = (trainer_of("lotus", knowing_vit(), tmp_path / part, **settings) for part in ("one", "two"))
    whole.train()
    last = whole.state.global_step
    assert last < 40
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / f"checkpoint-{last}"))
    assert resumed.state.global_step == last


def test_bad_teacher_is_resumed_bit_for_bit(tmp_path):
    """The random network is the same again, and draws nothing from the generator of the training."""
    assert not resumed_differs("bad_teacher", lambda: knowing_vit(dropout=0.1), tmp_path, 6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bad_teacher", {"learning_rate": 1e-2, "num_train_epochs": 10}),
        ("delete", {"learning_rate": 2e-3, "num_train_epochs": 8}),
        ("lotus", {"learning_rate": 5e-3, "num_train_epochs": 10}),
    ],
)
def test_forgets_and_keeps(tmp_path, name, settings):
    """DELETE without any sample to keep."""
    forget, retain = trained_scores(name, knowing_vit(), tmp_path, **settings)
    assert forget < 0.4
    assert retain > 0.8


@pytest.mark.parametrize("name", ["bad_teacher", "lotus"])
def test_an_adapter_forgets_less_by_them(tmp_path, name):
    """Of a nearly uniform target, the class may stay the first answer by a little."""
    forget, retain = trained_scores(name, peft_vit(), tmp_path, learning_rate=5e-2, num_train_epochs=8)
    assert 0.1 < forget < 0.95
    assert retain > 0.9


def test_an_adapter_forgets_by_delete_at_a_cost(tmp_path):
    """At the rate at which it forgets, a few samples without those to keep cost kept classes, too."""
    forget, retain = trained_scores("delete", peft_vit(), tmp_path, learning_rate=2e-2, num_train_epochs=12)
    assert forget < 0.6
    assert retain > 0.4


def test_the_teacher_is_the_earlier_model_under_autocast(tmp_path):
    """Autocast keeps its casts of weights, whose data is exchanged between the two forwards."""
    trainer, batch = trainer_of("delete", knowing_vit(), tmp_path), joint_batch()
    move(trainer, std=0.2)
    expected = torch.tensor(before64(batch["pixel_values"]))[4:].float()
    with torch.autocast("cpu", torch.bfloat16):
        now = trainer.model(**batch).logits
        teacher = trainer.method.earlier_logits(trainer.model, batch, "forget")
        again = trainer.model(**batch).logits
    torch.testing.assert_close(teacher, expected, atol=0.1, rtol=0.05)
    assert not torch.allclose(teacher, now[4:].float(), atol=0.5)
    torch.testing.assert_close(now, again)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("bad_teacher", "temperature", 0.0),
        ("lotus", "alpha", 0.0),
        ("lotus", "alpha", 100.0),
        ("lotus", "target", 1.5),
    ],
)
def test_values_out_of_range_are_refused(name, field, value):
    with refused(field, value):
        get_method(name, **{field: value})
