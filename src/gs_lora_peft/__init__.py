"""Continual forgetting for pre-trained models: GS-LoRA as a PEFT adapter and a Trainer.

`import gs_lora_peft` makes the tuner type `GS_LORA` known to PEFT. Everything else is imported on first use.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .tuner import GSLoraConfig, GSLoraModel, LoraGroups, NoFFNFoundError, export_lora, find_ffn_blocks

if TYPE_CHECKING:
    from .data import ForgettingSplit, split_dataset
    from .hub import fetch_sequence, merge_forgotten, push_to_hub, verify_repository
    from .metrics import ContinualForgetting
    from .sequence import (
        ContinualForgetter,
        ForgetRequest,
        ForgettingLedger,
        LedgerError,
        load_forgotten,
        parse_requests,
        weights_fingerprint,
    )
    from .training import GSLoraTrainer, GSLoraTrainingArguments, NonFiniteLossError

__version__ = version("gs-lora-peft")

_LAZY = {
    "ContinualForgetter": "sequence",
    "ContinualForgetting": "metrics",
    "ForgetRequest": "sequence",
    "ForgettingLedger": "sequence",
    "ForgettingSplit": "data",
    "GSLoraTrainer": "training",
    "GSLoraTrainingArguments": "training",
    "LedgerError": "sequence",
    "NonFiniteLossError": "training",
    "fetch_sequence": "hub",
    "load_forgotten": "sequence",
    "merge_forgotten": "hub",
    "parse_requests": "sequence",
    "push_to_hub": "hub",
    "split_dataset": "data",
    "verify_repository": "hub",
    "weights_fingerprint": "sequence",
}

__all__ = [
    "ContinualForgetter",
    "ContinualForgetting",
    "ForgetRequest",
    "ForgettingLedger",
    "ForgettingSplit",
    "GSLoraConfig",
    "GSLoraModel",
    "GSLoraTrainer",
    "GSLoraTrainingArguments",
    "LedgerError",
    "LoraGroups",
    "NoFFNFoundError",
    "NonFiniteLossError",
    "export_lora",
    "fetch_sequence",
    "find_ffn_blocks",
    "load_forgotten",
    "merge_forgotten",
    "parse_requests",
    "push_to_hub",
    "split_dataset",
    "verify_repository",
    "weights_fingerprint",
]


def __getattr__(name: str) -> Any:
    # The Trainer and `datasets` take seconds to import; somebody who only loads an adapter needs neither.
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
