"""A run on a face model looked at from outside: who is known after each task, in numbers and pictures."""

import copy
import json
from dataclasses import astuple, replace

import face_cases as cases
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image as ImageFeature, List, Value
from errors import refused
from PIL import Image

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, GSLoraTrainingArguments
from gs_lora_peft.audit import (
    PICTURES_FOLDER,
    FacePredictions,
    audit_faces,
    draw_face_pictures,
    face_predictions,
    format_face_audit,
)
from gs_lora_peft.data.collation import default_collator
from gs_lora_peft.hub.publish import stage_repository
from gs_lora_peft.ledger import OtherBaseModelError


def faces(per_person, seed):
    """Noisy copies of one random pattern per person, as tensors and as pictures."""
    generator = torch.Generator().manual_seed(seed)
    patterns = cases.images(cases.PEOPLE, seed=5)
    labels = [person for person in range(cases.PEOPLE) for _ in range(per_person)]
    pixels = [patterns[i] + 0.3 * torch.randn(patterns[i].shape, generator=generator) for i in labels]
    pictures = [Image.fromarray((p[0].clamp(-2, 2) * 60 + 128).byte().numpy()) for p in pixels]
    features = Features(
        {
            "pixel_values": List(List(List(Value("float32")))),
            "image": ImageFeature(),
            "label": ClassLabel(names=[f"person_{i}" for i in range(cases.PEOPLE)]),
        }
    )
    rows = {"pixel_values": [p.tolist() for p in pixels], "image": pictures, "label": labels}
    return Dataset.from_dict(rows, features=features)


