"""The configuration: defaults, what it refuses and how it says so, and how it is stored."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import refused
from hypothesis import given, strategies as st
from models import vit
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_config, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    EvaConfig,
    LoftQConfig,
    LoraGAConfig,
    LoraRuntimeConfig,
    MontecloraConfig,
    VeloraConfig,
)
from processes import in_new_process

from gs_lora_peft import GSLoraConfig, GSLoraModel
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.tuner.config import check_plain_lora


def test_defaults_are_the_papers():
    """Rank 8, scaling 1/8, feed-forward Linears, groups by block, no dropout."""
    config = GSLoraConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 1, 0.0, "none")
    assert (config.target_modules, config.group_by) == ("ffn", "block")
    assert config.is_structural
    assert config.peft_type == "GS_LORA"
    assert GSLoraConfig(target_modules=None).target_modules == "ffn"
    assert GSLoraConfig(target_modules="attention").is_structural
    assert not GSLoraConfig(target_modules=["fc1"]).is_structural
    assert not GSLoraConfig(target_modules=r".*fc1").is_structural


REFUSED: list[dict[str, Any]] = [
    {"use_dora": True},
    {"use_qalora": True},
    {"lora_bias": True},
    {"modules_to_save": ["classifier"]},
    {"trainable_token_indices": [1, 2]},
    {"layer_replication": [(0, 1), (0, 1)]},
    {"target_parameters": ["experts.weight"]},
    {"ensure_weight_tying": True},
    {"megatron_config": {"tensor_model_parallel_size": 1}},
    {"alora_invocation_tokens": [1]},
    {"arrow_config": ArrowConfig()},
    {"corda_config": CordaConfig()},
    {"lora_ga_config": LoraGAConfig()},
    {"loftq_config": LoftQConfig()},
    {"velora_config": VeloraConfig()},
    {"monteclora_config": MontecloraConfig()},
    {"use_bdlora": BdLoraConfig()},
    {"qalora_group_size": 8},
    {"runtime_config": LoraRuntimeConfig(ephemeral_gpu_offload=True)},
    {"eva_config": EvaConfig()},
    {"bias": "all"},
    {"bias": "lora_only"},
    *(
        {"init_lora_weights": init}
        for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "unheard_of")
    ),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", REFUSED, ids=lambda value: str(value)[:60])
def test_options_that_cannot_work_are_refused(options):
    """The error names option and value, and PEFT's softer warnings do not come first."""
    with refused(*next(iter(options.items()))):
        GSLoraConfig(**options)


def test_every_variant_of_lora_is_accounted_for():
    """An option that PEFT marks as a variant of LoRA is refused here, unless it is a plain one; new ones show up."""
    variants = [f for f in LoraConfig.__dataclass_fields__.values() if f.metadata.get("is_lora_variant")]
    unknown = [f.name for f in variants if f.name != "init_lora_weights"]
    for name in unknown:
        with refused(name, {"anything": 1}):
            check_plain_lora({name: {"anything": 1}})


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
def test_task_types_that_train_the_head_are_refused(task):
    """These task types put the head into `modules_to_save` behind the user's back."""
    with refused("task_type", task):
        GSLoraConfig(task_type=task)
    assert GSLoraConfig(task_type="CAUSAL_LM").task_type == "CAUSAL_LM"


VARIANTS = {
    "mica": {"init_lora_weights": "mica"},
    "velora": {"velora_config": VeloraConfig(num_groups=4)},
    "monteclora": {"monteclora_config": MontecloraConfig()},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_said_of_variants_is_true(name):
    """What errors and comments say, looked up in PEFT: none of these touches the base weights; B of MiCA does not
    train; VeLoRA keeps a buffer and MonteCLoRA trains a sampler beside the matrices."""
    base = vit()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(target_modules=["mlp.fc1"], r=4, **VARIANTS[name]))
    after = {key.replace(".base_layer", ""): value for key, value in model.get_base_model().state_dict().items()}
    assert all(value.equal(after[key]) for key, value in before.items())
    trains = {key.rsplit(".lora_", 1)[1] for key, p in model.named_parameters() if p.requires_grad}
    saved = {key.rsplit(".lora_", 1)[1] for key in get_peft_model_state_dict(model)}
    assert ("B.default.weight" in trains) == (name != "mica")
    assert any("velora" in key for key in saved) == (name == "velora")
    assert any("sampler" in key for key in trains) == (name == "monteclora")


