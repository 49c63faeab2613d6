"""FG-OrIU: bases of states, the loss, where the adapter may move, what a task leaves for the next."""

import pytest
import torch
from errors import refused
from method_trainers import scores_after, trainer_of
from tasks import arguments, forget_set, knowing_vit, peft_vit, retain_set

from gs_lora_peft.methods import get_method
from gs_lora_peft.methods.adapting.fg_oriu import basis
from gs_lora_peft.objectives import ClassificationObjective
from gs_lora_peft.training import ForgettingTrainer

PATHS = [f"vit.layers.{i}" for i in range(3)]


def vectors(seed, rows=30, width=8):
    decay = 0.6 ** torch.arange(width, dtype=torch.float64)
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * decay


def begun(folder, method=None, model=None, earlier=(), **changes):
    trainer = trainer_of("fg_oriu", model or peft_vit(), folder, method, **changes)
    trainer.method.earlier = earlier
    trainer.method.on_train_begin(trainer.args, trainer.state, trainer.control)
    return trainer


@pytest.mark.parametrize(
    ("energy", "squared"), [(0.5, False), (0.9, False), (0.99, False), (0.99, True), (1.0, False)]
)
def test_a_basis_holds_the_energy_with_the_fewest_directions(energy, squared):
    """Against the singular value decomposition of the vectors themselves."""
    rows = vectors(0)
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    energies = values ** (4 if squared else 2)
    number = next(n for n in range(1, 9) if energies[:n].sum() >= (energy - 1e-12) * energies.sum())
    found = basis(rows.T @ rows, energy, squared=squared).double()
    assert found.shape == (8, number)
    torch.testing.assert_close(found @ found.T, right[:number].T @ right[:number], rtol=0, atol=1e-6)


def test_a_known_basis_is_extended_only_as_far_as_needed():
    """What it holds counts, it comes first, and all directions are orthonormal."""
    rows = vectors(1)
    known = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(2))).Q
    found = basis(rows.T @ rows, 0.95, known=known).double()
    assert torch.equal(found[:, :2].float(), known)
    torch.testing.assert_close(found.T @ found, torch.eye(found.shape[1], dtype=torch.float64), rtol=0, atol=1e-6)

    def share(directions):
        return ((rows @ directions).square().sum() / rows.square().sum()).item()

    assert share(found) >= 0.95 > share(found[:, :-1])
    assert basis(rows.T @ rows, 0.1, known=found.float()).shape == found.shape


def states_of(model, rows):
    """The class token behind each block, in float64."""
    seen = []
    blocks = [module for name, module in model.named_modules() if name.endswith(tuple(PATHS))]
    hooks = [block.register_forward_hook(lambda module, args, output: seen.append(output)) for block in blocks]
    logits = model(pixel_values=rows["pixel_values"].double()).logits
    for hook in hooks:
        hook.remove()
    return [state[:, 0] for state in seen], logits


@pytest.mark.parametrize("blocks", ["all", "last"])
def test_the_loss_is_the_published_one(tmp_path, blocks):
    """In float64, from singular value decompositions of the states of the two sets."""
    weights = {"forget_weight": 0.3, "retain_weight": 0.2, "cross_entropy_weight": 0.7}
    trainer = begun(tmp_path, {**weights, "energy": 0.9, "blocks": blocks})
    with torch.no_grad():
        for matrix in trainer.trained.parameters:
            matrix += 0.1 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
    batch = next(iter(trainer.get_train_dataloader()))
    output = trainer.task_objective.training_step(trainer.model.eval(), batch)
    loss = trainer.method.loss(trainer.model, batch, output)

    before = knowing_vit().double().eval()
    spans = []
    for rows in (forget_set()[:], retain_set()[:]):
        spans.append([])
        for states in states_of(before, rows)[0]:
            _, values, right = torch.linalg.svd(states, full_matrices=False)
            number = int((values.square().cumsum(0) / values.square().sum() < 0.9).sum()) + 1
            spans[-1].append(right[:number].T)
    own = trainer.model.double()
    states, logits = states_of(own, batch)
    half = len(batch["labels"]) // 2
    expected = 0.7 * torch.nn.functional.cross_entropy(logits[:half], batch["labels"][:half])
    for state, forget, retain in list(zip(states, *spans, strict=True))[-1 if blocks == "last" else 0 :]:
        state = state / state.norm(dim=1, keepdim=True)
        expected += 0.3 * torch.linalg.matrix_norm(state[half:] @ forget, ord="nuc")
        expected += 0.2 * (state[:half] - state[:half] @ retain @ retain.T).norm()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("official", [False, True])
