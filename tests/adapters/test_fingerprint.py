import copy
import hashlib

import pytest
import torch
from errors import refused
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from gs_lora_peft.adapters import fingerprint
from gs_lora_peft.adapters.fingerprint import model_identity, weights_fingerprint


@pytest.fixture
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=5,
    )
    model = ViTForImageClassification(config)
    for parameter in model.parameters():  # no two tensors alike, as in a trained model
        nn.init.normal_(parameter)
    return model


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=4, **tokens))


def lora(*targets, **more):
    return LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False, **more)


def test_form_and_repeatability(vit):
    fingerprint = weights_fingerprint(vit)
    assert fingerprint.startswith("sha256:")
    assert len(bytes.fromhex(fingerprint.removeprefix("sha256:"))) == 32
    assert fingerprint == weights_fingerprint(vit) == weights_fingerprint(copy.deepcopy(vit))
    assert fingerprint == weights_fingerprint(vit.state_dict())
    assert fingerprint == weights_fingerprint(dict(reversed(vit.state_dict().items())))


def test_it_is_stable_across_versions_of_this_package():
    # Ledgers hold fingerprints: a change here makes every ledger there is refuse its own base model.
    state = {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "b.weight": torch.arange(6.0).reshape(2, 3) + 1,
        "b.bias": torch.ones(2, dtype=torch.bfloat16),
        "steps": torch.tensor(3),
    }
    assert weights_fingerprint(state) == "sha256:9e1f8ecf24ee37879b5033ee7957696280cf693a80c3ce770bf8d3176204e317"


def test_every_weight_and_buffer_counts(vit):
    before = weights_fingerprint(vit)
    seen = {before}
    for tensor in vit.state_dict().values():
        old = tensor.clone()
        tensor.view(-1)[-1] += 1
        seen.add(weights_fingerprint(vit))
        tensor.copy_(old)
    assert len(seen) == 1 + len(vit.state_dict())
    assert weights_fingerprint(vit) == before


def test_the_smallest_change_counts(vit):
    before = weights_fingerprint(vit)
    with torch.no_grad():
        bias = vit.classifier.bias
        bias[0] = torch.nextafter(bias[0], torch.tensor(torch.inf))
    assert weights_fingerprint(vit) != before


def test_bytes_are_compared_not_values():
    zero = {"w": torch.tensor([0.0, torch.nan])}
    assert weights_fingerprint(zero) == weights_fingerprint({"w": torch.tensor([0.0, torch.nan])})
    assert weights_fingerprint(zero) != weights_fingerprint({"w": torch.tensor([-0.0, torch.nan])})


def test_dtype_shape_and_exchanged_tensors_count(vit):
    before = weights_fingerprint(vit)
    state = vit.state_dict()
    assert weights_fingerprint({**state, "classifier.weight": state["classifier.weight"].T}) != before
    twins = [name for name, tensor in state.items() if tensor.shape == (16, 16)][:2]
    exchanged = {**state, twins[0]: state[twins[1]], twins[1]: state[twins[0]]}
    assert weights_fingerprint(exchanged) != before
    assert weights_fingerprint({k: v for k, v in state.items() if k != "classifier.bias"}) != before
    assert weights_fingerprint(vit.to(torch.bfloat16)) != before
    assert weights_fingerprint({"w": torch.zeros(4, dtype=torch.int16)}) != weights_fingerprint(
        {"w": torch.zeros(4, dtype=torch.bfloat16)}
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_all_dtypes(dtype):
    tensor = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    assert weights_fingerprint({"w": tensor}) == weights_fingerprint({"w": tensor.clone()})
    assert weights_fingerprint({"w": tensor}) != weights_fingerprint({"w": torch.tensor([[1, 0], [1, 1]]).to(dtype)})


def test_memory_layout_does_not_count():
    tensor = torch.randn(6, 4)
    padded = torch.randn(12, 8)
    padded[::2, ::2] = tensor
    expected = weights_fingerprint({"w": tensor})
    assert weights_fingerprint({"w": tensor.T.contiguous().T}) == expected
    assert weights_fingerprint({"w": padded[::2, ::2]}) == expected
    assert weights_fingerprint({"w": nn.Parameter(tensor)}) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_the_device_does_not_count(vit):
    before = weights_fingerprint(vit)
    assert weights_fingerprint(vit.cuda()) == before


def test_empty_tensors_scalars_and_other_entries():
    state = {"w": torch.ones(2), "none": torch.empty(0, 3), "steps": torch.tensor(7)}
    assert weights_fingerprint({**state, "_extra_state": b"x"}) == weights_fingerprint(state)
    assert weights_fingerprint({**state, "none": torch.empty(3, 0)}) != weights_fingerprint(state)
    assert weights_fingerprint({**state, "steps": torch.tensor(8)}) != weights_fingerprint(state)


def test_tied_weights_may_be_listed_once_or_twice(gpt2):
    before = weights_fingerprint(gpt2)
    state = gpt2.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    for left_out in ("lm_head.weight", "transformer.wte.weight"):
        assert weights_fingerprint({k: v for k, v in state.items() if k != left_out}) == before
    assert weights_fingerprint({k: v.clone() for k, v in state.items()}) == before
    assert weights_fingerprint({**state, "lm_head.weight": state["lm_head.weight"] + 1}) != before


def test_saved_and_loaded_models_keep_it(gpt2, tmp_path):
    before = weights_fingerprint(gpt2)
    gpt2.save_pretrained(tmp_path)
    assert weights_fingerprint(GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32)) == before


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"modules_to_save": ["layernorm"]}])
def test_peft_does_not_change_it(vit, more):
    before = weights_fingerprint(vit)
    wrapped = get_peft_model(vit, lora("fc1", "fc2", **more))
    wrapped.add_adapter("second", lora("fc1", "classifier"))
    for form in (wrapped, wrapped.base_model, wrapped.base_model.model):
        assert weights_fingerprint(form) == before
    assert weights_fingerprint(wrapped.state_dict()) == before
    assert weights_fingerprint(wrapped.base_model.model.state_dict()) == before
    with torch.no_grad():
        next(p for n, p in wrapped.named_parameters() if "base_layer" in n).add_(1)
    assert weights_fingerprint(wrapped) != before


