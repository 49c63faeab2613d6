"""What is trained again: the checks before, the place in the cache, and the training."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from huggingface_hub import cached_assets_path
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from ...adapters import weights_fingerprint
from ...checking import ClassRefs, checked
from ...compat import bare, fresh_model
from ...data import (
    NamedRows,
    check_dataset,
    check_names,
    check_pictures,
    default_collator,
    read_classes,
    remove_classes,
    resolve_classes,
)
from ...errors import InvalidInputError, PrivateInputError
from ...io import StrPath, as_path, exclusive_lock, json_bytes, sha256_of, staged_folder
from ...objectives import check_class_head, head_size, is_detector
from ...runs import names_of_head, newest_checkpoint
from ...training import ResumableTrainer
from ..samples import Samples
from .recipe import SCRATCH, RetrainRecipe

_FORMAT = "gs-lora-peft retrained 1"
_DIGESTED_ROWS = 8  # rows whose tensors tell one way to prepare the data from another
_LOCK, _WAIT = "training.lock", 1.0  # seconds between two looks at a lock that another launch holds
_NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "architectures", "dtype"}


@dataclass(frozen=True)
class Plan:
    """What is trained again, after all checks: everything but the seed."""

    original: PreTrainedModel
    kept: Dataset
    recipe: RetrainRecipe
    processing_class: Any
    data_collator: Callable
    cache: Path
    digested: list[bytes]  # what tells this plan from others

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        dataset: Dataset,
        classes: Sequence[str | int],
        *,
        recipe: RetrainRecipe | Mapping[str, Any] | None = None,
        processing_class: Any = None,
        data_collator: Callable | None = None,
        label_column: str = "label",
        cache: StrPath | None = None,
    ) -> Plan:
        own, how = bare(model), RetrainRecipe.of(recipe)
        if not isinstance(own, PreTrainedModel):
            expected = "a transformers.PreTrainedModel, whose configuration says how to build it"
            raise InvalidInputError("model", type(model).__name__, expected)
        check_class_head(own)
        check_dataset(dataset)
        names = _checked_names(own, dataset, label_column)
        folder = cached_assets_path("gs_lora_peft", "audit", "retrained") if cache is None else as_path(cache, "cache")
        how.arguments(folder, 0)  # refuses what transformers refuses
        kept = dataset
        if left_out := checked("classes", classes, ClassRefs, error=PrivateInputError):
            count = None if names else head_size(own)
            kept = remove_classes(dataset, resolve_classes(left_out, names=names, num_classes=count), label_column)
        collator = data_collator or default_collator(processing_class, label_column, kept)
        check_pictures(kept, "the training data")
        if how.start != SCRATCH:
            _check_start(own, how.start)
        config = {k: v for k, v in own.config.to_dict().items() if k not in _NOT_ARCHITECTURE}
        labels, _ = read_classes(kept, label_column)
        set_seed(0)  # random augmentation then gives the same tensors in every call
        digested = [
            json_bytes([type(own).__name__, config, asdict(how), _identity(how.start)]),
            json_bytes([len(kept), label_column]) + labels.tobytes(),
            _bytes_of(Samples(kept, collator, label_column).batch(range(min(len(kept), _DIGESTED_ROWS)))),
        ]
        return cls(own, kept, how, processing_class, collator, folder, digested)

    def carry_out(self, seed: int, disable_tqdm: bool | None) -> PreTrainedModel:
        """Trains the model with one seed, or reads it from the cache. Waits for a launch that trains the same."""
        parts = [_FORMAT.encode(), *self.digested, str(seed).encode()]
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        folder = self.cache / digest[:32] / "model"
        with _bars_of_files(shown=not disable_tqdm):
            if not _is_done(folder):
                with _alone(folder.parent):
                    if not _is_done(folder):
                        self._train(folder, seed, disable_tqdm)
            model: Any = type(self.original).from_pretrained(folder, dtype=self.original.dtype)
        return model.to(self.original.device).eval()

    def _train(self, folder: Path, seed: int, disable_tqdm: bool | None) -> None:
        state, work = PartialState(), folder.parent / "work"
        set_seed(seed)
        model = self._new_model()
        start = weights_fingerprint(model)
        args = self.recipe.arguments(work, seed, disable_tqdm)
        rows = NamedRows(self.kept, "the training data")  # a row that cannot be read is named
        trainer = ResumableTrainer(model, args, train_dataset=rows, data_collator=self.data_collator)
        checkpoint = newest_checkpoint(work, state.num_processes)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if weights_fingerprint(trainer.accelerator.unwrap_model(model)) == start:
            shutil.rmtree(work, ignore_errors=True)
            raise self._unmoved(trainer.state.max_steps)
        if state.is_main_process:
            with staged_folder(folder) as staged:
                trainer.accelerator.unwrap_model(model).save_pretrained(staged)
                if hasattr(self.processing_class, "save_pretrained"):
                    self.processing_class.save_pretrained(staged)
            shutil.rmtree(work, ignore_errors=True)
        state.wait_for_everyone()

    def _unmoved(self, steps: int) -> InvalidInputError:
        expected = f"a training that changes weights; {steps} step(s) end before the learning rate has risen from 0"
        fix = "Raise `epochs` (--retrain-epochs), or lower `warmup` or `batch_size` of the recipe."
        return InvalidInputError("recipe.epochs", self.recipe.epochs, expected, fix)

    def _new_model(self) -> PreTrainedModel:
        """A model with new weights; with the weights of a pre-trained backbone below its new head, if asked for."""
        model = fresh_model(self.original)
        if self.recipe.start != SCRATCH:
            _load_backbone(model, self.recipe.start)
        return model


def _is_done(folder: Path) -> bool:
    """Whether the model is there, as the main process sees it: all processes of a launch go the same way."""
    found = [all((folder / name).is_file() for name in ("config.json", "model.safetensors"))]
    broadcast_object_list(found)
    return found[0]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other launches out of a folder, whose checkpoints and logs they would overwrite."""
    state = PartialState()
    with ExitStack() as held:
        while state.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(exclusive_lock(folder / _LOCK))
                break
            except BlockingIOError:
                time.sleep(_WAIT)
        state.wait_for_everyone()
        yield


