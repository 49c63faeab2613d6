"""UNSIR: the noise, the two phases, what it forgets, resume, and models without images."""

import pytest
import torch
from datasets import Dataset
from errors import refused
from method_trainers import differences_if_resumed, scores_after, trainer_of
from tasks import arguments, knowing_vit, peft_vit
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from gs_lora_peft.methods import get_method
from gs_lora_peft.objectives import ObjectiveOutput
from gs_lora_peft.training import ForgettingTrainer


def begun(method, model, folder, **changes):
    trainer = trainer_of("unsir", model, folder, method, **changes)
    trainer.method.on_train_begin(trainer.args, trainer.state, trainer.control)
    return trainer


@pytest.mark.parametrize("build", [knowing_vit, peft_vit])
def test_the_noise_is_what_the_model_gets_most_wrong(tmp_path, build):
    """Of each class to forget, with its label; the model stays as it is, and the same noise is learned again."""
    model = build(dropout=0.3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    methods = [begun({"noise_steps": steps, "noise_penalty": 0.0}, model, tmp_path).method for steps in (1, 20, 20)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert model.training
    model.eval()
    losses = [cross_entropy(model(pixel_values=method.noise).logits, method.noise_labels).item() for method in methods]
    assert losses[1] > losses[0] + 1
    assert torch.equal(methods[1].noise, methods[2].noise)
    assert methods[1].noise_labels.tolist() == [4] * 32 + [5] * 32


def test_the_noise_is_learned_as_published(tmp_path):
    """Against Adam on −CE + μ · the mean of ‖x‖², in float64, for the first class to forget."""
    model = knowing_vit()
    method = begun({"noise_samples": 8, "noise_steps": 15, "noise_penalty": 0.02}, model, tmp_path).method
    noise = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(42)).double().requires_grad_()
    optimizer, own = torch.optim.Adam([noise], lr=0.1), knowing_vit().double().eval()
    for _ in range(15):
        optimizer.zero_grad()
        loss = -cross_entropy(own(pixel_values=noise).logits, torch.full((8,), 4)) + 0.02 * (noise**2).sum() / 8
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(method.noise[:8], noise.detach().float(), rtol=1e-3, atol=1e-3)


def test_the_two_phases(tmp_path):
    """It impairs with noise and kept samples, then repairs with kept samples alone; no label to forget is used."""
    trainer = begun({"noise_samples": 2, "impair_share": 0.5}, knowing_vit(), tmp_path)
    trainer.state.max_steps = 10
    logits = torch.randn(8, 6, requires_grad=True)
    inputs = {"pixel_values": torch.zeros(8, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 3, 4, 4, 5, 5])}
    output = ObjectiveOutput(*[torch.zeros(())] * 3, logits=logits)
    kept = cross_entropy(logits[:4], inputs["labels"][:4])
    model = trainer.model.eval()
    trainer.state.global_step = 4
    torch.manual_seed(0)
    impaired = trainer.method.loss(model, inputs, output)
    torch.manual_seed(0)
    rows = torch.randint(4, (4,))
    noisy = cross_entropy(model(pixel_values=trainer.method.noise[rows]).logits, torch.tensor([4, 4, 5, 5])[rows])
    torch.testing.assert_close(impaired, (kept + noisy) / 2)
    trainer.state.global_step = 5
    torch.testing.assert_close(trainer.method.loss(model, inputs, output), kept)


@pytest.mark.parametrize(
    ("build", "rate", "method"),
    [(knowing_vit, 5e-3, {"noise_penalty": 0.0}), (peft_vit, 5e-2, {"impair_share": 0.75})],
)
def test_it_forgets_and_keeps(tmp_path, build, rate, method):
    """With the defaults 0.31 (weights) and 0.50 (adapter) of the classes to forget stay."""
    forgotten, retained = scores_after(
        trainer_of("unsir", build(), tmp_path, method, learning_rate=rate, num_train_epochs=10)
    )
    assert forgotten < 0.2
    assert retained > 0.9


def test_it_is_resumed_bit_for_bit(tmp_path):
    assert not differences_if_resumed("unsir", knowing_vit, tmp_path, {"noise_steps": 3})


def test_text_is_refused(tmp_path):
    """Before the first step, by what the model takes."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, num_labels=4))
    rows = {"input_ids": [[1, 2, 3]] * 6, "attention_mask": [[1, 1, 1]] * 6}
    retain, forget = (
        Dataset.from_dict({**rows, "label": labels}).with_format("torch") for labels in ([0, 1, 2] * 2, [3] * 6)
    )
    args = arguments(tmp_path, "unsir")
    trainer = ForgettingTrainer(model, args, method=get_method("unsir"), forget_dataset=forget, retain_dataset=retain)
    with refused("the inputs of the model", ["attention_mask", "input_ids"]):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "value"), [("noise_samples", 0), ("noise_rate", 0.0), ("noise_penalty", -0.1), ("impair_share", 0.0)]
)
def test_values_out_of_range_are_refused(name, value):
    with refused(name, value):
        get_method("unsir", **{name: value})
