"""The attacks by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence

from ..errors import InvalidInputError
from .base import Attack

_HERE = "gs_lora_peft.audit.attacks"

# "module:class", in the order of reports.
ATTACKS: dict[str, str] = {
    "answer": f"{_HERE}.answers:Answer",
    "logit_offset": f"{_HERE}.answers:LogitOffset",
    "linear_probe": f"{_HERE}.probes:LinearProbe",
    "knn": f"{_HERE}.probes:NearestNeighbours",
    "centroid": f"{_HERE}.probes:NearestCentroid",
    "enrolment": f"{_HERE}.verification:Enrolment",
    "verification": f"{_HERE}.verification:Verification",
    "relearning": f"{_HERE}.relearning:Relearning",
    "input_pattern": f"{_HERE}.patterns:InputPattern",
    "membership": f"{_HERE}.membership:Membership",
    "membership_classifier": f"{_HERE}.membership:MembershipClassifier",
    "shadow_membership": f"{_HERE}.membership:ShadowMembership",
    "adapter_removal": f"{_HERE}.adapter:AdapterRemoval",
    "detector_answer": f"{_HERE}.detection:DetectorAnswer",
    "proposal_answer": f"{_HERE}.detection:ProposalAnswer",
    "class_agnostic_recall": f"{_HERE}.detection:ClassAgnosticRecall",
    "class_head": f"{_HERE}.detection:RetrainedClassHead",
    "similarity": f"{_HERE}.similarity:Similarity",
}


def get_attacks(names: Sequence[str | Attack] | None = None, *, quick: bool = False) -> list[Attack]:
    """Returns attacks by their names.

    Args:
        names (`Sequence[str | Attack]`, *optional*):
            Names in `ATTACKS`, or attacks with a budget of their own; by default all.
        quick (`bool`, *optional*, defaults to `False`):
            Whether to take the small budget of each.

    Returns:
        `list[Attack]`: The attacks.

    Raises:
        InvalidInputError: If a name is unknown.
    """
    attacks = []
    for name in ATTACKS if names is None else names:
        if isinstance(name, Attack):
            attacks.append(name)
            continue
        if not isinstance(name, str) or name not in ATTACKS:
            raise InvalidInputError("attacks", name, f"names in {list(ATTACKS)}, or objects of type Attack")
        kind: type[Attack] = pkgutil.resolve_name(ATTACKS[name])
        attacks.append(kind.quick() if quick else kind())
    return attacks
