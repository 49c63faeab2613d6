"""The app as visitors see it, in a headless browser: the click path, several of them at once, and what they leave."""

import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

gr = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

APP = Path(__file__).resolve().parents[2] / "app"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")]

# Names that stand nowhere else, so that a leak is found.
PEOPLE = ["Quillworth", "Zebrowska", "Oyelaran", "Tanizaki"]
RECIPE = {"epochs": 14, "learning_rate": 3e-3, "batch_size": 16}


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(APP))
    import app
    import sources

    yield app, sources
    sys.path.remove(str(APP))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A zip of real pictures, handwritten digits, in folders with the names of people."""
    digits = load_digits()
    path = tmp_path_factory.mktemp("zip") / "Quillworth and others.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(PEOPLE):
            for index, image in enumerate(digits.images[digits.target == number][:32]):
                file = path.with_name("picture.png")
                Image.fromarray(np.uint8(image * 15.9)).save(file)
                archive.write(file, f"album/{name}/{index}.png")
    return path


@pytest.fixture(scope="module")
def served(modules, tmp_path_factory):
    """The address of the page, and the folder of the server. The digits are few, to train fast."""
    app, sources = modules
    root = tmp_path_factory.mktemp("served")
    digits = load_digits()
    rows = np.concatenate([np.flatnonzero(digits.target == digit)[:40] for digit in range(5)])
    data = sources.split(
        (digits.images[rows] / 8 - 1).astype(np.float32)[:, None],
        digits.target[rows],
        ["zero", "one", "two", "three", "four"],
    )
    source = sources.trained(data, root / "digits", sources.RetrainRecipe(**RECIPE))
    page = app.build(root, source)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **app.OPTIONS)
    yield address, root
    page.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser, served):
    """Opens the page in a browser of its own; each call is another visitor."""
    opened = []

    def open_page():
        context = browser.new_context(accept_downloads=True)
        page = context.new_page()
        page.set_default_timeout(300_000)
        page.outside = []
        page.on("request", lambda request: _note_outside(page, request.url, served[0]))
        page.goto(served[0])
        page.get_by_role("button", name="Forget").wait_for()
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()


def _note_outside(page, url, address):
    if not url.startswith((address, "data:", "blob:")):
        page.outside.append(url)


def forget(page, *names):
    for name in names:
        page.get_by_label(name, exact=True).check()
    page.get_by_role("button", name="Forget").click()
    page.get_by_text("Forgetting:").wait_for()
    page.get_by_text("Done.").wait_for()


def figures(page, table, row):
    """The numbers in a row of a table."""
    cells = page.locator(f"{table} tr", has=page.get_by_role("rowheader", name=row, exact=True)).first.inner_text()
    return [float(number) for number in re.findall(r"([\d.]+) %", cells)]


def names_below(root):
    return [path.relative_to(root).as_posix() for path in root.rglob("*")]


def test_forget_look_attack_and_download(visitor, tmp_path, served):
    page = visitor()
    forget(page, "three")
    before, after = figures(page, "#scores", "Classes to forget")
    assert before > 80 > 20 > after
    assert figures(page, "#scores", "Classes to keep")[1] > 70
    assert page.locator("#blocks tr").count() == 6
    assert page.locator("#answers figure").count() == 16  # ten test pictures of the digit, six of others
    page.get_by_label("number input for Pictures of each class that the attacker has").fill("2")
    page.get_by_role("button", name="Attack").click()
    page.locator("#attacks .verdict").wait_for()
    assert "2 pictures of each class" in page.locator("#attacks").inner_text()
    assert page.locator("#attacks table").count() == 4
    assert figures(page, "#attacks", "original")[0] == before
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the adapter").click()
    check_zip(download.value, tmp_path, served)
    assert page.outside == []


def check_zip(download, folder, served):
    """What was downloaded has forgotten the digit, for stock PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForImageClassification

    download.save_as(folder / "got.zip")
    assert "three" not in download.suggested_filename
    with zipfile.ZipFile(folder / "got.zip") as archive:
        names = archive.namelist()
        archive.extractall(folder / "got")
    assert not [name for name in names if "three" in name]
    assert "adapter/adapter_model.safetensors" in names
    base = AutoModelForImageClassification.from_pretrained(folder / "got" / "base_model")
    digits = load_digits()
    threes = torch.as_tensor(digits.images[digits.target == 3][:40] / 8 - 1, dtype=torch.float32)[:, None]
    with torch.no_grad():
        before = base(pixel_values=threes).logits.argmax(1)
        model = PeftModel.from_pretrained(base, folder / "got" / "adapter").eval()
        after = model(pixel_values=threes).logits.argmax(1)
    assert (before == 3).float().mean() > 0.8 > 0.2 > (after == 3).float().mean()


def test_visitors_do_not_see_each_other_and_leave_nothing(visitor, people, served, capfd):
    """One brings pictures and forgets a person, while another looks at the digits. No name reaches a file or a log."""
    _, root = served
    first, second = visitor(), visitor()
    first.get_by_label("Your own pictures").check()
    first.locator("input[type=file]").set_input_files(people)
    first.get_by_label("Quillworth", exact=True).wait_for()
    assert [name for name in names_below(root) if "Quillworth" in name] == []  # the zip is deleted
    forget(first, "Quillworth")
    names, inside = names_below(root), first.locator("#answers").inner_text()
    assert "Quillworth" in inside
    assert "Quillworth" not in second.content()
    assert [name for name in names if any(person in name for person in PEOPLE)] == []
    visits = {name.split("/")[0] for name in names if name.startswith("visit-")}
    assert len(visits) >= 1
    for page in (first, second):
        page.context.close()
    wait_until(lambda: not [name for name in names_below(root) if re.search("visit-", name)])
    out, err = capfd.readouterr()
    assert [person for person in PEOPLE if person in out + err] == []


def wait_until(condition, seconds=60):
    import time

    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    assert condition()


def test_a_request_that_cannot_be_carried_out_is_explained(visitor):
    page = visitor()
    page.get_by_role("button", name="Forget").click()
    page.get_by_text("expected at least one class, and at most 3 of 5").wait_for()
    assert page.get_by_role("button", name="Attack").is_disabled()
    assert page.get_by_role("button", name="Download the adapter").is_disabled()
