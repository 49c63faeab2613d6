"""Makes the tuner type `GS_LORA` known to PEFT.

PEFT has no plug-in mechanism: `register_peft_method` insists that the name be a member of the `PeftType` enum. The
member is therefore added here, through the tables that every enum keeps, once per process.
"""

from __future__ import annotations

import warnings

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK

GS_LORA = "GS_LORA"


def add_peft_type(name: str) -> PeftType:
    """Add `name` to [`peft.PeftType`], or return the member that is already there.

    Raises:
        RuntimeError: If this Python's enums do not take the new member, so that nothing fails later and silently.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
    # An enum member is pickled as a call of its class, which fails in a process where nobody has added it yet; pickled
    # as a call of this function it brings the package along. That makes `config.to_dict()` picklable, too.
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
    """Register the tuner type under `GS_LORA`. Doing it twice changes nothing.

    `LORA`'s parameter prefix `lora_` is shared on purpose: the matrices are plain LoRA matrices, and every part of
    PEFT that looks for them by prefix must find them. Where another package, or PEFT itself, already answers to the
    name, this one steps aside with a warning.
    """
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[GS_LORA])
    if known is config_cls:
        return
    if known is not None:
        warnings.warn(
            f"the PEFT type {GS_LORA!r} is already taken by {known.__module__}.{known.__qualname__}; gs_lora_peft "
            "leaves it as it is, and its own GSLoraConfig will not reach GSLoraModel. Import only one of the two.",
            stacklevel=3,
        )
        return
    register_peft_method(name=GS_LORA.lower(), config_cls=config_cls, model_cls=model_cls, prefix="lora_")
    # `hotswap_adapter` compares these options of two adapters; the matrices are those of LORA.
    CONFIG_KEYS_TO_CHECK[PeftType[GS_LORA]] = list(CONFIG_KEYS_TO_CHECK[PeftType.LORA])