def test_options_set_after_the_configuration_was_made_are_refused():
    """Changing a field later does not get around the check."""
    config = GSLoraConfig()
    config.modules_to_save = ["classifier"]
    with refused("modules_to_save", ["classifier"]):
        get_peft_model(vit(), config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block_pattern": "layers.["}, "regular expression"),
        ({"exclude_blocks": "(", "target_modules": "attention"}, "regular expression"),
        ({"block_pattern": 3}, "regular expression"),
        ({"target_modules": "*.fc1"}, "regular expression"),
        ({"exclude_modules": "*.fc1"}, "regular expression"),
        ({"target_modules": []}, "one module"),
        ({"target_modules": ""}, "one module"),
        ({"block_pattern": "vision", "target_modules": ["fc1"]}, "['fc1']"),
        ({"exclude_blocks": "text", "target_modules": ".*fc1"}, "'.*fc1'"),
        ({"layers_to_transform": [0]}, "'ffn'"),
        ({"layers_to_transform": 0, "target_modules": "attention"}, "'attention'"),
        ({"layers_pattern": "layers"}, "'ffn'"),
        ({"layers_to_transform": [0], "target_modules": ".*fc1"}, "'.*fc1'"),
        ({"layers_to_transform": [], "target_modules": ["fc1"]}, "at least one layer"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_values_are_refused(options, said):
    """A value that means nothing is refused where it is given."""
    with refused(*next(iter(options.items()))) as error:
        GSLoraConfig(**options)
    assert said in error.value.expected


def test_unknown_task_types_get_pefts_error():
    with pytest.raises(ValueError, match="FORGETTING"):
        GSLoraConfig(task_type="FORGETTING")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("r", bad) for bad in (0, -3, 2.0, True, "8", None, float("nan"))),
        *(("lora_alpha", bad) for bad in (0, 0.0, float("nan"), float("inf"), "1", True, None)),
        *(("lora_dropout", bad) for bad in (-0.1, 1.0, "0", float("nan"), None)),
        *(("use_rslora", bad) for bad in ("no", 3, None)),
        *(("group_by", bad) for bad in ("layer", None, 1)),
        *(("target_modules", bad) for bad in (5, True, [1], {"fc1": 1}, b"fc1")),
        *(("exclude_modules", bad) for bad in (5, [None])),
        *((name, bad) for name in ("rank_pattern", "alpha_pattern") for bad in ([8], "fc1", {1: 2})),
    ],
)
def test_values_of_another_type_or_out_of_range(name, bad):
    """Text is no number, True is none, a number is no name: the error has the argument and the value."""
    with pytest.raises(InvalidInputError) as caught:
        GSLoraConfig(**{name: bad})
    assert caught.value.name.partition("[")[0] == name


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("bad", [0, "8", True, float("nan")])
def test_patterns_name_the_bad_entry(name, bad):
    """Each value in a pattern is checked as the one it stands for."""
    with refused(f"{name}['fc1']") as error:
        GSLoraConfig(**{name: {"fc2": 4, "fc1": bad}})
    assert error.value.value is bad


def test_numbers_of_numpy_are_numbers():
    """They are kept as Python's own, which JSON can hold; integers stay integers."""
    config = GSLoraConfig(r=np.int64(4), lora_alpha=np.float32(2), lora_dropout=np.float64(0.5), use_rslora=np.True_)
    values = [config.r, config.lora_alpha, config.lora_dropout, config.use_rslora]
    assert values == [4, 2.0, 0.5, True]
    assert [type(value) for value in values] == [int, float, float, bool]
    assert type(GSLoraConfig(lora_alpha=3).lora_alpha) is int


def test_layers_to_transform_works_with_a_list():
    """PEFT's own restriction stays available where PEFT itself reads the targets."""
    model = get_peft_model(vit(3), GSLoraConfig(target_modules=["fc1"], layers_to_transform=[0, 2]))
    assert model.base_model.targeted_module_names == ["vit.layers.0.mlp.fc1", "vit.layers.2.mlp.fc1"]


def full_config(**options: Any) -> GSLoraConfig:
    return GSLoraConfig(
        **{
            "r": 4,
            "lora_alpha": 3,
            "block_pattern": r"layers\.\d",
            "exclude_blocks": r"layers\.1",
            "group_by": "module",
            "rank_pattern": {"fc1": 2},
            "exclude_modules": ["z.fc2", "a.fc2", "m.fc2"],
            **options,
        }
    )


def test_json_round_trip(tmp_path):
    """Every field comes back, through the class itself and through PEFT's generic entry points."""
    config = full_config()
    config.save_pretrained(tmp_path)
    for loaded in (GSLoraConfig.from_pretrained(tmp_path), PeftConfig.from_pretrained(tmp_path)):
        assert type(loaded) is GSLoraConfig
        assert loaded == config
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert type(get_peft_config(values)) is GSLoraConfig


