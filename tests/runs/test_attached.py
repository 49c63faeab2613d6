"""Requests on a quantised model: its weights never change, earlier adapters stay beside them, and all is exact."""

import pytest
import run_cases as cases
import torch
from accelerate import Accelerator
from errors import refused
from peft import PeftModel
from safetensors.torch import load_file, save_model
from torch import nn
from transformers import TorchAoConfig, Trainer, TrainingArguments, ViTImageProcessor, pipeline

from gs_lora_peft import ForgetRequest, export_forgotten, load_forgotten, merge_forgotten, weights_fingerprint
from gs_lora_peft.compat import quantised_part
from gs_lora_peft.ledger import LedgerError

REQUESTS = [["cassowary"], ["aardvark"]]


class EightBits(torch.Tensor):
    """A weight of 8 bits with a scale for each row, which tells its parts as torchao's do."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    @classmethod
    def of(cls, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    def dequantize(self):
        return self.numbers.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].numbers, args[0].scale)
        plain = [arg.dequantize() if isinstance(arg, cls) else arg for arg in args]
        return func(*plain, **(kwargs or {}))


class Int4Numbers(EightBits):
    """Named as torchao names weights of 4 bits."""


def by_hand(model, kind=EightBits):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(kind.of(module.weight.detach()), requires_grad=False)
    return model


def by_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def by_transformers(model):
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    return type(model).from_pretrained(model.name_or_path, quantization_config=config).eval()


def logits(model, data):
    with torch.no_grad():
        return model.eval()(pixel_values=data["test"][:]["pixel_values"]).logits


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("quantise", [by_hand, by_torchao, by_transformers])
def test_requests_one_after_another(base, data, tmp_path, quantise):
    """Forgotten, resumed, loaded bit-equal, and revoked down to the base; no weight changes on the way."""

    def quantised():
        return quantise(cases.load_base(base))

    folder, untouched = tmp_path / "run", quantised()
    assert quantised_part(untouched)
    forgetter = cases.make_forgetter(quantised(), folder, data)
    first = forgetter.forget(ForgetRequest(REQUESTS[0]))
    after_first = logits(forgetter.model, data)
    again = cases.make_forgetter(quantised(), folder, data)  # another process goes on
    assert torch.equal(logits(again.model, data), after_first)
    second = again.forget(ForgetRequest(REQUESTS[1]))
    for entry in (first, second):
        assert entry.scores["before"]["acc_forget"] > 0.7
        assert entry.scores["after"]["acc_forget"] <= 0.2
        assert entry.scores["after"]["acc_retain"] > 0.7
    assert second.scores["after"]["acc_old"] <= 0.2
    assert weights_fingerprint(again.model) == weights_fingerprint(untouched)

    after_second = logits(again.model, data)
    assert not torch.equal(after_second, after_first)
    assert torch.equal(logits(load_forgotten(quantised(), folder), data), after_second)
    assert torch.equal(logits(load_forgotten(quantised(), folder, tasks=1), data), after_first)
    again.revoke("task_002")
    assert torch.equal(logits(again.model, data), after_first)
    again.revoke("task_001")
    assert torch.equal(logits(again.model, data), logits(untouched, data))


def test_an_error_leaves_the_model_as_it_was(base, data, tmp_path, monkeypatch):
    """Also after the new adapter has been attached."""
    forgetter = cases.make_forgetter(
        by_hand(cases.load_base(base)), tmp_path / "run", data, args=cases.make_args(max_steps=1)
    )
    forgetter.forget(ForgetRequest(REQUESTS[0]))
    before = logits(forgetter.model, data)

    def fail(*args):
        raise cases.OnPurposeError

    monkeypatch.setattr(forgetter._scores, "after_task", fail)
    with pytest.raises(cases.OnPurposeError):
        forgetter.forget(ForgetRequest(REQUESTS[1]))
    assert torch.equal(logits(forgetter.model, data), before)


def test_what_would_change_weights_is_refused(base, data, tmp_path):
    """Merging, methods that train weights, tasks that are there already, and 4 bits; nothing is written for them."""
    folder, model = tmp_path / "run", by_hand(cases.load_base(base))
    cases.make_forgetter(model, folder, data, args=cases.make_args(max_steps=1)).forget(ForgetRequest(REQUESTS[0]))
    fresh = by_hand(cases.load_base(base))
    for call in (
        lambda: load_forgotten(fresh, folder, merge=True),
        lambda: merge_forgotten(fresh, folder, tmp_path / "out"),
        lambda: cases.make_forgetter(fresh, tmp_path / "other", data, method="ffn"),
        lambda: load_forgotten(model, folder),
        lambda: cases.make_forgetter(model, folder, data),
        lambda: cases.make_forgetter(by_hand(cases.load_base(base), Int4Numbers), tmp_path / "other", data),
    ):
        with refused("base_model"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def in_pipeline(model):
    return pipeline("image-classification", model=model, image_processor=ViTImageProcessor(), device="cpu")


def in_trainer(model, folder):
    return Trainer(model, TrainingArguments(folder, use_cpu=True, report_to="none"))


WRITES = {
    "save_pretrained": lambda model, out: model.save_pretrained(out),
    "save_pretrained of a part": lambda model, out: model.vit.save_pretrained(out),
    "push_to_hub": lambda model, out: model.push_to_hub("someone/model"),
    "save_pretrained to the Hub": lambda model, out: model.save_pretrained(out, push_to_hub=True),
    "compiled": lambda model, out: torch.compile(model).save_pretrained(out),
    "state_dict": lambda model, out: torch.save(model.state_dict(), out / "model.pt"),
    "safetensors": lambda model, out: save_model(model, str(out / "model.safetensors")),
    "accelerate": lambda model, out: Accelerator(cpu=True).save_model(model, out),
    "into another model": lambda model, out: nn.Identity().load_state_dict(model.state_dict()),
    "Trainer": lambda model, out: in_trainer(model, out).save_model(),
    "pipeline": lambda model, out: in_pipeline(model).save_pretrained(out),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("quantise", [by_hand, by_torchao])
def test_weights_that_remember_are_not_written(base, data, tmp_path, quantise):
    """No way to write the model leaves its weights, which know nothing of the tasks beside them; a copy writes none
    either. What a run can give is right: the tasks as one adapter, and those that are loaded."""
    folder, out = tmp_path / "run", tmp_path / "out"
    model = quantise(cases.load_base(base))
    forgetter = cases.make_forgetter(model, folder, data, args=cases.make_args(max_steps=2))
    forgetter.run(cases.requests(*REQUESTS))
    after = logits(model, data)
    for write in WRITES.values():
        out.mkdir(exist_ok=True)
        with refused("model"):
            write(model, out)
        assert [path for path in out.rglob("*") if path.suffix in (".safetensors", ".pt", ".bin")] == []

    loaded = load_forgotten(quantise(cases.load_base(base)), folder)
    loaded.save_pretrained(tmp_path / "adapters")
    export_forgotten(folder, tmp_path / "one")
    one = PeftModel.from_pretrained(quantise(cases.load_base(base)), tmp_path / "one")
    torch.testing.assert_close(logits(one, data), after)
    for name in ("task_001", "task_002"):
        kept, given = (
            load_file(path / name / "adapter_model.safetensors") for path in (tmp_path / "adapters", folder / "tasks")
        )
        assert cases.same(kept, given)

    for name in ("task_002", "task_001"):
        forgetter.revoke(name)
    assert model.state_dict()  # nothing is beside the weights any more
    assert "save_pretrained" not in vars(model)


def test_another_base_is_refused(base, data, tmp_path):
    """The fingerprint tells a quantised model from the exact one, and sees a change of one number of 8 bits."""
    folder, model, changed = tmp_path / "run", *(by_hand(cases.load_base(base)) for _ in range(2))
    changed.vit.layers[0].mlp.fc1.weight.numbers[0, 0] ^= 1
    cases.make_forgetter(model, folder, data, args=cases.make_args(max_steps=1)).forget(ForgetRequest(REQUESTS[0]))
    for other in (cases.load_base(base), changed):
        with pytest.raises(LedgerError):
            load_forgotten(other, folder)