@contextmanager
def _bars_of_files(shown: bool) -> Iterator[None]:
    """Hides the progress of reading and writing weights, which would be shown after every epoch."""
    hide = logging.is_progress_bar_enabled() and not shown
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def _checked_names(model: PreTrainedModel, dataset: Dataset, label_column: str) -> list[str] | None:
    """The names of the classes. Labels that the head does not have, or that mean other classes to it, are refused."""
    labels, names = read_classes(dataset, label_column)
    count = head_size(model)
    if not len(labels):
        raise InvalidInputError("dataset", dataset, "labelled samples", "Pass the training data.")
    if count is not None and labels.max() >= count:
        fix = "Number them as the model does, with `gs_lora_peft.data.align_labels`."
        raise InvalidInputError(label_column, int(labels.max()), f"ids of the {count} classes of the head", fix)
    check_names(names, model, repr(label_column))
    return names or names_of_head(model)


def _bytes_of(batch: Any) -> bytes:
    """The tensors of a batch as bytes, in the order of their names."""
    if isinstance(batch, Mapping):
        return b"".join(str(name).encode() + _bytes_of(batch[name]) for name in sorted(batch))
    if isinstance(batch, (list, tuple)):
        return b"".join(map(_bytes_of, batch))
    # NumPy has no bfloat16.
    array = np.asarray(batch.float() if isinstance(batch, torch.Tensor) and batch.is_floating_point() else batch)
    return f"{array.dtype} {array.shape}".encode() + array.tobytes()


def _identity(start: str) -> list[str]:
    """The weights behind `start`: hashes of the files of a folder; nothing besides the id of a repository."""
    files = sorted(file for pattern in ("*.safetensors", "*.bin") for file in Path(start).glob(pattern))
    return [sha256_of(file) for file in files]


def _check_start(model: PreTrainedModel, start: str) -> None:
    if is_detector(model) or model.base_model is model:
        expected = "'scratch' for this model, whose backbone cannot be told from its class heads"
        raise InvalidInputError("recipe.start", start, expected, "Train it from scratch.")
    _load_backbone(fresh_model(model), start)


def _load_backbone(model: PreTrainedModel, start: str) -> None:
    """Loads the weights of a pre-trained backbone into a model with a new head."""
    backbone: Any = model.base_model
    fix = "Name a model of the same architecture, without a head or with any head."
    try:
        loaded, found = type(backbone).from_pretrained(start, output_loading_info=True)
        state = loaded.state_dict()
        absent = (set(found["missing_keys"]) | (set(backbone.state_dict()) - set(state))) & set(backbone.state_dict())
        if not absent:
            backbone.load_state_dict(state, strict=False)
            return
    except (OSError, ValueError, RuntimeError) as error:
        expected = f"weights of a {type(backbone).__name__}: {' '.join(str(error).split())}"
        raise InvalidInputError("recipe.start", start, expected, fix) from error
    expected = f"all weights of a {type(backbone).__name__}; {sorted(absent)[0]!r} is missing"
    raise InvalidInputError("recipe.start", start, expected, fix)
