"""What tests let real clients do, in a process of its own (see `client_process.py`). Values are plain JSON.

Imports are inside of the functions: some of these processes must work without this package.
"""

import gc
import hashlib
import importlib.abc
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

# --- huggingface_hub alone


def commit(repo_id, files, delete=(), **options):
    """A commit that adds local files (path in the repository -> local path); gives its address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    operations = [CommitOperationAdd(path, Path(local)) for path, local in files.items()]
    operations += [CommitOperationDelete(path) for path in delete]
    return HfApi().create_commit(repo_id, operations, commit_message="test", **options).commit_url


def api(method, **arguments):
    """Any method of `HfApi`, its result as text."""
    from huggingface_hub import HfApi

    result = getattr(HfApi(), method)(**arguments)
    return str(list(result) if method.startswith("list_repo_tree") else result)


def download(repo_id, path, **options):
    """The content of one file."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, path, **options)).read_bytes().decode("latin-1")


def snapshot(repo_id, **options):
    """SHA-256 of all files of a revision."""
    from huggingface_hub import snapshot_download

    return _hashes(snapshot_download(repo_id, **options))


def _hashes(folder):
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# --- stock PEFT and transformers, with the base model from the Hub

BASE_ID = "me/tiny-vit"


def peft(repo_id, pixels, **options):
    """Logits of `PeftModel.from_pretrained`."""
    from peft import PeftModel

    return _logits(PeftModel.from_pretrained(_base(), repo_id, **options), pixels)


def auto_peft(repo_id, pixels, **options):
    """Logits of `AutoPeftModel`, which finds the base model by itself."""
    from peft import AutoPeftModel

    return _logits(AutoPeftModel.from_pretrained(repo_id, **options), pixels)


def native(repo_id, pixels, **options):
    """Logits of transformers' own loader."""
    model = _base()
    model.load_adapter(repo_id, **options)
    return _logits(model, pixels)


def pipeline(repo_id, image):
    """Scores by label of a pipeline that was given nothing but the repository, of a list of pixel rows."""
    import numpy
    import transformers
    from PIL import Image

    classify = transformers.pipeline("image-classification", model=repo_id)
    rows = classify(Image.fromarray(numpy.asarray(image, "uint8")), top_k=6)
    return {row["label"]: row["score"] for row in rows}


def imported(package):
    """Whether a package can be imported."""
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def _base():
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(BASE_ID)


def _logits(model, pixels):
    import torch

    with torch.no_grad():
        return model.eval()(pixel_values=torch.tensor(pixels)).logits.tolist()


# --- this package


def push_results(folder, repo_id, **options):
    """`push_results` of a benchmark."""
    _package()
    from gs_lora_peft.benchmark import push_results

    return push_results(folder, repo_id, **options)


def loaded_rows(repo_id, **options):
    """What `load_dataset` reads of a data set, row by row."""
    from datasets import load_dataset

    return load_dataset(repo_id, split="train", **options).to_list()


def push(folder, repo_id, **options):
    """`push_to_hub`."""
    return _package().push_to_hub(folder, repo_id, **options)


def load(base, repo_id, **options):
    """Logits of `load_forgotten`; with an error, the base model must not have been touched."""
    package = _package()
    import hub_cases as cases

    model = cases.load_base(base)
    before = package.weights_fingerprint(model)
    try:
        return cases.logits(package.load_forgotten(model, repo_id, **options))
    except Exception:
        if package.weights_fingerprint(model) != before or hasattr(model, "peft_config"):
            raise AssertionError("the base model was changed") from None
        raise


def fetch(repo_id, **options):
    """SHA-256 of the files that `fetch_run` brought."""
    _package()
    from gs_lora_peft.hub.fetch import fetch_run

    return _hashes(fetch_run(repo_id, **options))


def go_on(repo_id, base, folder, classes):
    """One more request on a published run; gives what the model says then."""
    package = _package()
    import hub_cases as cases
    import run_cases

    forgetter = package.ContinualForgetter.from_hub(
        repo_id, cases.load_base(base), cases.make_data(), folder, args=run_cases.make_args()
    )
    forgetter.forget(package.ForgetRequest(classes))
    return cases.logits(forgetter.model)


def merge(base, folder, out, **options):
    """`merge_forgotten`."""
    from gs_lora_peft import merge_forgotten

    merge_forgotten(base, folder, out, **options)


def verify(repo_id, **options):
    """What is wrong with a published run."""
    _package()
    from gs_lora_peft.hub import fetch_repository, verify_repository

    return verify_repository(fetch_repository(repo_id, **options)).problems


def command_line(arguments):
    """`gs-lora`; gives its exit code and what it printed on stdout and stderr."""
    import contextlib
    import io

    _package()
    from gs_lora_peft.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            return [end.code, out.getvalue(), err.getvalue()]


def call_trainer(base, output_dir, call, arguments, **options):
    """Trains a single adapter and calls a method of the trainer; gives what that returned, and logits."""
    package = _package()
    import hub_cases as cases
    import run_cases
    from peft import get_peft_model

    data = cases.make_data()
    split = package.split_dataset(data["train"], forget=cases.REQUESTS[0], label_column="label")
    model = get_peft_model(cases.load_base(base), package.GSLoraConfig(r=4))
    args = run_cases.make_args(output_dir=output_dir, num_train_epochs=1, **arguments)
    trainer = package.GSLoraTrainer(
        model, args, forget_dataset=split.forget, retain_dataset=split.retain, eval_dataset=data["test"]
    )
    trainer.train()
    trainer.evaluate()
    return [getattr(trainer, call)(**options), cases.logits(model)]


def _package():
    """This package, which does not wait either."""
    import gs_lora_peft
    import gs_lora_peft.hub.client.calls

    gs_lora_peft.hub.client.calls.time = _Clock()
    gc.freeze()  # each training collects garbage, which need not look at what was imported
    return gs_lora_peft


# --- the frame: one line of JSON in, one out

WAITS = []
PARTS = ("name", "value", "expected", "fix", "repo_id", "status")  # of errors, for tests to compare


class _Clock:
    """The module `time`, by which nobody waits: it goes forward at once, and what was waited for is noted."""

    def __getattr__(self, name):
        return getattr(time, name)

    def sleep(self, seconds):
        WAITS.append(seconds)
        time.sleep(0.01)

    def monotonic(self):
        return time.monotonic() + sum(WAITS)


class _Refuse(importlib.abc.MetaPathFinder):
    """As if a package were not installed: it is not found, nor is its version."""

    def __init__(self, package):
        self.package = package
        find = importlib.metadata.distribution

        def distribution(name):
            if name.replace("-", "_") == package:
                raise importlib.metadata.PackageNotFoundError(name)
            return find(name)

        importlib.metadata.distribution = distribution

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main():
    if sys.argv[1:]:
        sys.meta_path.insert(0, _Refuse(sys.argv[1]))
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    huggingface_hub.utils._http.time = huggingface_hub.file_download.time = _Clock()
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if request["token"]:
            os.environ["HF_TOKEN"] = request["token"]
        WAITS.clear()
        try:
            answer = {"value": globals()[request["function"]](**request["arguments"])}
        except Exception as error:
            parts = {name: getattr(error, name, None) for name in PARTS}
            parts["status"] = parts["status"] or getattr(getattr(error, "response", None), "status_code", None)
            kinds = [kind.__name__ for kind in type(error).__mro__]
            answer = {"error": kinds, "message": str(error), "parts": parts}
        answers.write(json.dumps({**answer, "waits": WAITS}, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
