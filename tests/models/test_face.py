"""The face model: heads and margins, transformers' machinery around it, and forgetting people with it."""

import copy
import math

import face_cases as cases
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from errors import refused
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, Trainer, TrainingArguments

from gs_lora_peft import (
    ContinualForgetter,
    FaceTransformerConfig,
    FaceTransformerForRecognition,
    ForgetRequest,
    GSLoraConfig,
    GSLoraTrainer,
    GSLoraTrainingArguments,
    export_lora,
    find_ffn_blocks,
    merge_forgotten,
)
from gs_lora_peft.models.face.modeling import ArcFaceHead, CosFaceHead, SFaceHead

LABELS = torch.tensor([0, 1, 2, 3])
COSINES = torch.tensor([[0.9, 0.1, -0.3, 0.2], [0.5, -0.99, 0.4, 0.0], [1.0, 0.2, 1.0, -1.0], [0.3, 0.1, 0.2, -1.0]])


# Heads


def test_cosface():
    """The margin is taken from the cosine of the own class, before it is scaled."""
    expected = 16 * COSINES.clone()
    expected[LABELS, LABELS] -= 16 * 0.35
    torch.testing.assert_close(CosFaceHead(3, 4, 16.0, 0.35).margin_logits(16 * COSINES, LABELS), expected)


def test_arcface():
    """The margin is added to the own angle; past π the logit goes on falling. Slopes are finite at cosines of ±1."""
    margin = 0.5
    expected = 16 * COSINES.double()
    for i, cosine in enumerate(COSINES.diagonal().tolist()):
        angle = math.acos(cosine)
        own = math.cos(angle + margin) if angle + margin < math.pi else cosine - margin * math.sin(margin)
        expected[i, i] = 16 * own
    logits = (16 * COSINES).requires_grad_()
    found = ArcFaceHead(3, 4, 16.0, margin).margin_logits(logits, LABELS)
    torch.testing.assert_close(found.double(), expected, atol=5e-3, rtol=0)
    found.sum().backward()
    assert logits.grad.isfinite().all()


