"""What the collator gives is what the model trains on: the boxes where the objects are, and marked rightly."""

import numpy as np
import pytest
import torch
import transformers
from box_cases import found, make
from errors import refused
from torch.utils.data import DataLoader

from gs_lora_peft.data.boxes.annotations import InvalidBoxError
from gs_lora_peft.data.boxes.box_splits import split_boxes
from gs_lora_peft.data.boxes.collation import DetectionCollator
from gs_lora_peft.data.collation import default_collator
from gs_lora_peft.data.pairing import PairedCollator, PairedDataset, PairedSampler
from gs_lora_peft.errors import InvalidInputError

FIELD = [[0, 1], [1], [0], [2, 1, 3], [3, 0, 0]]
PROCESSORS = ["Detr", "ConditionalDetr", "DeformableDetr", "Yolos", "RTDetr"]


def processor(name, **kwargs):
    """The processor of a model, from its settings alone; without torchvision the one that works on PIL images."""
    size = {"height": 96, "width": 96} if name == "RTDetr" else {"shortest_edge": 96, "longest_edge": 256}
    return getattr(transformers, f"{name}ImageProcessor")(**{"size": size, **kwargs})


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_paired_batch_is_what_the_objective_needs(name):
    """Images to keep first, then those to forget; all annotations shown now, each marked by its category."""
    split = split_boxes(make(FIELD, images=True), ["ant"], old=["dog"])
    pairs = PairedDataset(split.retain, split.forget)
    collate = PairedCollator(DetectionCollator(processor(name), split.forget_classes, num_labels=4))
    loader = DataLoader(pairs, batch_size=2, sampler=PairedSampler(3, 3, 2), collate_fn=collate)
    for batch in loader:
        assert batch["pixel_values"].shape[:2] == (4, 3)
        assert batch["pixel_values"].dtype == torch.float32
        assert "pixel_mask" in batch or name == "RTDetr"
        for half, part in (("retain", batch["labels"][:2]), ("forget", batch["labels"][2:])):
            for label in part:
                shown = found(getattr(split, half))[int(label["image_id"])]
                assert label["class_labels"].tolist() == [c for c, _ in shown]
                assert label["forget"].tolist() == [c == 0 for c, _ in shown]
                x = (label["boxes"][:, 0] - label["boxes"][:, 2] / 2) * 64
                assert x.tolist() == pytest.approx([x for _, x in shown], abs=1e-3)
                assert label["boxes"].dtype == torch.float32
    assert len(batch["labels"]) == 4, "the last batch was filled up"


def test_evaluation_has_no_mark():
    """Without categories to forget there is nothing to mark."""
    batch = DetectionCollator(processor("Detr"))([make(FIELD, images=True)[0]])
    assert "forget" not in batch["labels"][0]


@pytest.mark.parametrize("name", ["Detr", "ConditionalDetr", "DeformableDetr", "Yolos"])
def test_boxes_where_images_are_padded(name):
    """Shares of the image itself for models that look at the mask; to YOLOS padding is part of the picture."""
    wide, high = make([[1]], images=True)[0], make([[1]], images=True)[0]
    high["image"] = high["image"].resize((64, 96))
    crowd = {"bbox": [[1.0, 1.0, 4.0, 4.0]] * 2, "category": [1, 2], "iscrowd": [0, 1]}
    rows = [{**wide, "objects": crowd}, {**high, "objects": crowd}]
    collate = DetectionCollator(processor(name, size={"shortest_edge": 64, "longest_edge": 96}))
    together = collate(rows)
    assert together["pixel_mask"].float().mean() < 1
    for row, label, mask in zip(rows, together["labels"], together["pixel_mask"], strict=True):
        alone = collate([row])["labels"][0]
        width, height = mask[0].float().mean().item(), mask[:, 0].float().mean().item()
        share = torch.tensor([width, height, width, height] if name == "Yolos" else [1.0] * 4)
        torch.testing.assert_close(label["boxes"], alone["boxes"] * share)
        torch.testing.assert_close(label["crowd_boxes"], label["boxes"])
        assert (label["class_labels"].tolist(), label["crowd_labels"].tolist()) == ([1], [2])


