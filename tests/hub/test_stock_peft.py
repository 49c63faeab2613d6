"""A published run in a process that has PEFT and transformers, but not this package."""

import hub_cases as cases
import numpy as np
import pytest
import torch
from loopback import OWNER
from peft import PeftModel
from PIL import Image
from transformers import ViTImageProcessor

PIXELS = cases.probe().tolist()


@pytest.fixture(scope="module")
def published(running_hub, client, first_task, finished):
    """Repositories with one task and with three."""
    names = {"me/stock-one": first_task, "me/stock-three": finished}
    for repo_id, (folder, _) in names.items():
        client("push", OWNER, folder=folder, repo_id=repo_id, private=False)
    return names


def test_the_package_is_absent(stock_client):
    """What follows happens without this package."""
    assert stock_client("imported", package="peft")
    assert not stock_client("imported", package="gs_lora_peft")


@pytest.mark.parametrize("load", ["peft", "auto_peft", "native"])
def test_one_task_is_bit_equal(hub, stock_client, published, load):
    """The root of a run with one task gives the logits of the live model, bit for bit, with every loader."""
    _, live = published["me/stock-one"]
    assert stock_client(load, repo_id="me/stock-one", pixels=PIXELS) == live


@pytest.mark.parametrize("load", ["peft", "auto_peft", "native"])
def test_all_tasks_together(hub, stock_client, published, load):
    """The root of a run with three tasks gives the logits of the live model up to rounding, with every loader."""
    _, live = published["me/stock-three"]
    found = stock_client(load, repo_id="me/stock-three", pixels=PIXELS)
    assert np.abs(np.subtract(found, live)).max() <= 1e-5


def test_one_task_of_many(hub, stock_client, published, base):
    """`subfolder` loads one task alone: the bits that the run's own folder gives."""
    folder, _ = published["me/stock-three"]
    found = stock_client("peft", repo_id="me/stock-three", pixels=PIXELS, subfolder="tasks/task_002")
    alone = PeftModel.from_pretrained(cases.load_base(base), folder / "tasks/task_002")
    assert found == cases.logits(alone)


def test_pipeline(hub, stock_client, published, first_task, base):
    """A pipeline that is given nothing but the repository finds base model, processor and adapter."""
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), "uint8")
    scores = stock_client("pipeline", repo_id="me/stock-one", image=image.tolist())
    model = PeftModel.from_pretrained(cases.load_base(base), first_task[0] / "tasks/task_001").eval()
    pixels = ViTImageProcessor.from_pretrained(base)(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.softmax(-1)[0].tolist()
    assert scores == pytest.approx(dict(zip(cases.NAMES, expected, strict=True)), abs=1e-6)


def test_an_earlier_commit(hub, client, stock_client, run_folder, short_run, repo_id):
    """`revision` gives the state of that time: the model of one task, after two more were published."""
    commit = client("push", OWNER, folder=short_run, repo_id=repo_id, private=False)[-40:]
    client("push", OWNER, folder=run_folder, repo_id=repo_id, private=False)
    then = stock_client("peft", repo_id=repo_id, pixels=PIXELS, revision=commit)
    now = stock_client("peft", repo_id=repo_id, pixels=PIXELS)
    assert then == stock_client("peft", repo_id="me/stock-one", pixels=PIXELS)
    assert now != then