def collator(rows):
    return default_collator()(
        [{"pixel_values": torch.tensor(row["pixel_values"]), "label": row["label"]} for row in rows]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Base model, folder with two requests carried out and one person kept without data; the model then; test data."""
    base = cases.face_model(id2label={i: f"person_{i}" for i in range(cases.PEOPLE)}, margin=0.2)
    data, test = faces(6, 0), faces(4, 1)
    batch = collator(list(data))
    optimizer = torch.optim.Adam(base.train().parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        base(**batch).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("faces") / "run"
    args = GSLoraTrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", dataloader_pin_memory=False,
        per_device_train_batch_size=4, num_train_epochs=6, learning_rate=1e-2, remove_unused_columns=False,
    )  # fmt: skip
    forgetter = ContinualForgetter(
        copy.deepcopy(base.eval()), data, folder, config=GSLoraConfig(r=2), args=args, eval_dataset=test,
        data_collator=collator, missing_classes=["person_0"],
    )  # fmt: skip
    forgetter.run([ForgetRequest(["person_4"]), ForgetRequest(["person_1"])])
    return base, folder, forgetter, test


@pytest.fixture(scope="module")
def audit(run):
    base, folder, _, test = run
    return audit_faces(base, folder, test, data_collator=collator, batch_size=7)


def test_answers(run):
    """Embeddings, similarities and predictions are the model's own, one image at a time."""
    base, *_, test = run
    found = face_predictions(base, test, data_collator=collator, batch_size=3)
    for number, row in enumerate(test):
        with torch.no_grad():
            output = base(pixel_values=torch.tensor(row["pixel_values"])[None])
        own = row["label"]
        assert found.labels[number] == own
        np.testing.assert_allclose(found.embeddings[number], output.embeddings[0], atol=1e-5)
        assert found.similarities[number] == pytest.approx(output.logits[0, own].item() / 16, abs=1e-5)
        assert found.predictions[number] == output.logits.argmax()
        harder = output.logits[0] - 16 * 0.2 * torch.nn.functional.one_hot(torch.tensor(own), cases.PEOPLE)
        assert found.margin_predictions[number] == harder.argmax()


def test_it_says_what_the_ledger_says(run, audit):
    """After each task the rebuilt model is the run's: same accuracies, and in the end the same embeddings."""
    base, _, forgetter, test = run
    assert (audit.tasks, audit.forgotten) == (["task_001", "task_002"], [[4], [1]])
    for entry, found in zip(forgetter.ledger.tasks, audit.scores()["tasks"], strict=True):
        for when in ("before", "after"):
            for name in ("acc_forget", "acc_retain", "acc_old", "acc_missing"):
                assert found["cosine"][when][name] == entry.scores[when][name]
            assert found["margin"][when]["acc_retain"] <= found["cosine"][when]["acc_retain"]
        assert found["cosine"]["after"]["h_mean"] == entry.scores["after"]["h_mean"]
    last = face_predictions(forgetter.model, test, data_collator=collator, batch_size=7)
    np.testing.assert_array_equal(audit.predictions[-1].embeddings, last.embeddings)
    first = face_predictions(base, test, data_collator=collator, batch_size=7)
    np.testing.assert_array_equal(audit.predictions[0].embeddings, first.embeddings)


def test_a_margin_of_evaluation_alone(run):
    """A number as `margin_at_eval` is the margin that accuracy "with the margin" is measured by."""
    base, folder, _, test = run
    base = copy.deepcopy(base)
    base.config.margin_at_eval = 3.0
    found = audit_faces(base, folder, test, data_collator=collator)
    assert found.has_margin
    assert found.scores()["tasks"][0]["margin"]["before"]["acc_retain"] == 0


def test_people_kept_without_data(audit):
    """Who was kept without training data is Acc_m, and not part of Acc_r."""
    for task, kept in zip(audit.scores()["tasks"], (3, 2), strict=True):
        assert (task["cosine"]["after"]["n_retain"], task["cosine"]["after"]["n_missing"]) == (4 * kept, 4)


def test_verification_is_of_everybody_forgotten(audit):
    """People of both requests are compared with each other and with everybody, those kept among themselves."""
    scores = audit.scores()["verification"]
    for state in ("base", "after"):
        assert (scores[state]["forget"]["n_same"], scores[state]["forget"]["n_different"]) == (2 * 6, 16)
        against_all = scores[state]["forget_against_all"]
        assert (against_all["n_same"], against_all["n_different"]) == (2 * 6, 16 + 8 * 12)
        assert (scores[state]["retain"]["n_same"], scores[state]["retain"]["n_different"]) == (3 * 6, 48)
    json.dumps(audit.scores())


def test_the_tables(audit):
    """Two rows a task where there is a margin, six of verification, none unmeasured, and nobody's name."""
    text = format_face_audit(audit)
    assert text.count("task_001") == text.count("by the cosine") == text.count("with the margin") == 2
    assert text.count("after all tasks") == 3
    assert "person_" not in text
    assert "measured," not in text
    without = format_face_audit(copy.copy(audit).__class__(**{**vars(audit), "has_margin": False}))
    assert "with the margin" not in without


def first_request_only(audit, keep):
    """The audit of the first request, which forgets one person, on some of the images."""
    predictions = [FacePredictions(*(values[keep] for values in astuple(found))) for found in audit.predictions[:2]]
    return replace(audit, tasks=audit.tasks[:1], forgotten=audit.forgotten[:1], missing=[[]], predictions=predictions)


def test_one_person_alone(audit):
    """A request for one person has verification figures, and dashes are explained, with too few images as well."""
    labels = audit.predictions[0].labels
    whole = first_request_only(audit, labels >= 0)
    found = whole.scores()["verification"]["after"]
    assert (found["forget"]["n_same"], found["forget"]["n_different"], found["forget"]["eer"]) == (6, 0, None)
    against_all = found["forget_against_all"]
    assert (against_all["n_same"], against_all["n_different"]) == (6, 4 * 16)
    assert against_all["eer"] is not None
    few = "forgotten against all: no 1:1 accuracy, which takes ten pairs of either kind"
    nobody_else = "forgotten among themselves: not measured, images of one person only, no pairs of two"
    assert format_face_audit(whole).splitlines()[-2:] == [nobody_else, few]

    single = format_face_audit(first_request_only(audit, (labels != 4) | (np.arange(len(labels)) == len(labels) - 1)))
    assert single.splitlines()[-2:] == [
        "forgotten among themselves: not measured, no two images to compare",
        "forgotten against all: not measured, no two images of one person",
    ]


def test_pictures_are_private(run, audit, tmp_path):
    """Both pictures go to their own folder of the run, and a push would not take them along."""
    _, folder, _, test = run
    files = draw_face_pictures(audit, test, folder, method="pca")
    assert files == [folder / PICTURES_FOLDER / "faces.png", folder / PICTURES_FOLDER / "embedding_map.png"]
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) > 400
            assert len(set(picture.convert("L").resize((40, 40)).tobytes())) > 5
    stage_repository(folder, tmp_path / "published")
    published = [path for path in (tmp_path / "published").rglob("*") if path.is_file()]
    assert published
    originals = {file.read_bytes() for file in files}
    assert not [path for path in published if PICTURES_FOLDER in path.parts or path.read_bytes() in originals]


def test_what_does_not_fit_is_refused(run, audit, tmp_path):
    """Other data, another column, another method, another model, and no rows."""
    base, folder, _, test = run
    with refused("dataset", "3 rows"):
        draw_face_pictures(audit, test.select(range(3)), tmp_path)
    with refused("image_column", "photo"):
        draw_face_pictures(audit, test, tmp_path, image_column="photo")
    with refused("method", "umap"):
        draw_face_pictures(audit, test, tmp_path, method="umap")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OtherBaseModelError):
        audit_faces(cases.face_model(seed=3), folder, test, data_collator=collator)
    renamed = test.cast_column("label", ClassLabel(names=[f"person_{i}" for i in (1, 0, 2, 3, 4)]))
    with refused("'label': class 0", "person_1"):
        audit_faces(base, folder, renamed, data_collator=collator)
    with refused("model", "FaceTransformerModel"):
        face_predictions(base.vit, test, data_collator=collator)
    with refused("dataset", "no rows"):
        face_predictions(base, test.select([]), data_collator=collator)