def flipped(kind):
    """Mirrors images and boxes, as an augmentation does: arrays as albumentations has them, tensors as torchvision."""

    def transform(batch):
        objects, images = [], []
        for image, row in zip(batch["image"], batch["objects"], strict=True):
            boxes = np.array(row["bbox"]).reshape(-1, 4)
            boxes[:, 0] = image.width - boxes[:, 0] - boxes[:, 2]
            mirrored = np.ascontiguousarray(np.array(image)[:, ::-1])
            objects.append({"bbox": kind(boxes), "category": kind(np.array(row["category"]))})
            images.append(mirrored if kind is np.array else kind(mirrored.transpose(2, 0, 1)))
        return {"image": images, "objects": objects}

    return transform


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_augmented_boxes_follow(kind):
    """Rows may be transformed by the user's own code; boxes and images are taken as they then are."""
    split = split_boxes(make(FIELD, images=True), ["ant"])
    rows = [split.forget[i] for i in range(3)]
    turned = [split.forget.with_transform(flipped(kind))[i] for i in range(3)]
    collate = DetectionCollator(processor("Detr"), split.forget_classes)
    plain, mirrored = collate(rows), collate(turned)
    for before, after in zip(plain["labels"], mirrored["labels"], strict=True):
        assert after["boxes"][:, 0].tolist() == pytest.approx((1 - before["boxes"][:, 0]).tolist(), abs=1e-5)
        assert after["forget"].tolist() == before["forget"].tolist()
    assert torch.allclose(mirrored["pixel_values"], plain["pixel_values"].flip(-1), atol=1e-5)


def test_albumentations():
    """The usual library of augmentations, as its users write it."""
    albumentations = pytest.importorskip("albumentations")
    augment = albumentations.Compose(
        [albumentations.HorizontalFlip(p=1), albumentations.CenterCrop(40, 40)],
        bbox_params=albumentations.BboxParams("coco", label_fields=["category"]),
    )

    def transform(batch):
        rows = [
            augment(image=np.array(image), bboxes=row["bbox"], category=row["category"])
            for image, row in zip(batch["image"], batch["objects"], strict=True)
        ]
        objects = [{"bbox": row["bboxes"], "category": [int(c) for c in row["category"]]} for row in rows]
        return {"image": [row["image"] for row in rows], "objects": objects}

    split = split_boxes(make([*FIELD, [0] * 16], images=True), ["ant"])
    rows = split.forget.with_transform(transform)
    batch = DetectionCollator(processor("Detr"), split.forget_classes)([rows[i] for i in range(len(rows))])
    assert 0 < len(batch["labels"][-1]["boxes"]) < 16, "the crop has cut boxes off"


def test_crowds_are_left_out_and_the_marks_with_them():
    """The processor drops crowds: marks made before it would be those of other boxes."""
    dataset = make([[0, 1, 0]], images=True, iscrowd=[[1, 0, 0]])
    batch = DetectionCollator(processor("Detr"), [0])([dataset[0]])
    assert batch["labels"][0]["forget"].tolist() == [False, True]


def test_an_image_without_boxes_is_background():
    """Random crops may leave nothing; shapes stay those of boxes."""
    label = DetectionCollator(processor("Yolos"), [0])([make([[]], images=True)[0]])["labels"][0]
    assert label["boxes"].shape == (0, 4)
    assert label["class_labels"].shape == label["forget"].shape == (0,)
    assert label["forget"].dtype == torch.bool


