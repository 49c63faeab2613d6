"""How `GS_LORA` becomes known to PEFT, and what happens where the name is taken."""

import copy
import multiprocessing
import pickle
import sys
import warnings

import pytest
import torch
from models import CASES, vit
from peft import LoraConfig, PeftModel, PeftType, TaskType, get_peft_model
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from processes import in_new_process

from gs_lora_peft import GSLoraConfig, GSLoraModel
from gs_lora_peft.tuner.registration import GS_LORA, add_peft_type, register


def test_member_is_a_whole_member_of_the_enum():
    """Every way to reach an enum member works, and the members that were there before are untouched."""
    member = PeftType[GS_LORA]
    assert PeftType(GS_LORA) is member is PeftType.GS_LORA
    assert isinstance(member, PeftType)
    assert member == GS_LORA == member.value == member.name
    assert str.__str__(member) == GS_LORA
    assert repr(member) == "<PeftType.GS_LORA: 'GS_LORA'>"
    assert hash(member) == hash(PeftType(GS_LORA))
    assert {member: 1}[PeftType.GS_LORA] == 1
    assert member in list(PeftType)
    assert GS_LORA in PeftType.__members__
    assert list(PeftType).count(member) == 1
    assert len(list(PeftType)) == len(PeftType.__members__)
    assert PeftType("LORA") is PeftType.LORA
    with pytest.raises(ValueError, match="NOT_A_TYPE"):
        PeftType("NOT_A_TYPE")
    assert GS_LORA not in TaskType.__members__


def test_member_survives_copies_and_pickles():
    """Copying or pickling gives the very same member, with every pickle protocol."""
    member = PeftType.GS_LORA
    assert copy.copy(member) is member
    assert copy.deepcopy({"type": member})["type"] is member
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(member, protocol)) is member


def test_mappings_point_at_this_package():
    """PEFT finds configuration, tuner and parameter prefix, the latter shared with LORA."""
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.GS_LORA] is GSLoraConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.GS_LORA] is GSLoraModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.GS_LORA] == PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.LORA] == "lora_"
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] is LoraConfig


def test_registering_twice_changes_nothing():
    """Both steps are idempotent and silent."""
    members, before = list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert add_peft_type(GS_LORA) is PeftType.GS_LORA
        register(GSLoraConfig, GSLoraModel)
    assert list(PeftType) == members
    assert before == PEFT_TYPE_TO_CONFIG_MAPPING


def test_steps_aside_where_the_name_is_taken(monkeypatch):
    """Whoever answers to the name already keeps it, and the user is told."""

    class Theirs(LoraConfig):
        pass

    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.GS_LORA, Theirs)
    with pytest.warns(UserWarning, match="Theirs"):
        register(GSLoraConfig, GSLoraModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.GS_LORA] is Theirs


def test_enum_that_refuses_the_member_is_noticed(monkeypatch):
    """If a future enum keeps other tables, importing says so instead of failing later."""
    name = "GS_LORA_TEST_ONLY"
    tables = {"_member_names_": list(PeftType._member_names_), "_member_map_": dict(PeftType._member_map_)}
    values = dict(PeftType._value2member_map_)
    hashable = list(getattr(PeftType, "_hashable_values_", []))

    class Deaf(dict):
        def __setitem__(self, key, value):
            pass

    try:
        type.__setattr__(PeftType, "_value2member_map_", Deaf(values))
        with pytest.raises((RuntimeError, ValueError), match="GS_LORA_TEST_ONLY"):
            add_peft_type(name)
    finally:
        for table, content in {**tables, "_value2member_map_": values}.items():
            type.__setattr__(PeftType, table, content)
        if hashable:
            PeftType._hashable_values_[:] = hashable
        if name in PeftType.__dict__:
            type.__delattr__(PeftType, name)
    assert name not in PeftType.__members__


@pytest.mark.slow
def test_import_in_a_new_process(tmp_path):
    """Importing the package, also after PEFT, is all it takes; loading an adapter of the type then works."""
    case = CASES["vit"]
    case.build().save_pretrained(tmp_path / "base")
    case.wrapped("GS_LORA").save_pretrained(tmp_path / "adapter")
    expected = case.logits(case.wrapped("GS_LORA"))
    torch.save({"batch": case.batch, "logits": expected}, tmp_path / "expected.pt")
    code = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
import torch
from peft import PeftModel, PeftType
from transformers import ViTForImageClassification
import gs_lora_peft, importlib
importlib.import_module("gs_lora_peft.tuner")
assert PeftType("GS_LORA") is PeftType.GS_LORA
folder = sys.argv[1]
model = PeftModel.from_pretrained(ViTForImageClassification.from_pretrained(folder + "/base"), folder + "/adapter")
expected = torch.load(folder + "/expected.pt")
with torch.no_grad():
    assert torch.equal(model(**expected["batch"]).logits, expected["logits"])
print("equal")
"""
    assert in_new_process(code, str(tmp_path)).strip() == "equal"


def logits_in_child(model: PeftModel, batch: dict[str, torch.Tensor], queue) -> None:
    """Run by a spawned process, which has imported nothing but this module."""
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115
    with torch.no_grad():
        queue.put(model(**batch).logits.numpy())


@pytest.mark.slow
def test_model_as_argument_of_a_spawned_process():
    """A wrapped model travels to a spawned process and gives the same outputs there."""
    case = CASES["vit"]
    model = case.wrapped("GS_LORA")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=logits_in_child, args=(model, case.batch, queue))
    process.start()
    received = torch.from_numpy(queue.get(timeout=120))
    process.join(timeout=30)
    assert process.exitcode == 0
    assert torch.equal(received, case.logits(model))


@pytest.mark.slow
def test_pickled_model_in_a_process_that_imports_nothing(tmp_path):
    """A pickled model brings the package along by itself."""
    case = CASES["vit"]
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((case.wrapped("GS_LORA"), case.batch)))
    code = """
import pickle, sys
assert "gs_lora_peft" not in sys.modules
model, batch = pickle.load(open(sys.argv[1], "rb"))
kind = model.peft_config["default"].peft_type.value
print(type(model.base_model).__name__, kind, model(**batch).logits.sum().item())
"""
    name, kind, total = in_new_process(code, str(path)).split()
    assert (name, kind) == ("GSLoraModel", "GS_LORA")
    assert float(total) == pytest.approx(case.logits(case.wrapped("GS_LORA")).sum().item(), rel=1e-5)


def test_mixed_adapter_types_get_pefts_error():
    """PEFT's mixed models know their own types only; the error is theirs and clear."""
    with pytest.raises(ValueError, match="GS_LORA"):
        get_peft_model(vit(), GSLoraConfig(), mixed=True)
