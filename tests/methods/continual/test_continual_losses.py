"""Losses of the baselines against slow references in float64, and which labels and weights they use."""

import pytest
import torch
from baseline_cases import cross_entropy, divergence, one_step, probabilities, trainer_of
from tasks import knowing_vit, peft_vit

from gs_lora_peft.methods import get_method
from gs_lora_peft.objectives import captured_embeddings, captured_states

BUILDS = pytest.mark.parametrize("build", [peft_vit, knowing_vit])


@BUILDS
def test_lwf(tmp_path, build):
    """−Σ p'·log p of softened answers, without T²."""
    step = one_step("lwf", build(), tmp_path, distillation_weight=0.7, retain_weight=3.0, temperature=4.0)
    kept, gone = step.now[: step.half], step.now[step.half :]
    taught, learned = (probabilities(logits[: step.half], 4.0) for logits in (step.before, step.now))
    distillation = -(taught * learned.log()).sum().item() / step.half
    expected = cross_entropy(gone, step.drawn) + 0.7 * distillation + 3 * cross_entropy(kept, step.labels[: step.half])
    assert step.loss.item() == pytest.approx(expected, rel=1e-5)


@BUILDS
def test_der_and_its_second_version(tmp_path, build):
    """The squared distance of logits is summed over classes and averaged over samples."""
    for name, own in (("der", 0.0), ("derpp", 0.3)):
        fields = {"retain_weight": own} if own else {}
        step = one_step(name, build(), tmp_path, distance_weight=0.2, **fields)
        distance = (step.now - step.before)[: step.half].square().sum().item() / step.half
        kept = cross_entropy(step.now[: step.half], step.labels[: step.half])
        expected = cross_entropy(step.now[step.half :], step.drawn) + 0.2 * distance + own * kept
        assert step.loss.item() == pytest.approx(expected, rel=1e-5)


@BUILDS
@pytest.mark.parametrize("of_logits", [False, True])
def test_fdr(tmp_path, build, of_logits):
    """The distance of probabilities, or of logits as in the public code."""
    step = one_step("fdr", build(), tmp_path, distance_weight=2.0, official_compat=of_logits)
    pair = [(logits if of_logits else probabilities(logits))[: step.half] for logits in (step.now, step.before)]
    distance = (pair[0] - pair[1]).square().sum(1).sqrt().mean().item()
    drawn = official_labels(step) if of_logits else step.drawn
    expected = cross_entropy(step.now[step.half :], drawn) + 2 * distance
    assert step.loss.item() == pytest.approx(expected, rel=1e-5)


def official_labels(step):
    torch.manual_seed(2)
    shifts = torch.randint(1, 101, (step.half,)).tolist()
    count = len(step.trainer.roles.forget)
    labels = []
    for label, shift in zip(step.labels[step.half :].tolist(), shifts, strict=True):
        other = (label + shift) % count
        labels.append((label + 1) % count if other == label else other)
    return torch.tensor(labels)


@BUILDS
def test_der_as_in_the_public_code(tmp_path, build):
    """Embeddings before the head, summed over the batch."""
    step = one_step("der", build(), tmp_path, distance_weight=0.2, official_compat=True)
    embeddings = []
    for model in (step.trainer.model, step.original):
        with captured_embeddings(model.eval()) as captured, torch.no_grad():
            model(pixel_values=step.inputs["pixel_values"][: step.half])
        embeddings.append(captured.embeddings.double())
    distance = (embeddings[0] - embeddings[1]).square().sum().item()
    expected = cross_entropy(step.now[step.half :], official_labels(step)) + 0.2 * distance
    assert step.loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("official", [False, True])
def test_lirf(tmp_path, official):
    """Attention maps at the middle are pushed apart; answers over the kept classes stay."""
    fields = {"alpha": 0.2, "attention_weight": 7.0, "distillation_weight": 3.0, "retain_weight": 2.0}
    step = one_step("lirf", knowing_vit(), tmp_path, temperature=5.0, official_compat=official, **fields)
    maps = []
    for model in (step.trainer.model, step.original):
        with captured_states(model.eval(), ["vit.layers.0"]) as captured, torch.no_grad():
            model(pixel_values=step.inputs["pixel_values"][step.half :])
        squares = captured.outputs["vit.layers.0"].double().square()
        own = squares.mean(1) if official else squares.mean(2)
        own = own / own.square().sum(1, keepdim=True).sqrt()
        maps.append(torch.where(own < 0.005, 0.0, own) if official else own)
    attention = (maps[0] - maps[1]).square().mean().item()
    others = [2, 3, 4, 5] if official else [0, 1, 2, 3]
    now, before = (probabilities(logits[step.half :, others], 5.0) for logits in (step.now, step.before))
    expected = (
        0.8 * cross_entropy(step.now[step.half :], official_labels(step) if official else step.drawn)
        - 7 * attention
        + 3 * 0.2 * 25 * divergence(before, now)
        + 2 * cross_entropy(step.now[: step.half], step.labels[: step.half])
    )
    assert attention > 0
    assert step.loss.item() == pytest.approx(expected, rel=1e-4)


