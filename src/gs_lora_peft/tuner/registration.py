"""Registers the tuner type `GS_LORA` with PEFT.

PEFT has no plug-in mechanism: `register_peft_method` accepts only names of the enum `PeftType`. This module adds a
member to it, through the private tables of the enum, once per process. Pickles of configurations name the function
`add_peft_type` of this module.
"""

from __future__ import annotations

import warnings

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK

GS_LORA = "GS_LORA"


def add_peft_type(name: str) -> PeftType:
    """Returns the member `name` of [`peft.PeftType`], and adds it if it is missing.

    Args:
        name (`str`):
            Name and value of the member.

    Raises:
        RuntimeError: If the enums of this Python version do not take the new member.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
    # An enum member is pickled as a call of its class, which fails in a process that has not added it. A call of this
    # function imports the package there. It makes `config.to_dict()` picklable, too.
    member.__reduce_ex__ = lambda protocol: (add_peft_type, (name,))  # type: ignore
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    if hasattr(PeftType, "_hashable_values_"):  # Python 3.12 and later
        PeftType._hashable_values_.append(name)  # type: ignore[attr-defined]
    type.__setattr__(PeftType, name, member)
    if PeftType(name) is not member or PeftType[name] is not member or member not in list(PeftType):
        raise RuntimeError(
            f"could not add {name!r} to peft.PeftType on this Python version. Please report it with your versions of "
            "Python and peft."
        )
    return member


def register(config_cls: type, model_cls: type) -> None:
    """Registers the tuner type `GS_LORA`. A second call changes nothing.

    The parameter prefix `lora_` is that of `LORA` on purpose: the matrices are plain LoRA matrices, and PEFT finds
    them by this prefix. If another package, or PEFT itself, has registered the name, this warns and leaves it.

    Args:
        config_cls (`type`):
            The configuration.
        model_cls (`type`):
            The tuner.
    """
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[GS_LORA])
    if known is config_cls:
        return
    if known is not None:
        warnings.warn(
            f"the PEFT type {GS_LORA!r} is already registered by {known.__module__}.{known.__qualname__}. "
            "gs_lora_peft leaves it as it is, so that GSLoraConfig does not lead to GSLoraModel. Import only one "
            "of them.",
            stacklevel=3,
        )
        return
    register_peft_method(name=GS_LORA.lower(), config_cls=config_cls, model_cls=model_cls, prefix="lora_")
    # `hotswap_adapter` compares these options of two adapters, as for LORA.
    CONFIG_KEYS_TO_CHECK[PeftType[GS_LORA]] = list(CONFIG_KEYS_TO_CHECK[PeftType.LORA])
