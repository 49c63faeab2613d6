"""What belongs to one visitor: a folder, a run, its attacks. It disappears when the visitor leaves."""

from __future__ import annotations

import copy
import queue
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from progress import Progress, Reporter, VisitEnded
from sources import Source, own_pictures, trained
from transformers import PreTrainedModel

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraTrainingArguments, export_forgotten
from gs_lora_peft.audit import AuditReport, RetrainRecipe, audit_run, get_attacks, retrain
from gs_lora_peft.data import default_collator
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.ledger import TaskEntry

PREFIX = "visit-"
UPDATES = 25  # of the curves, in one training
LEAST_KEPT = 2  # with a single class there is nothing to tell apart

README = """\
# A sparse adapter that forgets

`adapter/` is plain LoRA, `base_model/` is the model that it belongs to. Both are safetensors.

```python
from peft import PeftModel
from transformers import AutoModelForImageClassification

base = AutoModelForImageClassification.from_pretrained("base_model")
model = PeftModel.from_pretrained(base, "adapter").merge_and_unload()  # has forgotten
```

The base model still knows what was forgotten: take the adapter off, and it is back. To hand out a model that has
forgotten, save the merged one, and hand out that one alone.
"""


@dataclass
class Visit:
    """One visitor. All files are below `folder`, whose name is random.

    Args:
        root (`Path`):
            Where the folder is made.
        source ([`Source`], *optional*):
            What is forgotten from.

    Attributes:
        model (`transformers.PreTrainedModel`, *optional*):
            The model that has forgotten.
        entry ([`TaskEntry`], *optional*):
            What the ledger records of it.
        used (`float`):
            When the visit was last used, in seconds of `time.monotonic`.
    """

    root: Path
    source: Source | None = None
    model: PreTrainedModel | None = field(init=False, default=None)
    entry: TaskEntry | None = field(init=False, default=None)
    used: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.root))
        self.token = self.folder.name.removeprefix(PREFIX)
        self.run, self.models = self.folder / "run", self.folder / "models"
        self._ended = threading.Event()
        self._busy = threading.Lock()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Keeps others from working on this visit in the block. Raises [`VisitEnded`] after its end."""
        with self._busy:
            if self._ended.is_set():
                raise VisitEnded
            yield

    def _collator(self) -> Callable[[Any], Any]:
        """Makes batches until the visit is over, which so ends a training."""
        collate = default_collator()

        def collated(rows: Any) -> Any:
            if self._ended.is_set():
                raise VisitEnded
            return collate(rows)

        return collated

    def choose(self, source: Source | None) -> None:
        """Begins anew with a data set and its model. Raises [`VisitEnded`] after the end."""
        with self._working():
            self._clear()
            self.source = source

    def bring(self, path: str | Path, recipe: RetrainRecipe) -> Source:
        """Begins anew with the visitor's pictures: reads and deletes the zip, and trains a base model.

        Args:
            path (`str` or `Path`):
                The zip, see [`own_pictures`].
            recipe ([`RetrainRecipe`]):
                How to train.

        Raises:
            InvalidInputError: As [`own_pictures`]. The zip is deleted all the same.
            VisitEnded: If the visitor has left.
        """
        try:
            with self._working():
                self._clear()
                self.source = None
                dataset = own_pictures(path)
        finally:  # before the training: the name of the file may say whom it shows
            Path(path).unlink(missing_ok=True)
        with self._working():
            self.source = trained(dataset, self.models, recipe, self._collator())
            return self.source

    def forget(self, classes: Sequence[int], recipe: str) -> Iterator[Progress]:
        """Makes a copy of the base model forget classes, and tells how far it is; `model` and `entry` are the result.

        Args:
            classes (`Sequence[int]`):
                Ids, at least one; two classes must stay.
            recipe (`"fast"` or `"deep"`):
                The recipe.

        Raises:
            InvalidInputError: Before any training, if there are too few classes to forget or to keep; else as
                [`~ContinualForgetter.forget`].
            VisitEnded: If the visitor has left.
        """
        count = len(self.source.names) if self.source else 0
        if not 0 < len(classes) <= count - LEAST_KEPT:
            expected = f"at least one class, and at most {max(count - LEAST_KEPT, 0)} of {count}"
            raise InvalidInputError("To forget", f"{len(classes)} classes", expected, "Tick the boxes above.")
        reports: queue.Queue[Progress | None] = queue.Queue()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                # Held here and not around `yield`: a page that is closed may leave the generator where it is.
                with self._working():
                    self._clear()
                    self.model, self.entry = self._carry_out(classes, recipe, reports.put)
            except BaseException as error:  # raised again where the visitor is told
                failed.append(error)
            finally:
                reports.put(None)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        yield from iter(reports.get, None)
        worker.join()
        if failed:
            raise failed[0]

    def _carry_out(
        self, classes: Sequence[int], recipe: str, report: Callable[[Progress], None]
    ) -> tuple[PreTrainedModel, TaskEntry]:
        assert self.source is not None
        args = GSLoraTrainingArguments(
            str(self.folder / "work"),
            recipe=recipe,
            logging_strategy="steps",
            logging_steps=1 / UPDATES,
            disable_tqdm=True,
            use_cpu=True,
        )
        forgetter = ContinualForgetter(
            copy.deepcopy(self.source.model),
            self.source.dataset,
            self.run,
            args=args,
            callbacks=[Reporter(report, self._ended)],
        )
        entry = forgetter.forget(ForgetRequest([int(class_id) for class_id in classes]))
        return forgetter.model, entry

    def retrain(self) -> PreTrainedModel:
        """Trains the same model again without the forgotten classes, unless this visit has done so before.

        Raises:
            InvalidInputError: If nothing was forgotten yet; as [`retrain`].
            VisitEnded: If the visitor has left.
        """
        source, entry = self.finished()
        with self._working():
            return retrain(
                source.model,
                source.dataset["train"],
                entry.classes or [],
                recipe=source.recipe,
                seed=1,
                data_collator=self._collator(),
                cache=self.models,
                disable_tqdm=True,
            )

    def attack(self, shots: int) -> AuditReport:
        """Attacks the original, the forgotten model and the retrained one.

        Args:
            shots (`int`):
                Pictures of each forgotten class that the attacker has, from 1 to 16.

        Raises:
            InvalidInputError: If nothing was forgotten yet; as [`audit_run`].
            VisitEnded: If the visitor has left.
        """
        source, _ = self.finished()
        reference = self.retrain()
        answer, enrolment, relearning = get_attacks(["answer", "enrolment", "relearning"], quick=True)
        with self._working():
            return audit_run(
                source.model,
                self.run,
                source.dataset,
                reference=reference,
                attacks=[answer, replace(enrolment, shots=(shots,)), replace(relearning, shots=shots)],
                folder=self.folder / "audit",
                disable_tqdm=True,
            )

    def download(self) -> Path:
        """Writes base model and adapter to a zip, and returns its path. Raises [`VisitEnded`] after the end."""
        source, _ = self.finished()
        path = self.folder / f"forgetting-adapter-{self.token}.zip"
        with self._working(), tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            staged = Path(temporary)
            export_forgotten(self.run, staged / "adapter")
            source.model.save_pretrained(staged / "base_model")
            (staged / "README.md").write_text(README, encoding="utf-8")
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(file for file in staged.rglob("*") if file.is_file()):
                    archive.write(file, file.relative_to(staged))
        return path

    @torch.no_grad()
    def answers(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the probabilities of both models, before and after, each of shape `(n, classes)`."""
        source, _ = self.finished()
        assert self.model is not None
        before, after = (model.eval()(pixel_values=pixels).logits for model in (source.model, self.model))
        return before.softmax(1), after.softmax(1)

    def finished(self) -> tuple[Source, TaskEntry]:
        """Returns the source and what the ledger records of the run.

        Raises:
            InvalidInputError: If nothing was forgotten yet.
        """
        if self.source is None or self.entry is None:
            raise InvalidInputError("run", None, "a finished one", "Press Forget first.")
        return self.source, self.entry

    def close(self) -> None:
        """Stops the training, if one runs, and removes the folder."""
        self._ended.set()
        with self._busy:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _clear(self) -> None:
        """Removes the run; models that were trained for comparison stay."""
        self.model = self.entry = None
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()
            elif path != self.models:
                shutil.rmtree(path)