@BUILDS
@pytest.mark.parametrize("disobeys", [False, True])
def test_scrub(tmp_path, build, disobeys):
    """T² · KL from the teacher, maximised on one half or minimised on the other."""
    fields = {"retain_weight": 0.8, "distillation_weight": 0.3, "temperature": 3.0}
    step = one_step("scrub", build(), tmp_path, then=lambda method: setattr(method, "_disobeys", disobeys), **fields)
    rows = slice(step.half, None) if disobeys else slice(0, step.half)
    distance = 9 * divergence(probabilities(step.before[rows], 3.0), probabilities(step.now[rows], 3.0))
    kept = cross_entropy(step.now[: step.half], step.labels[: step.half])
    assert step.loss.item() == pytest.approx(-distance if disobeys else 0.8 * kept + 0.3 * distance, rel=1e-4)


@BUILDS
def test_scrub_s_adds_the_distances_of_tensors_from_their_average(tmp_path, build):
    """Norms, not squares, one for each tensor; the average lags behind."""
    at = {}

    def move(method):
        trainer = method.trainer
        trainer.state.global_step = steps = len(trainer.get_train_dataloader())
        start = [weight.double() for weight in trainer.trained.start]
        now = [weight.detach().double() for weight in trainer.trained.parameters]
        at["norms"] = sum((0.75 * (b - a)).square().sum().sqrt().item() for a, b in zip(start, now, strict=True))
        loader = trainer.get_train_dataloader()
        for _ in range(2):  # the second call, as of a training that is resumed here, changes nothing
            method.on_epoch_begin(trainer.args, trainer.state, trainer.control, train_dataloader=loader)
        assert method._step == steps

    step = one_step("scrub_s", build(), tmp_path, then=move, smoothing=0.05, average_rate=0.25)
    kept = cross_entropy(step.now[: step.half], step.labels[: step.half])
    distance = 4 * divergence(probabilities(step.before, 2.0)[: step.half], probabilities(step.now, 2.0)[: step.half])
    expected = 0.99 * kept + 0.001 * distance + 0.05 * at["norms"]
    assert step.loss.item() == pytest.approx(expected, rel=1e-5)


def test_scrub_takes_one_pass_of_max_steps_in_every_second_epoch(tmp_path):
    """6 samples to forget are two batches of 4; an epoch has four."""
    trainer = trainer_of(get_method("scrub", max_epochs=2), knowing_vit(), tmp_path)
    loader, found = trainer.get_train_dataloader(), []
    for step in range(24):
        trainer.state.global_step = step
        trainer.method.on_step_begin(trainer.args, trainer.state, trainer.control, train_dataloader=loader)
        found.append(trainer.method._disobeys)
    assert [step for step, disobeys in enumerate(found) if disobeys] == [4, 5, 12, 13]


def test_other_labels_are_those_of_kept_classes(tmp_path):
    """Each of them is drawn, and no other class."""
    trainer = trainer_of(get_method("lwf"), knowing_vit(), tmp_path)
    labels = torch.tensor(trainer.roles.forget).repeat(100)
    assert sorted(set(trainer.method.other_labels(labels).tolist())) == list(trainer.roles.retain)


def test_other_labels_of_the_public_code(tmp_path):
    """They reach the ids below the number of classes to forget, whatever these are, and are never the true one."""
    trainer = trainer_of(get_method("lwf", official_compat=True), knowing_vit(), tmp_path)
    labels = torch.tensor(trainer.roles.forget).repeat(100)
    assert sorted(set(trainer.method.other_labels(labels).tolist())) == [0, 1]
    assert (trainer.method.other_labels(torch.tensor([0, 1] * 50)) != torch.tensor([0, 1] * 50)).all()
