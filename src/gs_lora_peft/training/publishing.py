"""Publishing the adapter of a single training: plain LoRA and a card, in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from ..compat import loaded_from
from ..errors import InvalidInputError
from ..hub import checked_repo_id, commit_folder, open_repository, writing_api
from ..io import public_name
from ..reports import Table, render_card
from ..tuner import export_lora
from .method import Method, TaskTrainer
from .trained import Trained, TrainedAdapter

_OWN_FILES = {CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, "README.md", ".gitattributes"}


def repo_to_publish_in(args: Any) -> str:
    """The repository that `--push_to_hub` publishes in: `hub_model_id`, else the name of `output_dir`.

    Raises:
        InvalidInputError: It cannot be a repository on the Hub; the error names the option.
    """
    name, value = "hub_model_id", args.hub_model_id
    if not value:
        name, value = "output_dir", Path(str(args.output_dir)).absolute().name
    try:
        return checked_repo_id(value)
    except ValueError:
        expected = "the name of a repository on the Hub, 'name' or 'organisation/name', with `push_to_hub`"
        raise InvalidInputError(name, value, expected, "Name the repository with hub_model_id.") from None


def check_publishing(args: Any, method: Method, trained: Trained) -> None:
    """Refuses to publish what is not an adapter.

    Raises:
        InvalidInputError: With `push_to_hub`, if the model's own weights train.
    """
    if args.push_to_hub and trained.adapter is None:
        raise _no_adapter(method)


def _no_adapter(method: Method) -> InvalidInputError:
    return InvalidInputError(
        "push_to_hub",
        True,
        f"False: the method {method.name!r} changes the model's own weights, and leaves no adapter to publish",
        "Leave it out, and publish the model with model.push_to_hub(...).",
    )


class AdapterPublishing(TaskTrainer):
    """The publishing part of [`ForgettingTrainer`]."""

    method: Method

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Checks the name alone; [`~ForgettingTrainer.push_to_hub`] makes the repository when there is a result."""
        repo_to_publish_in(self.args)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints hold pickles and stay on this machine, whatever `hub_strategy` says."""

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
        """
        Publish the adapter in one commit: its plain LoRA form and a card. Nothing of `output_dir` is sent.

        No class is named. `--push_to_hub` publishes in the same way, when [`~Trainer.save_model`] is called. A run of
        several requests with its ledger is published by [`gs_lora_peft.push_to_hub`] instead.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                First line of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                The only choice, an adapter being small.
            token (`str`, *optional*):
                By default `args.hub_token`, else the one of `hf auth login`.
            revision (`str`, *optional*):
                A branch; by default `args.hub_revision`, else the main one.
            private (`bool`, *optional*):
                Visibility of a repository that is made; an existing public one is refused unless this is `False`. By
                default `args.hub_private_repo`, else private.
            license (`str`, *optional*):
                For the card.
            dataset (`str`, *optional*):
                For the card.
            tags (`str` or list of `str`, *optional*):
                For the card.

        Returns:
            `str` or `None`: Address of the commit, in the main process.

        Raises:
            ValueError: If the repository's name (`args.hub_model_id`, else the name of `output_dir`) is malformed, it
                is public and should not be, belongs to another user or holds something else, or there is no token.
            huggingface_hub.errors.HfHubHTTPError: If the Hub refuses, or is busy for too long.
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
        if strange := sorted(set(head.files) - _OWN_FILES):
            raise InvalidInputError(
                "hub_model_id",
                head.repo_id,
                f"one with a single adapter or none; it holds files of something else ({', '.join(strange[:3])})",
                "Choose another one.",
            )
        self.hub_model_id = head.repo_id  # type: ignore[assignment]
        place, commit = loaded_from(model)
        name, of_cache = public_name(place or "")
        on_hub = name if of_cache or commit else None
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