def test_sface():
    """The loss and its gradient are those of the paper, one sample and one class at a time."""
    scale, slope, a, b = 16.0, 80.0, 0.8, 1.22
    losses, gradient = [], torch.zeros(4, 4)
    for i, row in enumerate(COSINES.tolist()):
        total = 0.0
        for j, cosine in enumerate(row):
            angle = math.acos(cosine)
            own = -1 / (1 + math.exp(-slope * (angle - a)))
            other = 1 / (1 + math.exp(slope * (angle - b)))
            gradient[i, j] = own if i == j else other
            total += gradient[i, j].item() * scale * cosine
        losses.append(total)
    logits = (scale * COSINES).requires_grad_()
    found = SFaceHead(3, 4, scale, slope, a, b).losses(logits, LABELS)
    torch.testing.assert_close(found, torch.tensor(losses), atol=1e-4, rtol=1e-4)
    found.sum().backward()
    torch.testing.assert_close(logits.grad, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head_type", ["cosface", "arcface", "sface", "softmax"])
def test_margins_apply_in_training_only(head_type):
    """In evaluation logits are plain, labels or not, unless `margin_at_eval`; in training labels bring the margin."""
    model, pixels, labels = cases.face_model(head_type=head_type), cases.images(), cases.people()
    has_margin = head_type in ("cosface", "arcface")
    plain = model(pixel_values=pixels).logits
    own = torch.nn.functional.one_hot(labels, cases.PEOPLE).bool()

    def is_harder(logits):
        torch.testing.assert_close(logits[~own], plain[~own])
        harder = (plain - logits)[own] > 1
        assert harder.all() or not harder.any()
        return bool(harder.all())

    assert not is_harder(model(pixel_values=pixels, labels=labels).logits)
    assert is_harder(model.train()(pixel_values=pixels, labels=labels).logits) == has_margin
    assert not is_harder(model(pixel_values=pixels).logits)
    model.eval().config.margin_at_eval = True
    assert is_harder(model(pixel_values=pixels, labels=labels).logits) == has_margin


def test_a_margin_of_evaluation_alone():
    """A number as `margin_at_eval` changes nothing in training, survives saving, and is what evaluation takes off."""
    model, pixels, labels = cases.face_model(margin=0.3, margin_at_eval=0.1), cases.images(), cases.people()
    own = torch.nn.functional.one_hot(labels, cases.PEOPLE)
    plain = model(pixel_values=pixels).logits
    torch.testing.assert_close(model(pixel_values=pixels, labels=labels).logits, plain - 16 * 0.1 * own)
    torch.testing.assert_close(model.train().margin_logits(plain, labels), plain - 16 * 0.3 * own)
    assert FaceTransformerConfig.from_dict(model.config.to_dict()).evaluation_margin == 0.1


@pytest.mark.parametrize("head_type", ["cosface", "arcface", "sface", "softmax"])
def test_every_head_learns(head_type):
    """A few steps on its own loss teach each head who is who."""
    model = cases.face_model(head_type=head_type).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(pixel_values=cases.images(), labels=cases.people()).loss.backward()
        optimizer.step()
    assert model.eval()(pixel_values=cases.images()).logits.argmax(1).tolist() == cases.people().tolist()


def test_accumulated_losses():
    """Two halves divided by the whole number of images give the loss and gradient of the whole batch."""
    model, pixels, labels = cases.face_model().train(), cases.images(), cases.people()
    whole = model(pixel_values=pixels, labels=labels).loss
    halves = [
        model(pixel_values=pixels[part], labels=labels[part], num_items_in_batch=6).loss
        for part in (slice(2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(halves), whole)


# Configuration


@pytest.mark.parametrize(
    "changes",
    [
        {"head_type": "circle"},
        {"scale": 0.0},
        {"scale": "x"},
        {"scale": math.inf},
        {"margin": -0.1},
        {"margin": 0.1, "head_type": "softmax"},
        {"hidden_dropout_prob": -0.1},
        {"intermediate_dropout_prob": 1.0},
        {"margin_at_eval": "no"},
        {"margin_at_eval": -0.1},
        {"margin_at_eval": 0.1, "head_type": "softmax"},
        {"head_dim": 0},
        {"num_hidden_layers": 0},
        {"hidden_size": 33},
        {"patch_size": 0},
        {"image_size": [16, 16]},
        {"patch_padding": -1},
        {"patch_padding": 2, "patch_stride": 3},
        {"patch_padding": 0, "patch_size": 12, "patch_stride": 8},
    ],
    ids=str,
)
def test_bad_configurations(changes):
    """The error names the first of these settings and its value."""
    with refused(*next(iter(changes.items()))):
        cases.face_model(**changes)


def test_defaults_are_the_papers():
    """Depth 6, width 512, 8 heads of 64, MLP 2048, 112×112, patch 8, CosFace with s = 64 and m = 0.35, dropout 0.1."""
    config = FaceTransformerConfig()
    values = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.head_dim)
    assert values == (6, 512, 8, 64)
    assert (config.intermediate_size, config.image_size, config.patch_size, config.patch_stride) == (2048, 112, 8, 8)
    assert (config.head_type, config.scale, config.margin, config.hidden_dropout_prob) == ("cosface", 64, 0.35, 0.1)
    overlapping = FaceTransformerConfig(patch_size=12, patch_stride=8)
    assert (overlapping.patch_padding, FaceTransformerConfig(head_type="arcface").margin) == (4, 0.5)


def test_dropout_between_the_layers_of_the_feed_forward():
    """As in the papers' code it acts in training only, and is what the other dropout is unless it is set."""
    assert FaceTransformerConfig().intermediate_dropout_prob == 0.1
    assert FaceTransformerConfig(hidden_dropout_prob=0.3).intermediate_dropout_prob == 0.3
    model, pixels, seen = cases.face_model(intermediate_dropout_prob=0.5), cases.images(), []
    model.vit.layers[0].mlp.fc2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(pixel_values=pixels)
    model.train()(pixel_values=pixels)
    kept = seen[1] != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(seen[1][kept], 2 * seen[0][kept])
    assert model.state_dict().keys() == cases.face_model().state_dict().keys()


# transformers' machinery


@pytest.mark.parametrize(
    "changes", [{}, {"patch_size": 12, "patch_stride": 8}, {"head_dim": 12}, {"head_type": "softmax"}]
)
def test_save_and_load(tmp_path, changes):
    """Auto classes load what was saved, names and settings included, with equal outputs and embeddings."""
    names = {i: f"person_{i}" for i in range(cases.PEOPLE)}
    model, pixels = cases.face_model(id2label=names, **changes), cases.images()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    backbone = AutoModel.from_pretrained(tmp_path).eval()
    assert (type(config), type(loaded)) == (FaceTransformerConfig, FaceTransformerForRecognition)
    assert config.id2label == names
    with torch.no_grad():
        expected, found = model(pixel_values=pixels), loaded(pixel_values=pixels)
        embeddings = backbone(pixel_values=pixels).pooler_output
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(embeddings, expected.embeddings)


def test_attention_kernels_agree():
    """The attention scale of the papers reaches SDPA as well as the plain kernel."""
    model, pixels = cases.face_model(num_attention_heads=4), cases.images()
    outputs = {}
    for kernel in ("sdpa", "eager"):
        model.set_attn_implementation(kernel)
        outputs[kernel] = model(pixel_values=pixels).logits
    torch.testing.assert_close(outputs["sdpa"], outputs["eager"])
    assert {layer.attention.scaling for layer in model.vit.layers} == {0.25}


def test_gradient_checkpointing():
    """It saves memory, not gradients: they are the same."""
    gradients = []
    for checkpointing in (False, True):
        model = cases.face_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixel_values=cases.images(), labels=cases.people()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16():
    """Weights in bfloat16 and autocast give the cosines of float32 weights closely, in float32."""
    model, pixels, labels = cases.face_model(), cases.images(), cases.people()
    expected = model(pixel_values=pixels).logits / 16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(pixel_values=pixels).logits / 16
    half = copy.deepcopy(model).bfloat16().train()
    outputs = half(pixel_values=pixels, labels=labels)
    outputs.loss.backward()
    for found in (mixed, half.eval()(pixel_values=pixels).logits / 16):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters())


@pytest.mark.parametrize("changes", [{}, {"patch_size": 6, "patch_stride": 4}])
def test_other_image_sizes(changes):
    """Positions are interpolated for larger images, overlapping patches or not, and refused unless asked for."""
    model = cases.face_model(**changes)
    assert model(pixel_values=cases.images(2, 24), interpolate_pos_encoding=True).logits.shape == (2, cases.PEOPLE)
    with pytest.raises(ValueError, match=r"24\*24"):
        model(pixel_values=cases.images(2, 24))


def test_other_outputs():
    """Hidden states on request, and a plain tuple."""
    outputs = cases.face_model()(pixel_values=cases.images(), output_hidden_states=True)
    assert [state.shape for state in outputs.hidden_states] == [(6, 17, 16)] * 3
    logits, embeddings = cases.face_model()(pixel_values=cases.images(), return_dict=False)
    assert torch.equal(logits, outputs.logits)
    assert torch.equal(embeddings, outputs.embeddings)


# Forgetting people


def dataset(per_person=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    faces = cases.images(cases.PEOPLE, seed=5)
    labels = [i for i in range(cases.PEOPLE) for _ in range(per_person)]
    pixels = [(faces[i] + 0.3 * torch.randn(faces[i].shape, generator=generator)).tolist() for i in labels]
    features = Features(
        {
            "pixel_values": List(List(List(Value("float32")))),
            "label": ClassLabel(names=[f"person_{i}" for i in range(cases.PEOPLE)]),
        }
    )
    return Dataset.from_dict({"pixel_values": pixels, "label": labels}, features=features).with_format("torch")


@pytest.fixture(scope="module")
def knowing_model():
    """A model that knows everybody."""
    names = {i: f"person_{i}" for i in range(cases.PEOPLE)}
    model, data = cases.face_model(id2label=names, margin=0.2).train(), dataset(8)[:]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(pixel_values=data["pixel_values"], labels=data["label"]).loss.backward()
        optimizer.step()
    model.eval()
    assert (model(pixel_values=data["pixel_values"]).logits.argmax(1) == data["label"]).all()
    return model


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "num_train_epochs": 10,
        "learning_rate": 1e-2,
        "report_to": "none",
        "sparsity_weight": 0.0,
    }
    return GSLoraTrainingArguments(**{**settings, **changes})


def forgetting_trainer(model, folder, **changes):
    data = dataset()
    forget = data.filter(lambda label: label == 4, input_columns="label")
    retain = data.filter(lambda label: label < 4, input_columns="label")
    return GSLoraTrainer(model, arguments(folder, **changes), forget_dataset=forget, retain_dataset=retain)


def test_blocks_are_found():
    """The feed-forwards of the face model, and nothing of its head."""
    blocks = find_ffn_blocks(cases.face_model())
    assert blocks == {f"vit.layers.{i}": [f"vit.layers.{i}.mlp.fc1", f"vit.layers.{i}.mlp.fc2"] for i in range(2)}


def test_the_trainer_applies_the_margin(knowing_model, tmp_path):
    """In training the half to keep has the margin; in evaluation nothing has, unless `margin_at_eval`."""
    model = get_peft_model(copy.deepcopy(knowing_model), GSLoraConfig(r=2))
    trainer = forgetting_trainer(model, tmp_path)
    data = dataset(2)
    inputs = {"pixel_values": data[:]["pixel_values"], "labels": data[:]["label"]}
    own = torch.nn.functional.one_hot(inputs["labels"], cases.PEOPLE)
    plain = model.eval()(pixel_values=inputs["pixel_values"]).logits
    harder = plain - 16 * 0.2 * own

    expected = trainer.objective(torch.cat([harder[:5], plain[5:]]), inputs["labels"]).loss
    torch.testing.assert_close(trainer.compute_loss(model.train(), inputs), expected)

    def evaluated():
        return trainer.compute_loss(model.eval(), inputs, return_outputs=True)[1]["logits"]

    torch.testing.assert_close(evaluated(), plain)
    model.config.margin_at_eval = True
    torch.testing.assert_close(evaluated(), harder)
    right = (harder.argmax(1) == inputs["labels"])[:8]  # the last two are the person to forget
    assert trainer.score(data)["acc_retain"] == pytest.approx(right.float().mean().item())


def test_forget_export_reload(knowing_model, tmp_path):
    """A person is forgotten and the others are not; stock PEFT reloads the adapter, and merging gives the same."""
    model = get_peft_model(copy.deepcopy(knowing_model), GSLoraConfig(r=2))
    trainer = forgetting_trainer(model, tmp_path / "run")
    trainer.train()
    scores = trainer.score(dataset(seed=3))
    assert scores["acc_forget"] == 0
    assert scores["acc_retain"] > 0.9
    pixels = dataset()[:]["pixel_values"]
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixels).logits
        reloaded = PeftModel.from_pretrained(copy.deepcopy(knowing_model), export_lora(model, tmp_path / "plain"))
        assert reloaded.peft_config["default"].peft_type == "LORA"
        assert torch.equal(reloaded.eval()(pixel_values=pixels).logits, expected)
        merged = reloaded.merge_and_unload()(pixel_values=pixels).logits
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)


