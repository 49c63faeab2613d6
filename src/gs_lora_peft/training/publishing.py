"""Publishes the adapter of a single training: plain LoRA and a card, in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import TrainingArguments

from ..compat import loaded_from
from ..errors import InvalidInputError
from ..hub import checked_repo_id, commit_folder, open_repository, writing_api
from ..io import public_name
from ..reports import Table, render_card
from ..tuner import export_lora
from .method import Method, TaskTrainer
from .trained import Trained, TrainedAdapter

_OWN_FILES = {CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, "README.md", ".gitattributes"}


def repo_to_publish_in(args: TrainingArguments) -> str:
    """Returns the repository that `push_to_hub` publishes to: `hub_model_id`, else the name of `output_dir`.

    Args:
        args (`transformers.TrainingArguments`):
            The arguments.

    Raises:
        InvalidInputError: If it cannot be the name of a repository on the Hub.
    """
    name, value = "hub_model_id", args.hub_model_id
    if not value:
        name, value = "output_dir", Path(str(args.output_dir)).absolute().name
    try:
        return checked_repo_id(value)
    except ValueError:
        expected = "the name of a repository on the Hub, 'name' or 'organisation/name', with `push_to_hub`"
        raise InvalidInputError(name, value, expected, "Name the repository with hub_model_id.") from None


def check_publishing(args: TrainingArguments, method: Method, trained: Trained) -> None:
    """Checks that there is an adapter to publish, if `push_to_hub` is set.

    Args:
        args (`transformers.TrainingArguments`):
            The arguments.
        method ([`Method`]):
            The method, for the error.
        trained ([`Trained`]):
            What trains.

    Raises:
        InvalidInputError: If the model's own weights train.
    """
    if args.push_to_hub and trained.adapter is None:
        raise _no_adapter(method)


def _no_adapter(method: Method) -> InvalidInputError:
    return InvalidInputError(
        "push_to_hub",
        True,
        f"False: the method {method.name!r} trains the model's own weights, and leaves no adapter to publish",
        "Leave it out, and publish the model with model.push_to_hub(...).",
    )


class AdapterPublishing(TaskTrainer):
    """The part of [`ForgettingTrainer`] that publishes the adapter."""

    method: Method

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Checks the name only; [`~ForgettingTrainer.push_to_hub`] makes the repository when there is a result."""
        repo_to_publish_in(self.args)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: checkpoints hold pickles and stay on this machine, whatever `hub_strategy` says."""

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        license: str | None = None,
        dataset: str | None = None,
        tags: str | Sequence[str] = (),
    ) -> str | None:
        """Publishes the adapter in one commit: its plain LoRA form and a card. Sends no file of `output_dir`.

        The card names no class. With `push_to_hub=True`, [`~Trainer.save_model`] publishes in the same way. To publish
        a run of several requests with its ledger, use [`gs_lora_peft.push_to_hub`] instead.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                First line of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Must be `True`: an adapter is small.
            token (`str`, *optional*):
                Token for the Hub; by default `args.hub_token`, else that of `hf auth login`.
            revision (`str`, *optional*):
                Branch; by default `args.hub_revision`, else the main one.
            private (`bool`, *optional*):
                Visibility of a new repository. An existing public one is refused unless this is `False`. By default
                `args.hub_private_repo`, else private.
            license (`str`, *optional*):
                License of the base model, for the card.
            dataset (`str`, *optional*):
                Hub id of the data set, for the card.
            tags (`str` or list of `str`, *optional*):
                Further tags for the card.

        Returns:
            `str` or `None`: Address of the commit; `None` in all but the main process.

        Raises:
            ValueError: If the name of the repository (`args.hub_model_id`, else the name of `output_dir`) is
                malformed, the repository is public and should not be, belongs to another user or holds something else,
                or there is no token.
            huggingface_hub.errors.HfHubHTTPError: If the Hub refuses, or stays busy for too long.
        """
        if not blocking:
            raise InvalidInputError("blocking", blocking, "True: the adapter is small", "Leave it out.")
        if not isinstance(self.trained, TrainedAdapter):
            raise _no_adapter(self.method)
        model = cast(PeftModel, self.model)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not self.is_world_process_zero():
            return None
        repo_id = repo_to_publish_in(self.args)
        api = writing_api(token or self.args.hub_token)
        private = self.args.hub_private_repo if private is None else private
        head = open_repository(api, repo_id, revision=revision or self.args.hub_revision, private=private is not False)
        if foreign := sorted(set(head.files) - _OWN_FILES):
            raise InvalidInputError(
                "hub_model_id",
                head.repo_id,
                f"a repository with one adapter or empty; it holds other files ({', '.join(foreign[:3])})",
                "Choose another one.",
            )
        self.hub_model_id = head.repo_id  # type: ignore[assignment]
        place, commit = loaded_from(model)
        name, from_cache = public_name(place or "")
        on_hub = name if from_cache or commit else None
        data = ModelCardData(
            base_model=on_hub,
            base_model_relation="adapter" if on_hub else None,
            datasets=[dataset] if dataset else None,
            library_name="peft",
            license=license,
            tags=["gs-lora", "unlearning", "lora", *([tags] if isinstance(tags, str) else tags)],
        )
        with tempfile.TemporaryDirectory() as folder:
            export_lora(model, folder, self.trained.adapter, base_model_name_or_path=name)
            self._card(data, head.repo_id, name, self.trained.groups.state()).save(Path(folder, "README.md"))
            return commit_folder(api, head, folder, commit_message or "End of training")

    def _card(self, data: ModelCardData, repo_id: str, base: str | None, groups: dict[str, Any]) -> ModelCard:
        names = [*map(self.task_objective.scoring.measure.key, ("forget", "retain", "old", "missing")), "h_mean"]
        last = next((row for row in reversed(self.state.log_history) if f"eval_{names[1]}" in row), {})
        rows = [[name, f"{last[f'eval_{name}']:.4f}"] for name in names if f"eval_{name}" in last]
        return render_card(
            "adapter",
            data,
            title=repo_id.rpartition("/")[2],
            repo=repo_id,
            base=base,
            method=self.method.title or self.method.name,
            active=len(groups["active"]),
            total=groups["total"],
            scores=Table(["on the evaluation data", "fraction"], rows),
        )
