"""Every Python block of the documentation is run as printed, page by page, and with it the commands on its run."""

import shlex
import shutil

import pytest
from docs_blocks import PAGES, blocks, commands, name_of
from docs_world import base_model, people, processor

from gs_lora_peft.cli import main

# Commands that take no data, so that the page's own run is enough for them.
CARRIED_OUT = ("show", "verify", "export", "merge", "revoke", "push", "pull")
WITH_PYTHON = [page for page in PAGES if any(block.kind == "python" and not block.reason for block in blocks(page))]
# Pages that begin with a run which another page has made, and a page that begins with its repository.
WITH_RUN = ("audit.md", "ledger.md", "sharing.md", "audit_report.md", "publish.md", "ship.md", "continue.md")
WITH_REPOSITORY = ("continue.md",)


def scope_of(page):
    """The names that pages use without making them; how-to/index.md explains them."""
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from gs_lora_peft import split_dataset
    from gs_lora_peft.audit import RetrainRecipe, retrain

    dataset = people()
    scope = {"base_model": base_model, "processor": processor(), "dataset": dataset}
    if page.name in ("methods.md", "training.md"):
        split = split_dataset(dataset["train"], forget=["person_07"], label_column="label")
        return scope | {"split": split, "validation": dataset["test"]}
    if page.name == "audit.md":
        options = {"recipe": RetrainRecipe(epochs=2), "seed": 1, "processing_class": processor()}
        forgotten = ["person_02", "person_07", "person_11"]
        return scope | {"retrained_model": retrain(base_model(), dataset["train"], forgotten, **options)}
    if page.name == "inputs.md":
        model = AutoModelForSequenceClassification.from_pretrained("org/topic-model")
        tokenizer = AutoTokenizer.from_pretrained("org/topic-model")
        return {"dataset": load_dataset("org/topics"), "text_classifier": model, "tokenizer": tokenizer}
    if page.name == "detection.md":
        return {"dataset": load_dataset("org/boxes")}
    if page.name == "faces.md":
        return {"image": dataset["test"][0]["image"]}
    return scope


def carry_out(line):
    """Runs a command of gs-lora in this process; 0 and "not forgotten" are the ends that a page may show."""
    words = shlex.split(line)
    if words[0] == "gs-lora" and words[1] in CARRIED_OUT:
        with pytest.raises(SystemExit) as end:
            main(words[1:])
        assert end.value.code in (0, 3), line


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
@pytest.mark.usefixtures("short_trainings")
def test_python_blocks_run(page, at_home, clinic, hub):
    """In one process, one after another. Trainings are cut short."""
    run_page(page, clinic, [block for block in blocks(page) if not block.needs])


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.needs for block in blocks(page))], ids=name_of)
@pytest.mark.usefixtures("short_trainings")
def test_python_blocks_that_need_more_packages_run(page, at_home, clinic, hub):
    """Skipped where one of the packages is not installed."""
    for block in blocks(page):
        for module in block.needs:
            pytest.importorskip(module)
    run_page(page, clinic, blocks(page))


def run_page(page, clinic, chosen):
    if page.name in WITH_RUN:
        shutil.copytree(clinic, "runs/clinic")
    if page.name in WITH_REPOSITORY:
        carry_out("gs-lora push runs/clinic org/clinic-forgotten")
    scope = scope_of(page)
    for block in chosen:
        if block.reason:
            continue
        if block.kind == "python":
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), scope)
        elif block.kind == "bash" and page.parent.name == "how-to":
            for line in commands(block):
                carry_out(line)