def test_a_run_over_requests_merges_into_a_face_model(knowing_model, tmp_path):
    """A run in a folder forgets, and its merged model is made from the path of the base alone."""
    base = tmp_path / "base"
    knowing_model.save_pretrained(base)
    model = AutoModelForImageClassification.from_pretrained(base)
    data = DatasetDict(train=dataset(), test=dataset(seed=3))
    forgetter = ContinualForgetter(
        model, data, tmp_path / "run", config=GSLoraConfig(r=2), args=arguments(tmp_path / "train", num_train_epochs=2)
    )
    forgetter.forget(ForgetRequest(["person_4"]))
    with pytest.warns(UserWarning, match="no processor was found"):
        out = merge_forgotten(base, tmp_path / "run", tmp_path / "out")
    merged = AutoModelForImageClassification.from_pretrained(out)
    assert isinstance(merged, FaceTransformerForRecognition)
    assert "from gs_lora_peft.models import FaceTransformerForRecognition" in (out / "README.md").read_text()
    assert not torch.equal(merged.vit.layers[0].mlp.fc1.weight, knowing_model.vit.layers[0].mlp.fc1.weight)


def test_stock_trainer(knowing_model, tmp_path):
    """transformers' own Trainer trains it and hands metrics the logits alone."""
    shapes = []
    trainer = Trainer(
        copy.deepcopy(knowing_model),
        TrainingArguments(
            str(tmp_path), use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, max_steps=1, report_to="none"
        ),
        train_dataset=dataset(),
        eval_dataset=dataset(1),
        data_collator=lambda rows: {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.stack([row["label"] for row in rows]),
        },
        compute_metrics=lambda prediction: shapes.append(prediction.predictions.shape) or {},
    )
    trainer.train()
    trainer.evaluate()
    assert shapes == [(cases.PEOPLE, cases.PEOPLE)]
