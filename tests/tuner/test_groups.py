"""The groups of an adapter: norms, penalty, proximal step, and what becomes of a group that is zero."""

import copy
import itertools
import math

import pytest
import torch
from errors import refused
from hypothesis import given, settings, strategies as st
from models import CASES, vit
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gs_lora_peft import GSLoraConfig, LoraGroups
from gs_lora_peft.tuner import trainable_adapters
from gs_lora_peft.tuner.export import drop_zero_pairs

VIT = CASES["vit"]
GROUPINGS = ("block", "module", "matrix")


def reference_norms(groups: LoraGroups) -> Tensor:
    """Norms by the definition, one entry after another, in float64."""
    norms = []
    for group in range(len(groups)):
        members = [p for p, g in zip(groups.parameters, groups.group_of, strict=True) if g == group]
        norms.append(math.sqrt(sum(float(x) ** 2 for p in members for x in p.detach().double().flatten())))
    return torch.tensor(norms, dtype=torch.float64)


def snapshot(groups: LoraGroups) -> list[Tensor]:
    return [p.detach().clone() for p in groups.parameters]


def put(groups: LoraGroups, values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(groups.parameters, values, strict=True):
            parameter.copy_(value)


def zero_out(groups: LoraGroups, *indices: int) -> None:
    with torch.no_grad():
        for parameter, index in zip(groups.parameters, groups.group_of, strict=True):
            if index in indices:
                parameter.zero_()


def made(group_by: str = "block", layers: int = 2, **options) -> tuple[PeftModel, LoraGroups]:
    """A ViT with an adapter whose matrices are all random."""
    torch.manual_seed(1)
    config = GSLoraConfig(**{"r": 4, "group_by": group_by, "init_lora_weights": False, **options})
    model = get_peft_model(vit(layers), config)
    return model, LoraGroups(model)


def alive(groups: LoraGroups) -> list[int]:
    """Indices of the groups of which an entry is left."""
    return groups.norms().nonzero().flatten().tolist()


# --------------------------------------------------------------------------------------------------------- membership


def test_names_and_sizes():
    """Blocks, modules or matrices, in module order, with their numbers of entries."""
    one, other = 4 * 16 + 32 * 4, 4 * 32 + 16 * 4  # fc1: 16 → 32, fc2: 32 → 16, rank 4
    paths = [f"vit.layers.{block}.mlp.fc{number}" for block in (0, 1) for number in (1, 2)]
    assert made("block")[1].names == ["vit.layers.0", "vit.layers.1"]
    assert made("block")[1].sizes == [one + other] * 2
    assert made("module")[1].names == paths
    assert made("module")[1].sizes == [one, other] * 2
    assert made("matrix")[1].names == [f"{path}.lora_{kind}" for path in paths for kind in "AB"]
    assert made("matrix")[1].sizes == [64, 128, 128, 64] * 2


@settings(max_examples=15, deadline=None)
@given(
    group_by=st.sampled_from(GROUPINGS),
    layers=st.integers(1, 4),
    r=st.integers(1, 5),
    targets=st.sampled_from(["ffn", "attention", ["fc1"], ["classifier", "fc2"], r".*\.q_proj", "all-linear"]),
)
def test_groups_partition_the_adapter(group_by, layers, r, targets):
    """Every LoRA matrix belongs to exactly one group, whatever is adapted, and nothing else does."""
    model, groups = made(group_by, layers, r=r, target_modules=targets)
    expected = [p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]
    assert sorted(map(id, groups.parameters)) == sorted(map(id, expected))
    assert len(groups.group_of) == len(groups.parameters)
    assert set(groups.group_of) == set(range(len(groups)))
    assert len(set(groups.names)) == len(groups.names) == len(groups) == len(groups.sizes)
    assert sum(groups.sizes) == sum(p.numel() for p in expected)


def test_grouping_comes_from_the_configuration_and_can_be_overruled():
    """`group_by` is the configuration's unless it is given."""
    model, groups = made("module")
    assert len(groups) == 4
    assert len(LoraGroups(model, group_by="block")) == 2
    plain = get_peft_model(vit(), VIT.config("LORA"))
    assert LoraGroups(plain).names == ["vit.layers.0", "vit.layers.1"]


def test_groups_of_every_kind_of_holder():
    """The same groups from the PeftModel, the tuner, the base model and a model made by injection."""
    model, groups = made()
    for holder in (model.base_model, model.base_model.model):
        assert LoraGroups(holder).names == groups.names
        assert list(map(id, LoraGroups(holder).parameters)) == list(map(id, groups.parameters))
    torch.manual_seed(1)
    injected = inject_adapter_in_model(model.peft_config["default"], vit())
    assert LoraGroups(injected).names == groups.names
    assert torch.equal(LoraGroups(injected).norms(), groups.norms())
    native = vit()
    native.add_adapter(GSLoraConfig(group_by="module"), "mine")
    assert len(LoraGroups(native, "mine")) == 4


def test_groups_of_several_adapters_are_apart():
    """Groups see one adapter; acting on them leaves the other one bit-equal."""
    model = VIT.add(VIT.wrapped("GS_LORA", adapter_name="one"), "GS_LORA", "two", target_modules="attention")
    one, two = LoraGroups(model, "one"), LoraGroups(model, "two")
    assert not {id(p) for p in one.parameters} & {id(p) for p in two.parameters}
    before = snapshot(two)
    one.proximal_step(1e6)
    assert one.zero_groups() == one.names
    assert two.zero_groups() == []
    assert all(torch.equal(a, b) for a, b in zip(before, two.parameters, strict=True))


def test_unknown_adapter_or_grouping_is_refused():
    """The error names what there is."""
    model, _ = made()
    with refused("adapter_name", "task_001") as error:
        LoraGroups(model, "task_001")
    assert "['default']" in error.value.expected
    with refused("adapter_name", "default"):
        LoraGroups(vit())
    with refused("group_by", "layer"):
        LoraGroups(model, group_by="layer")


class Stack(nn.Module):
    """Two blocks of three Linears each, registered in any order."""

    def __init__(self, order: tuple[int, ...]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            for number in order:
                layer.add_module(f"fc{number}", nn.Linear(3 + number, 4))


@pytest.mark.parametrize("group_by", GROUPINGS)
def test_order_of_modules_does_not_matter(group_by):
    """The same matrices under the same names have the same norms, in whatever order a model registers them."""
    seen = []
    for order in itertools.permutations(range(3)):
        model = get_peft_model(Stack(order), GSLoraConfig(r=2, target_modules=r".*fc\d", group_by=group_by))
        groups = LoraGroups(model)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if ".lora_" in name:
                    generator = torch.Generator().manual_seed(0)
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1 + len(name) % 7))
        seen.append(dict(zip(groups.names, groups.norms().tolist(), strict=True)))
    for norms in seen[1:]:
        assert norms.keys() == seen[0].keys()
        assert norms == pytest.approx(seen[0], rel=1e-6)