def test_a_merged_adapter_changes_it(vit):
    before = weights_fingerprint(vit)
    wrapped = get_peft_model(vit, lora("fc1"))
    wrapped.merge_adapter()
    assert weights_fingerprint(wrapped) != before


def test_peft_on_tied_embeddings_and_in_the_native_form(gpt2):
    before = weights_fingerprint(gpt2)
    native = copy.deepcopy(gpt2)
    native.add_adapter(lora("c_attn", fan_in_fan_out=True))
    assert weights_fingerprint(native) == before
    with pytest.warns(UserWarning, match="(?i)tied|fan_in"):
        wrapped = get_peft_model(gpt2, lora("wte", "c_fc"))
    assert weights_fingerprint(wrapped) == before


class HasBaseLayer(nn.Module):
    """A model with a module of its own that is called `base_layer`, as some convolutional backbones have."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Sequential(nn.Linear(3, 3))
        self.level0 = nn.Linear(3, 2)


def test_a_module_called_base_layer_hides_nothing():
    model = HasBaseLayer()
    before = weights_fingerprint(model)
    wrapped = get_peft_model(copy.deepcopy(model), lora("base_layer.0", "level0"))
    assert weights_fingerprint(wrapped) == before
    with torch.no_grad():
        model.level0.weight.add_(1)
    assert weights_fingerprint(model) != before


def test_wrappers_of_torch_do_not_change_it(vit):
    before = weights_fingerprint(vit)
    assert weights_fingerprint(nn.DataParallel(get_peft_model(vit, lora("fc1")))) == before
    assert weights_fingerprint(torch.compile(vit)) == before


@pytest.mark.parametrize("bad", [{}, {"name": "a model"}, 3, [torch.ones(1)]])
def test_bad_input(bad):
    with refused("model_or_state_dict"):
        weights_fingerprint(bad)


def test_the_meta_device_is_refused():
    with refused("the device of 'bias'", "meta"):
        weights_fingerprint(nn.Linear(2, 2, device="meta"))


def test_identity(vit):
    vit.config._name_or_path, vit.config._commit_hash = "google/vit-base", "abc"
    expected = {
        "name_or_path": "google/vit-base",
        "revision": "abc",
        "model_class": "ViTForImageClassification",
        "num_labels": 5,
        "fingerprint": weights_fingerprint(vit),
    }
    assert model_identity(vit) == expected
    assert model_identity(get_peft_model(vit, lora("fc1"))) == expected


def test_identity_of_a_plain_module_and_of_an_unnamed_model(vit):
    unknown = {"name_or_path": None, "revision": None}
    plain = nn.Linear(2, 2)
    assert model_identity(plain) == {
        **unknown,
        "model_class": "Linear",
        "num_labels": None,
        "fingerprint": weights_fingerprint(plain),
    }
    assert {key: model_identity(vit)[key] for key in unknown} == unknown


REVISION = "0123456789" * 4


@pytest.mark.parametrize(
    ("path", "name", "revision"),
    [
        ("google/vit-base_patch16.224", "google/vit-base_patch16.224", None),
        ("gpt2", "gpt2", None),
        ("/home/someone/secret/my-vit", "my-vit", None),
        ("/home/someone/secret/my-vit/", "my-vit", None),
        ("./my-vit", "my-vit", None),
        ("../secret/my-vit", "my-vit", None),
        ("~/my-vit", "my-vit", None),
        ("secret/deep/my-vit", "my-vit", None),
        ("C:\\Users\\someone\\my-vit", "my-vit", None),
        ("\\\\server\\share\\my-vit", "my-vit", None),
        ("file:///home/someone/my-vit", "my-vit", None),
        ("/", None, None),
        (f"/home/someone/hub/models--google--vit/snapshots/{REVISION}", "google/vit", REVISION),
    ],
)
def test_no_path_of_the_machine_gets_out(path, name, revision):
    model = nn.Linear(2, 2)
    model.name_or_path = path
    identity = model_identity(model)
    assert (identity["name_or_path"], identity["revision"]) == (name, revision)
    assert "someone" not in str(identity)


def test_a_local_folder_that_looks_like_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "my-vit").mkdir(parents=True)
    model = nn.Linear(2, 2)
    model.name_or_path = "secret/my-vit"
    assert model_identity(model)["name_or_path"] == "my-vit"


def test_loaded_from_a_folder(vit, tmp_path):
    folder = tmp_path / "my-vit"
    vit.save_pretrained(folder)
    identity = model_identity(ViTForImageClassification.from_pretrained(folder))
    assert identity["name_or_path"] == "my-vit"
    assert identity["fingerprint"] == weights_fingerprint(vit)


def test_every_byte_is_hashed_once(monkeypatch):
    """A fingerprint costs about as much as one hash over the weights."""
    state = {f"w{i}": torch.randn(64, 64) for i in range(8)}
    hashed, sha256 = [], hashlib.sha256

    def counted(data):
        hashed.append(len(memoryview(data).cast("B")))
        return sha256(data)

    monkeypatch.setattr(fingerprint.hashlib, "sha256", counted)
    weights_fingerprint(state)
    assert sorted(hashed)[1:] == [64 * 64 * 4] * 8  # the shortest one is the list of hashes