def test_the_change_of_the_factors_leaves_kept_states_alone(tmp_path, official):
    """What reads or writes states is orthogonal to those to keep, also with Adam and decay; not as published."""
    trainer = trainer_of(
        "fg_oriu", peft_vit(), tmp_path, {"energy": 0.8, "official_compat": official}, weight_decay=0.5
    )
    trainer.train()
    trained, kept = trainer.trained, trainer.method.kept
    off = []
    for (name, matrix), start in zip(
        ((n, p) for n, p in trainer.model.named_parameters() if p.requires_grad), trained.start, strict=True
    ):
        span = kept[next(path for path in PATHS if path in name)]
        assert 0 < span.shape[1] < 16
        change = (matrix - start).detach()
        assert change.any()
        change = change if "lora_A" in name else change.T
        if change.shape[1] == 16:
            off.append(((change @ span).norm() / change.norm()).item())
    assert len(off) == 6
    assert max(off) > 0.1 if official else max(off) < 1e-5


def test_a_task_leaves_its_subspaces_for_the_next(tmp_path):
    """The next one holds them and its own; the public code starts anew."""
    first = begun(tmp_path)
    left = first.method.leave()
    assert list(left) == PATHS
    earlier = [{path: torch.linalg.qr(torch.randn(16, 2)).Q for path in PATHS}]
    second = begun(tmp_path, earlier=earlier).method.leave()
    for path in PATHS:
        assert torch.equal(second[path][:, :2], earlier[0][path])
        assert left[path].shape[1] <= second[path].shape[1] <= left[path].shape[1] + 2
        assert second[path].is_contiguous()
    # A task of another method in between leaves nothing.
    third = begun(tmp_path, earlier=[*earlier, {}]).method.leave()
    assert all(torch.equal(third[path], second[path]) for path in PATHS)
    public = begun(tmp_path, {"official_compat": True}, earlier=earlier).method.leave()
    assert all(public[path].shape[1] <= left[path].shape[1] for path in PATHS)


@pytest.mark.parametrize("official", [False, True])
def test_it_forgets_and_keeps(tmp_path, official):
    """0.00 and 1.00 with this rate; with the published 1e-2 nothing is forgotten in so few steps."""
    trainer = trainer_of(
        "fg_oriu", peft_vit(), tmp_path, {"official_compat": official}, learning_rate=2e-2, num_train_epochs=10
    )
    forgotten, retained = scores_after(trainer)
    assert forgotten < 0.3
    assert retained > 0.9


def test_what_is_logged(tmp_path):
    trainer = trainer_of("fg_oriu", peft_vit(), tmp_path, logging_strategy="epoch")
    trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    assert {"retain_loss", "forget_projection", "retain_residual"} <= row.keys()


def test_another_objective_is_refused(tmp_path):
    """Its loss needs the states of its own."""
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
    objective = ClassificationObjective(0.1, "auto")
    trainer = ForgettingTrainer(
        peft_vit(), arguments(tmp_path, "fg_oriu"), method=get_method("fg_oriu"), objective=objective, **data
    )
    with refused("objective", "ClassificationObjective"):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "value"), [("energy", 0.0), ("energy", 1.5), ("forget_weight", -1.0), ("blocks", "first"), ("reading", 1)]
)
def test_values_out_of_range_are_refused(name, value):
    with refused(name, value):
        get_method("fg_oriu", **{name: value})