# -------------------------------------------------------------------------------------------------- norms and penalty


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("group_by", GROUPINGS)
def test_norms_agree_with_the_definition(group_by, dtype):
    """float32 accuracy whatever the dtype of the matrices, large and small entries included."""
    model, groups = made(group_by)
    model.to(dtype)
    put(groups, [p * 10.0 ** (i % 5 - 2) for i, p in enumerate(snapshot(groups))])
    norms = groups.norms()
    assert norms.dtype == torch.float32
    assert norms.shape == (len(groups),)
    assert not norms.requires_grad
    torch.testing.assert_close(norms.double(), reference_norms(groups), rtol=1e-6, atol=0)


def test_norms_are_those_of_groups_not_sums_of_norms():
    """‖(3, 4)‖ is 5: matrices of a group are one vector."""
    _model, groups = made("block", layers=1)
    put(groups, [torch.zeros_like(p) for p in groups.parameters])
    with torch.no_grad():
        groups.parameters[0][0, 0] = 3.0
        groups.parameters[3][0, 0] = 4.0
    assert groups.norms().tolist() == [5.0]
    assert groups.penalty().item() == 5.0


@pytest.mark.parametrize("group_by", GROUPINGS)
def test_penalty_and_its_gradient_agree_with_autograd(group_by):
    """Value and gradient of Σ_g ‖g‖, against autograd in float64."""
    _model, groups = made(group_by)
    (3.0 * groups.penalty()).backward()
    doubles = [p.detach().double().requires_grad_() for p in groups.parameters]
    total = torch.zeros((), dtype=torch.float64)
    for group in range(len(groups)):
        members = [p for p, g in zip(doubles, groups.group_of, strict=True) if g == group]
        total = total + torch.cat([p.flatten() for p in members]).norm()
    (3.0 * total).backward()
    assert groups.penalty().item() == pytest.approx(total.item(), rel=1e-6)
    for parameter, double in zip(groups.parameters, doubles, strict=True):
        torch.testing.assert_close(parameter.grad.double(), double.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_penalty_in_half_precision(dtype):
    """Gradients come in the dtype of the matrices, finite."""
    model, groups = made()
    model.to(dtype)
    groups.penalty().backward()
    assert {p.grad.dtype for p in groups.parameters} == {dtype}
    assert all(p.grad.isfinite().all() for p in groups.parameters)


def test_gradient_of_the_penalty_is_zero_at_zero():
    """Where autograd would give NaN, a zero group gets the gradient 0; the others are not disturbed."""
    model, groups = made()
    zero_out(groups, 0)
    groups.penalty().backward()
    for parameter, index in zip(groups.parameters, groups.group_of, strict=True):
        assert parameter.grad.isfinite().all()
        assert bool(parameter.grad.any()) == (index != 0)
    put(groups, [torch.zeros_like(p) for p in groups.parameters])
    model.zero_grad()
    assert groups.penalty().item() == 0.0
    groups.penalty().backward()
    assert not any(p.grad.any() for p in groups.parameters)


def test_penalty_adds_to_a_loss():
    """As a term of a loss it goes through one backward, gradients adding up."""
    model, groups = made()
    VIT.loss(model).backward()
    alone = [p.grad.clone() for p in groups.parameters]
    model.zero_grad()
    (VIT.loss(model) + 0.5 * groups.penalty()).backward()
    norms = groups.norms()
    for parameter, gradient, index in zip(groups.parameters, alone, groups.group_of, strict=True):
        torch.testing.assert_close(parameter.grad, gradient + 0.5 * parameter.detach() / norms[index])


def test_second_derivative_of_the_penalty_is_refused():
    """It would be wrong, so that it is an error."""
    _model, groups = made()
    (gradient,) = torch.autograd.grad(groups.penalty(), groups.parameters[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


# ------------------------------------------------------------------------------------------------------- proximal step


@pytest.mark.parametrize("scale", ["none", "sqrt_size"])
@pytest.mark.parametrize("group_by", GROUPINGS)
def test_proximal_step_agrees_with_the_closed_form(group_by, scale):
    """g ← max(0, 1 − t_g/‖g‖)·g, with some groups dropped and others shrunk."""
    _model, groups = made(group_by)
    put(groups, [p * (1.0 + 0.3 * g) for p, g in zip(snapshot(groups), groups.group_of, strict=True)])
    norms = reference_norms(groups)
    sizes = torch.tensor(groups.sizes, dtype=torch.float64)
    root = sizes.sqrt() if scale == "sqrt_size" else torch.ones_like(sizes)
    step = (norms / root).sort().values[(len(groups) - 1) // 4].item() * 1.001
    factors = (1 - step * root / norms).clamp(min=0)
    if group_by == "matrix":  # a matrix goes with its partner
        pairs = factors.view(-1, 2)
        factors = (pairs * (pairs > 0).all(dim=1, keepdim=True)).flatten()
    before = snapshot(groups)
    groups.proximal_step(step, scale=scale)
    assert 0 < int((factors == 0).sum()) < len(groups)
    for parameter, old, index in zip(groups.parameters, before, groups.group_of, strict=True):
        torch.testing.assert_close(parameter.double(), old.double() * factors[index], rtol=1e-5, atol=1e-8)
        assert not parameter.any() or factors[index] > 0
    assert groups.zero_groups() == [n for n, f in zip(groups.names, factors.tolist(), strict=True) if f == 0]
    assert groups.active_groups() == [n for n, f in zip(groups.names, factors.tolist(), strict=True) if f > 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_proximal_step_in_other_dtypes(dtype):
    """Half precision shrinks up to its own rounding and drops exactly."""
    model, groups = made()
    model.to(dtype)
    put(groups, [p * (1.0 + 3.0 * g) for p, g in zip(snapshot(groups), groups.group_of, strict=True)])
    norms, before = reference_norms(groups), snapshot(groups)
    step = norms[0].item() * 1.01
    groups.proximal_step(step, scale="none")
    assert groups.zero_groups() == ["vit.layers.0"]
    tolerance = 4 * torch.finfo(dtype).eps
    for parameter, old, index in zip(groups.parameters, before, groups.group_of, strict=True):
        assert parameter.dtype == dtype
        expected = old.double() * max(0.0, 1 - step / norms[index].item())
        torch.testing.assert_close(parameter.double(), expected, rtol=max(tolerance, 1e-6), atol=1e-6)


def test_step_may_differ_from_group_to_group():
    """A tensor holds one learning rate times α per group."""
    _model, groups = made()
    norms, before = groups.norms(), snapshot(groups)
    groups.proximal_step(torch.tensor([0.0, 0.25]) * norms, scale="none")
    for parameter, old, index in zip(groups.parameters, before, groups.group_of, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1.0, 0.75)[index])
    groups.proximal_step(torch.tensor(0.0))
    assert groups.zero_groups() == []


def test_zero_stays_zero():
    """A dropped group stays dropped, also where the optimizer's momentum moves it again."""
    _model, groups = made()
    norms = groups.norms()
    groups.proximal_step(torch.tensor([2.0, 0.1]) * norms, scale="none")
    assert groups.zero_groups() == ["vit.layers.0"]
    with torch.no_grad():
        for parameter in groups.parameters:
            parameter.add_(1.0)
    groups.proximal_step(1e-9)
    assert groups.zero_groups() == ["vit.layers.0"]
    assert not any(p.any() for p, g in zip(groups.parameters, groups.group_of, strict=True) if g == 0)


def test_a_step_of_zero_changes_nothing():
    """No shrinkage, no dropping: not even of a matrix that is zero because it has not been trained yet."""
    _model, groups = made("matrix", init_lora_weights=True)
    before = snapshot(groups)
    groups.proximal_step(0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, groups.parameters, strict=True))
    with torch.no_grad():
        groups.parameters[1].fill_(1.0)
    groups.proximal_step(1e-9)
    assert groups.parameters[1].any()


def test_broken_weights_stay_visible():
    """NaN is neither shrunk nor dropped, so that checks can see it."""
    _model, groups = made()
    with torch.no_grad():
        groups.parameters[0][0, 0] = math.nan
    groups.proximal_step(1e-3)
    assert groups.norms()[0].isnan()
    assert groups.norms()[1].isfinite()
    assert groups.zero_groups() == []


def test_bad_arguments_are_refused():
    """A negative step would grow the groups; a scale that does not exist is not guessed."""
    _, groups = made()
    for step in (-1e-3, math.nan, math.inf):
        with refused("step") as error:
            groups.proximal_step(step)
        assert error.value.value is step
    with refused("scale", "sqrt"):
        groups.proximal_step(0.1, scale="sqrt")


VALUES = st.integers(0, 2**31 - 1)


def drawn(groups: LoraGroups, seed: int, spread: float) -> list[Tensor]:
    """Random matrices; some of them zero, some groups much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    scales = (torch.rand(len(groups), generator=generator) * 2 - 1) * spread
    zero = torch.rand(len(groups.parameters), generator=generator) < 0.2
    return [
        torch.zeros_like(p) if zero[i] else torch.randn(p.shape, generator=generator) * 10.0 ** scales[g].item()
        for i, (p, g) in enumerate(zip(groups.parameters, groups.group_of, strict=True))
    ]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(GROUPINGS), VALUES, st.floats(0, 3), st.floats(0, 10), st.sampled_from(["none", "sqrt_size"]))
def test_proximal_step_never_grows_a_group(group_by, seed, spread, step, scale):
    """Norms never increase, zero stays zero, and survivors keep their direction."""
    model, _ = MODELS[group_by]
    groups = LoraGroups(model)
    put(groups, drawn(groups, seed, spread))
    norms, before = groups.norms(), snapshot(groups)
    groups.proximal_step(step, scale=scale)
    after = groups.norms()
    assert (after <= norms * (1 + 1e-6)).all()
    assert not (after[norms == 0] > 0).any()
    for old, parameter, index in zip(before, groups.parameters, groups.group_of, strict=True):
        factor = 0.0 if norms[index] == 0 else (after[index] / norms[index]).item()
        torch.testing.assert_close(parameter.detach(), old * factor, rtol=1e-3, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GROUPINGS), VALUES, st.floats(0, 2), st.floats(0, 10), st.sampled_from(["none", "sqrt_size"]))
def test_the_last_group_stays_where_it_is_asked_for(group_by, seed, spread, step, scale):
    """The same step to the bit unless it would drop everything; then the strongest of what is left stays as it was."""
    model, _ = MODELS[group_by]
    plain, keeping = LoraGroups(model), LoraGroups(model)
    start = drawn(plain, seed, spread)
    put(plain, start)
    norms = plain.norms()
    strengths = norms / torch.tensor(plain.sizes).sqrt() if scale == "sqrt_size" else norms
    plain.proximal_step(step, scale=scale)
    expected, survivors = snapshot(plain), alive(plain)
    put(keeping, start)
    keeping.proximal_step(step, scale=scale, keep_last=True)
    if survivors or step == 0:
        assert all(torch.equal(a, b) for a, b in zip(expected, keeping.parameters, strict=True))
        return
    if group_by == "matrix":
        strengths = strengths.view(-1, 2).min(dim=1).values.repeat_interleave(2)
    best = {i for i, strength in enumerate(strengths) if strength == strengths.max()}
    kept = set(alive(keeping))
    for old, parameter, index in zip(start, keeping.parameters, keeping.group_of, strict=True):
        assert torch.equal(parameter.detach(), old if index in kept else torch.zeros_like(old))
    assert kept <= best
    assert kept or strengths.max() == 0


def test_the_last_group_is_the_last_from_then_on():
    """What was dropped before does not come back for it, however large momentum makes it; nor is it shrunk."""
    _model, groups = made()
    groups.proximal_step(torch.tensor([2.0, 0.1]) * groups.norms(), scale="none", keep_last=True)
    assert groups.active_groups() == ["vit.layers.1"]
    with torch.no_grad():
        for parameter in groups.parameters:
            parameter.add_(1.0)
    alive = [p.detach().clone() for p, g in zip(groups.parameters, groups.group_of, strict=True) if g == 1]
    for step in (1e6, 1e-3):
        groups.proximal_step(step, keep_last=True)
    assert groups.active_groups() == ["vit.layers.1"]
    now = [p.detach() for p, g in zip(groups.parameters, groups.group_of, strict=True) if g == 1]
    assert all(torch.equal(a, b) for a, b in zip(alive, now, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["block", "module"]), VALUES, VALUES, st.floats(0, 2), st.floats(0, 5))
def test_proximal_step_is_a_non_expansion(group_by, first, second, spread, step):
    """‖prox(x) − prox(y)‖ ≤ ‖x − y‖: the property that convergence rests on."""
    model, _ = MODELS[group_by]
    results, starts = [], []
    for seed in (first, second):
        groups = LoraGroups(model)
        starts.append(drawn(groups, seed, spread))
        put(groups, starts[-1])
        groups.proximal_step(step)
        results.append(snapshot(groups))

    def distance(pair: list[list[Tensor]]) -> float:
        return math.sqrt(sum((a.double() - b.double()).square().sum().item() for a, b in zip(*pair, strict=True)))

    assert distance(results) <= distance(starts) * (1 + 1e-5) + 1e-6


MODELS = {group_by: made(group_by) for group_by in GROUPINGS}


# ------------------------------------------------------------------------------------------------ what is zero


def test_state_and_ratio():
    """What a log records."""
    _model, groups = made(layers=4)
    assert groups.zero_group_ratio() == 0.0
    zero_out(groups, 1, 2)
    assert groups.zero_groups() == ["vit.layers.1", "vit.layers.2"]
    assert groups.zero_group_ratio() == 0.5
    assert groups.state() == {
        "total": 4,
        "active": ["vit.layers.0", "vit.layers.3"],
        "zero": ["vit.layers.1", "vit.layers.2"],
        "zero_group_ratio": 0.5,
    }


def calls_of_lora(model: nn.Module) -> list[str]:
    """Names of the LoRA matrices that one forward runs through."""
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if ".lora_A." in name or ".lora_B." in name
    ]
    VIT.logits(model)
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize("inject", [False, True])
def test_frozen_groups_cost_nothing_and_change_nothing(inject):
    """A frozen group gets no gradient, is not run through in forward, and the outputs are bit-equal."""
    torch.manual_seed(1)
    config = GSLoraConfig(r=4, init_lora_weights=False)
    model = inject_adapter_in_model(config, vit(3)) if inject else get_peft_model(vit(3), config)
    groups = LoraGroups(model)
    zero_out(groups, 0, 2)
    outputs = VIT.logits(model)
    assert len(calls_of_lora(model)) == 12
    assert groups.freeze_zero_groups() == ["vit.layers.0", "vit.layers.2"]
    assert groups.freeze_zero_groups() == []
    assert torch.equal(VIT.logits(model), outputs)
    called = calls_of_lora(model)
    assert len(called) == 4
    assert all("layers.1." in name for name in called)
    VIT.loss(model).backward()
    for parameter, index in zip(groups.parameters, groups.group_of, strict=True):
        assert parameter.requires_grad == (index == 1)
        assert (parameter.grad is not None) == (index == 1)


def test_freezing_drops_stale_gradients():
    """A gradient from before the group was dropped does not reach the optimizer."""
    model, groups = made()
    VIT.loss(model).backward()
    zero_out(groups, 1)
    groups.freeze_zero_groups()
    assert all((p.grad is None) == (g == 1) for p, g in zip(groups.parameters, groups.group_of, strict=True))


def test_all_groups_may_be_frozen():
    """Nothing left: the model is the base, bit for bit, and saving, merging and disabling still work."""
    model, groups = made()
    groups.proximal_step(1e6)
    groups.freeze_zero_groups()
    base = VIT.logits(vit())
    assert torch.equal(VIT.logits(model), base)
    assert calls_of_lora(model) == []
    assert trainable_adapters(model) == []
    with model.disable_adapter():
        assert torch.equal(VIT.logits(model), base)
    assert calls_of_lora(model) == []
    assert torch.equal(VIT.logits(copy.deepcopy(model)), base)
    assert torch.equal(VIT.logits(model.merge_and_unload()), base)


def test_thaw_takes_everything_back():
    """Flags and active adapters are as before; zero is still zero, and now it may move again."""
    model, groups = made()
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    zero_out(groups, 0)
    groups.freeze_zero_groups()
    groups.thaw()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert len(calls_of_lora(model)) == 8
    assert groups.zero_groups() == ["vit.layers.0"]
    with torch.no_grad():
        groups.parameters[0].fill_(1.0)
    groups.proximal_step(1e-9)
    assert groups.norms().all()
    groups.thaw()


def test_thaw_keeps_a_frozen_adapter_frozen():
    """A matrix that did not train before does not train afterwards."""
    model, groups = made()
    model.set_requires_grad("default", False)
    zero_out(groups, 0)
    groups.freeze_zero_groups()
    groups.thaw()
    assert trainable_adapters(model) == []


def test_freezing_among_several_adapters():
    """Only this adapter is left out of forward; `thaw` restores the order of all, and so the outputs' last bits."""
    model = VIT.wrapped("GS_LORA", adapter_name="one")
    for seed, name in enumerate(("two", "three")):
        VIT.add(model, "GS_LORA", name, seed=seed)
    model.base_model.set_adapter(["one", "two", "three"])
    groups = LoraGroups(model, "one")
    zero_out(groups, 0)
    outputs = VIT.logits(model)
    groups.freeze_zero_groups()
    called = calls_of_lora(model)
    assert not [name for name in called if ".one" in name and "layers.0." in name]
    assert len([name for name in called if ".two" in name]) == 8
    assert torch.equal(VIT.logits(model), outputs)
    groups.thaw()
    assert {tuple(m.active_adapters) for m in model.modules() if isinstance(m, LoraLayer)} == {("one", "two", "three")}
    assert torch.equal(VIT.logits(model), outputs)


def test_freezing_an_inactive_adapter_does_not_activate_it():
    """`freeze` and `thaw` on an adapter that takes no part leave it that way."""
    model = VIT.add(VIT.wrapped("GS_LORA", adapter_name="one"), "GS_LORA", "two")
    outputs = VIT.logits(model)
    groups = LoraGroups(model, "two")
    zero_out(groups, 0)
    groups.freeze_zero_groups()
    groups.thaw()
    assert {tuple(m.active_adapters) for m in model.modules() if isinstance(m, LoraLayer)} == {("one",)}
    assert torch.equal(VIT.logits(model), outputs)


def test_choosing_an_adapter_overrides_freezing_until_the_next_call():
    """`set_adapter` activates every layer again; `freeze_zero_groups` leaves the zero ones out once more."""
    model = VIT.add(VIT.wrapped("GS_LORA", adapter_name="one"), "GS_LORA", "two")
    groups = LoraGroups(model, "one")
    zero_out(groups, 0)
    groups.freeze_zero_groups()
    model.set_adapter("one")
    assert len(calls_of_lora(model)) == 8
    assert groups.freeze_zero_groups() == []
    assert len(calls_of_lora(model)) == 4
    assert not any(p.requires_grad for p, g in zip(groups.parameters, groups.group_of, strict=True) if g == 0)
    model.set_adapter("two")
    groups.thaw()
    assert {tuple(m.active_adapters) for m in model.modules() if isinstance(m, LoraLayer)} == {("two",)}


def test_freezing_survives_disabling():
    """`disable_adapter()` neither wakes a dropped group nor runs it afterwards."""
    model, groups = made()
    zero_out(groups, 0)
    groups.freeze_zero_groups()
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    with model.disable_adapter():
        pass
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert len(calls_of_lora(model)) == 4
    groups.thaw()
    assert len(calls_of_lora(model)) == 8


def test_by_matrix_an_untrained_lora_b_is_not_frozen():
    """`lora_B` starts at zero and has to be trained from there; only a pair that is gone is frozen."""
    _model, groups = made("matrix", init_lora_weights=True)
    assert groups.norms().eq(0).tolist() == [False, True] * 4
    assert groups.freeze_zero_groups() == []
    assert all(p.requires_grad for p in groups.parameters)
    zero_out(groups, 0)
    assert groups.freeze_zero_groups() == [f"vit.layers.0.mlp.fc1.lora_{kind}" for kind in "AB"]


@settings(max_examples=20, deadline=None)
@given(group_by=st.sampled_from(GROUPINGS), zeros=st.sets(st.integers(0, 7)), tiny=st.booleans())
def test_a_group_is_active_if_it_changes_the_model(group_by, zeros, tiny):
    """Whatever matrices are zero: the groups called zero are those without which the outputs are the same bit for bit,
    and export leaves exactly them out. In a fresh adapter they are all."""
    model, groups = made(group_by)
    with torch.no_grad():
        for position, parameter in enumerate(groups.parameters):
            parameter.mul_(0.0 if position in zeros else 1e-30 if tiny else 1.0)
    pairs = [not {2 * pair, 2 * pair + 1} & zeros for pair in range(4)]
    changed = [any(pairs[p // 2] for p, g in enumerate(groups.group_of) if g == group) for group in range(len(groups))]
    assert groups.changed().tolist() == changed
    state = groups.state()
    assert state["active"] == groups.active_groups() == [n for n, c in zip(groups.names, changed, strict=True) if c]
    assert sorted([*state["active"], *state["zero"]]) == sorted(groups.names)
    assert state["zero_group_ratio"] == groups.zero_group_ratio() == changed.count(False) / len(groups)
    exported = drop_zero_pairs(get_peft_model_state_dict(model))
    assert len(exported) == 2 * sum(pairs)
    before = VIT.logits(model)
    with torch.no_grad():
        for parameter, group in zip(groups.parameters, groups.group_of, strict=True):
            parameter.mul_(float(changed[group]))
    assert torch.equal(before, VIT.logits(model))


@pytest.mark.parametrize("group_by", GROUPINGS)
def test_a_fresh_adapter_has_no_active_group_and_still_trains(group_by):
    """Its `lora_B` are zero, so that it changes nothing; it must not be frozen for that."""
    _model, groups = made(group_by, init_lora_weights=True)
    assert groups.active_groups() == []
    assert groups.zero_groups() == groups.names
    assert groups.freeze_zero_groups() == []


def test_by_matrix_the_partner_is_dropped_too():
    """Without its partner a matrix contributes nothing, so that both go."""
    _model, groups = made("matrix")
    norms = groups.norms()
    steps = torch.zeros_like(norms)
    steps[3] = 2 * norms[3]
    groups.proximal_step(steps, scale="none")
    assert groups.zero_groups() == ["vit.layers.0.mlp.fc2.lora_A", "vit.layers.0.mlp.fc2.lora_B"]


def test_training_with_proximal_steps():
    """Optimizer, proximal step and freezing together: the dropped group stays exactly zero, the others go on
    training."""
    model, groups = made(layers=3, init_lora_weights=True, lora_alpha=8)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    losses, zero_after = [], []
    for _ in range(12):
        loss = VIT.loss(model)
        loss.backward()
        optimizer.step()
        groups.proximal_step(0.02 * torch.tensor([2.0, 0.3, 0.3]))
        optimizer.zero_grad()
        groups.freeze_zero_groups()
        losses.append(loss.item())
        zero_after.append(groups.zero_groups())
    first = zero_after.index(["vit.layers.0"])
    assert 0 < first < 6
    assert all(zero == ["vit.layers.0"] for zero in zero_after[first:])
    assert losses[-1] < losses[first]
    assert all(bool(p.any()) == (g != 0) for p, g in zip(groups.parameters, groups.group_of, strict=True))


# --------------------------------------------------------------------------------------------------- devices and syncs


class HostSync(Exception):
    """A value would have to travel to the host."""


class NoHostSync(TorchDispatchMode):
    """Raises where a value would have to travel to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "equal"):
            raise HostSync(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("group_by", GROUPINGS)
def test_no_host_synchronisation(group_by, monkeypatch):
    """Norms, penalty, its gradient and the proximal step never wait for the device."""
    _model, groups = made(group_by)
    rates = torch.rand(len(groups))
    groups.norms()

    def refuse(*_):
        raise HostSync

    for method in ("item", "tolist", "__bool__", "__float__", "__int__", "__len__", "numpy"):
        monkeypatch.setattr(Tensor, method, refuse)
    with NoHostSync():
        groups.norms()
        groups.penalty().backward()
        groups.proximal_step(1e-3)
        groups.proximal_step(1e-3, keep_last=True)
        groups.proximal_step(rates, scale="none")
    monkeypatch.undo()
    with pytest.raises(HostSync), NoHostSync():
        groups.norms()[0].item()


@pytest.mark.parametrize("group_by", GROUPINGS)
def test_runs_on_the_meta_device(group_by):
    """Where there are no values at all, nothing can depend on them."""
    with torch.device("meta"):
        _model, groups = made(group_by)
    assert groups.norms().device.type == "meta"
    groups.penalty().backward()
    assert groups.parameters[0].grad.device.type == "meta"
    groups.proximal_step(1e-3)
    groups.proximal_step(torch.ones(len(groups), device="meta"))


def test_model_may_be_moved():
    """Groups follow the model to another device and dtype, and remember what was dropped."""
    model, groups = made()
    groups.proximal_step(torch.tensor([2.0, 0.0]) * groups.norms(), scale="none")
    model.to(torch.float64)
    assert groups.zero_groups() == ["vit.layers.0"]
    model.to("meta")
    assert groups.norms().device.type == "meta"
    assert groups._dropped.device.type == "meta"


def test_weights_may_be_loaded_later(tmp_path):
    """Groups see the matrices that are in the model now, also where loading has put new ones in."""
    model, groups = made()
    model.save_pretrained(tmp_path)
    loaded = get_peft_model(vit(), GSLoraConfig(r=4), low_cpu_mem_usage=True)
    later = LoraGroups(loaded)
    assert later.norms().device.type == "meta"
    state = load_file(tmp_path / "adapter_model.safetensors")
    set_peft_model_state_dict(loaded, state, low_cpu_mem_usage=True)
    assert torch.equal(later.norms(), groups.norms())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    """The same numbers as on CPU, without a synchronisation that CUDA would report; bit-equal from run to run."""
    model, groups = made()
    expected = groups.norms()
    model.cuda()
    groups.norms()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norms = groups.norms()
        groups.penalty().backward()
        groups.proximal_step(1e-4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(norms.cpu(), expected)
    assert all(torch.equal(groups.norms(), groups.norms()) for _ in range(5))