def test_runtime_attributes_are_not_stored(tmp_path):
    """What belongs to one model or one process stays out of adapter_config.json, also after injection."""
    config = full_config(exclude_modules=None)
    model = get_peft_model(vit(3), config)
    assert config._resolved_targets
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    fields = set(GSLoraConfig.__dataclass_fields__) - {"runtime_config"}
    assert set(values) == fields
    assert values["peft_type"] == "GS_LORA"


@pytest.mark.slow
def test_saved_configuration_is_reproducible(tmp_path):
    """Lists of modules are written sorted, whatever order strings hash in, so that the same adapter gives the same
    bytes."""
    code = (
        "import sys; from gs_lora_peft import GSLoraConfig; "
        "GSLoraConfig(target_modules=list('gfedcba'), exclude_modules=['y', 'x', 'z']).save_pretrained(sys.argv[1])"
    )
    in_new_process(code, str(tmp_path / "there"))
    GSLoraConfig(target_modules=list("cdefgab"), exclude_modules=["x", "z", "y"]).save_pretrained(tmp_path / "here")
    here, there = ((tmp_path / side / "adapter_config.json").read_bytes() for side in ("here", "there"))
    assert here == there
    values = json.loads(here)
    assert values["target_modules"] == list("abcdefg")
    assert values["exclude_modules"] == ["x", "y", "z"]


@given(st.lists(st.text("abc.", min_size=1, max_size=6), min_size=1, max_size=6, unique=True))
def test_to_dict_loses_no_module(names):
    """Sorting neither drops nor invents a name, and the dictionary builds the same configuration."""
    config = GSLoraConfig(target_modules=names)
    assert config.to_dict()["target_modules"] == sorted(names)
    assert GSLoraConfig(**config.to_dict()) == config


def test_copies_and_pickles():
    """Copies are equal and independent; the runtime attribute travels with a pickle."""
    config = full_config()
    config._resolved_targets = frozenset({"layers.0.fc1"})
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        assert twin is not config
        assert twin._resolved_targets == config._resolved_targets
        assert twin.peft_type is config.peft_type


@pytest.mark.slow
def test_pickle_is_read_by_a_process_that_imports_nothing(tmp_path):
    """A pickled configuration, its dictionary and the bare type bring the package along by themselves."""
    path = tmp_path / "config.pickle"
    config = GSLoraConfig(r=3)
    path.write_bytes(pickle.dumps([config.peft_type, config.to_dict(), config]))
    code = (
        "import pickle, sys; import peft; assert 'gs_lora_peft' not in sys.modules; "
        "kind, values, config = pickle.load(open(sys.argv[1], 'rb')); "
        "assert kind is peft.PeftType.GS_LORA is values['peft_type'] is config.peft_type; "
        "print(type(config).__name__, config.r)"
    )
    assert in_new_process(code, str(path)).split() == ["GSLoraConfig", "3"]


@pytest.mark.slow
def test_a_process_without_the_package_cannot_read_the_training_form(tmp_path):
    """What the docstring says about adapter_config.json: PEFT alone does not know the type; one import is enough."""
    GSLoraConfig().save_pretrained(tmp_path)
    code = (
        "import sys; from peft import PeftConfig\n"
        "try: PeftConfig.from_pretrained(sys.argv[1])\n"
        "except (KeyError, ValueError) as error: print('unknown')\n"
        "import gs_lora_peft; print(PeftConfig.from_pretrained(sys.argv[1]).peft_type.value)"
    )
    assert in_new_process(code, str(tmp_path)).split() == ["unknown", "GS_LORA"]


def test_one_configuration_for_two_models():
    """Structural targets are answered anew for every model, so that a configuration can be used again."""
    config = GSLoraConfig(r=2)
    three, two = get_peft_model(vit(3), config), get_peft_model(vit(2), copy.deepcopy(config))
    assert len(three.base_model.targeted_module_names) == 6
    assert len(two.base_model.targeted_module_names) == 4
    assert len(get_peft_model(vit(3), config).base_model.targeted_module_names) == 6


def test_docstring_example(tmp_path: Path):
    """The example of the docstring works and stays structural after saving."""
    model = get_peft_model(vit(), GSLoraConfig(r=8))
    assert isinstance(model, PeftModel)
    assert isinstance(model.base_model, GSLoraModel)
    model.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).structural_target == "ffn"