@pytest.mark.parametrize(
    ("objects", "part", "value"),
    [
        ({"bbox": [[1, 1, 5, 5]], "category": [4]}, ", category", 4),
        ({"bbox": [[1, 1, 5, 5]], "category": [-1]}, ", category", -1),
        ({"bbox": [[1, 1, 5, 5]], "category": ["ant"]}, ", category", "ant"),
        ({"bbox": [[1, 1, 5, -5]], "category": [0]}, ", box", [1, 1, 5, -5]),
        ({"bbox": [[64, 1, 5, 5]], "category": [0]}, ", box", [64, 1, 5, 5]),
        ({"bbox": [[1, 1, float("inf"), 5]], "category": [0]}, ", box", [1, 1, float("inf"), 5]),
        ({"bbox": [[1, 1, 5, 5]], "category": [0, 1]}, "", "boxes of shape (1, 4) and 2 categories"),
        ({"bbox": np.zeros((1, 48, 64)), "category": [0]}, "", "boxes of shape (1, 48, 64) and 1 categories"),
        ({"masks": [], "category": [0]}, "", ["masks", "category"]),
        ([[1, 1, 5, 5]], "", [[1, 1, 5, 5]]),
    ],
)
def test_rows_that_cannot_be_trained_on(objects, part, value):
    """An error names the mistakes of a transform before the first step."""
    row = {**make([[0]], images=True)[0], "objects": objects}
    kind = InvalidBoxError if part == ", box" else InvalidInputError
    with refused(f"row 0 of the batch, column 'objects'{part}", value, kind):
        DetectionCollator(processor("Detr"), [0], num_labels=4)([row])


def test_a_row_without_annotations_is_told_so():
    """A transform that returns the image alone is a common slip."""
    row = make([[0]], images=True)[0]
    del row["objects"]
    with refused("objects_column", "objects"):
        DetectionCollator(processor("Detr"))([row])


def with_processor(kind, batched):
    """A transform as in transformers' recipe for detection; the processor sees a batch, or one image at a time."""

    def transform(rows):
        count = len(rows["image"])
        annotations = [
            {
                "image_id": rows["image_id"][n],
                "annotations": [
                    {"bbox": box, "category_id": category, "area": box[2] * box[3], "iscrowd": 0}
                    for box, category in zip(*(rows["objects"][n][key] for key in ("bbox", "category")), strict=True)
                ],
            }
            for n in range(count)
        ]
        sets = [range(count)] if batched else [[n] for n in range(count)]
        made = [
            kind(
                images=[rows["image"][n] for n in part],
                annotations=[annotations[n] for n in part],
                return_tensors="pt",
            )
            for part in sets
        ]
        return {key: [value for part in made for value in part[key]] for key in made[0]}

    return transform


@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "in batches"])
@pytest.mark.parametrize("name", ["Detr", "Yolos", "RTDetr"])
def test_rows_that_a_transform_has_prepared_give_the_same_batch(name, batched):
    """Images of several sizes: padded to one, boxes as shares of what the model takes them for, marks added."""
    kind = processor(name)
    data = make([[1, 0], [2]], images=True)
    turned = data[1]["image"].resize((48, 64))
    data = data.map(lambda row: {"image": turned} if row["image_id"] else {}, features=data.features)
    collate = DetectionCollator(kind, [0])
    expected = collate([data[0], data[1]])
    batch = collate(data.with_transform(with_processor(kind, batched)).__getitems__([0, 1]))
    assert batch.keys() == expected.keys()
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"])
    for label, other in zip(batch["labels"], expected["labels"], strict=True):
        torch.testing.assert_close(label["boxes"], other["boxes"])
        for key in ("class_labels", "forget"):
            assert torch.equal(label[key], other[key])


def test_prepared_rows_need_no_processor_where_nothing_is_padded():
    """Without one it is not known what boxes are shares of in a padded image: then it is asked for."""
    data = make([[1, 0], [2]], images=True)
    prepared = data.with_transform(with_processor(processor("RTDetr"), False))
    batch = default_collator(None, "objects", prepared)(prepared.__getitems__([0, 1]))
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    rows = prepared.__getitems__([0, 1])
    rows[1]["pixel_values"] = rows[1]["pixel_values"][:, :, :64]
    with pytest.raises(InvalidInputError) as caught:
        default_collator(None, "objects", prepared)(rows)
    assert caught.value.name == "processing_class"
