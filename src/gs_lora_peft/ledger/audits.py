"""What the ledger records of an audit, and what it says of the present state of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from ..checking import Count, Flag, NotNegativeWhole, Number, checked
from ..errors import InvalidInputError
from .entry import Sha256, TaskEntry, TaskName
from .errors import InvalidLedgerError, WorseAuditError, as_ledger_error
from .request import parse_utc
from .schema import AUDIT_FOLDER, Names, plain_json

TOLERANCE = 5.0  # points above the reference that count as noise, unless references differ by more; docs/audit.md

_Text = Annotated[str, Strict()]


def _moment(value: str) -> str:
    try:
        return parse_utc(value)
    except InvalidInputError:
        raise ValueError("an ISO 8601 time with an offset from UTC") from None


class _Gap(BaseModel):
    model_config = ConfigDict(extra="allow")
    points: Number
    margin: Number
    attack: _Text
    title: _Text
    setting: _Text
    where: _Text
    judged: Literal["excess", "distance"] = "excess"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="allow")
    original: Number
    references: list[Number]


class _Audit(BaseModel):
    model_config = ConfigDict(extra="allow")
    tasks: Annotated[list[TaskName], Field(min_length=1)]
    verdict: _Text
    recovered: Flag | None
    recovery_gap: _Gap | None
    noise: Number | None = None  # the largest gap of a reference over the others
    recognised: Flag | None = None  # whether the original knows the forgotten classes in the data of the audit
    kept: _Kept | None = None  # per cent of the kept samples that each model answers right
    reference: Literal["retrained", "random"]
    references: Count
    attacks: Names
    figures: NotNegativeWhole | None = None  # the judged ones, of which the gap is the largest
    quick: Flag
    recorded_at: Annotated[_Text, AfterValidator(_moment)]
    # Only what may be published, by its path in the run.
    files: dict[
        Annotated[
            str,
            Field(pattern=rf"^{AUDIT_FOLDER}/[a-z_]+\.(json|md|png)$", description=f"files in {AUDIT_FOLDER}/"),
        ],
        Sha256,
    ] = {}


def checked_audit(audit: Any, tasks: Sequence[TaskEntry]) -> dict[str, Any]:
    """Checks the record of an audit and returns it in plain JSON types. Unknown keys are kept.

    Args:
        audit (`Mapping[str, Any]`):
            As in [`ForgettingLedger.record_audit`], with `recorded_at`.
        tasks (`Sequence[TaskEntry]`):
            All tasks of the ledger.

    Raises:
        InvalidLedgerError: If a field is missing or invalid, or a task is not in the ledger. The error names it.
    """
    record: dict[str, Any] = plain_json(audit, "audit")
    fix = "Audit the run again."
    try:
        checked("audit", record, _Audit, fix=fix)
    except InvalidInputError as error:
        raise as_ledger_error(error) from None
    names = [entry.name for entry in tasks]
    if unknown := [name for name in record["tasks"] if name not in names]:
        raise InvalidLedgerError("audit['tasks']", unknown[0], f"tasks of the ledger, which are {names}", fix)
    return record


def check_replaces(audit: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> None:
    """Refuses an audit in place of a worse one of the same tasks that tried more.

    It tried more with an attack, a figure or a reference that the new one lacks, or with full budgets instead of quick
    ones. Worse is "not gone", then "not known", then "no attack that was tried", and among those the larger gap.

    Args:
        audit (`Mapping[str, Any]`):
            The new record.
        recorded (`Mapping[str, Any]`, *optional*):
            The present one.

    Raises:
        WorseAuditError: If it is refused.
    """
    if recorded is None or recorded["tasks"] != audit["tasks"] or _severity(recorded) <= _severity(audit):
        return
    tried_less = (
        not set(recorded["attacks"]) <= set(audit["attacks"])
        or (audit["quick"] and not recorded["quick"])
        or (recorded["reference"], audit["reference"]) == ("retrained", "random")
        or any((audit.get(name) or 0) < (recorded.get(name) or 0) for name in ("references", "figures"))
    )
    if tried_less:
        was, now = recorded["verdict"], audit["verdict"]
        raise WorseAuditError(
            f"the recorded audit of the same tasks tried more and found worse: '{was}' The new one: '{now}' "
            "The ledger is unchanged. Audit with everything that was tried before, or replace the record in any case: "
            "--replace, `report.record(run, replace=True)`. `report.save(folder)`, --output, writes the new report "
            "elsewhere.",
            verdict=was,
            replacement=now,
        )


def _severity(audit: Mapping[str, Any]) -> tuple[int, float]:
    gap = audit["recovery_gap"]
    return {True: 2, None: 1, False: 0}[audit["recovered"]], -math.inf if gap is None else gap["points"]


def audit_verdict(
    gap: Mapping[str, Any] | None,
    recovered: bool | None,
    reference: str,
    *,
    noise: float | None = None,
    recognised: bool | None = None,
    kept: Mapping[str, Any] | None = None,
    decimals: int = 1,
) -> str:
    """Returns the result of an audit as one plain sentence.

    Args:
        gap (`Mapping[str, Any]`, *optional*):
            The recovery gap: `points`, `margin`, and `title`, `setting` and `where` of the attack that gives it.
        recovered (`bool`, *optional*):
            Whether the gap is larger than 5 points, and than that of a reference over the others; `None`: not known.
        reference (`"retrained"` or `"random"`):
            What the forgotten model is compared with.
        noise (`float`, *optional*):
            The largest gap of a reference over the others, in points.
        recognised (`bool`, *optional*):
            Whether the original recognises the forgotten classes in the data of the audit; `None`: not measured.
        kept (`Mapping[str, Any]`, *optional*):
            Per cent of the kept samples that are answered right: `original`, and `references`, a list. A reference
            that knows less than half of what the original does is named.
        decimals (`int`, *optional*, defaults to 1):
            Decimals of the points.
    """
    if gap is None:
        return "Nothing was judged: no attack applies to this model and data."
    sentence = _sentence(gap, recovered, reference, noise, recognised, decimals)
    weak = weak_reference(kept, decimals)
    return sentence if weak is None else f"{sentence.removesuffix('.')}; {weak}."


def weak_reference(kept: Mapping[str, Any] | None, decimals: int = 1) -> str | None:
    """Returns a clause on the weakest reference if it knows less than half of what the original does, else `None`.

    Args:
        kept (`Mapping[str, Any]`, *optional*):
            As in [`audit_verdict`].
        decimals (`int`, *optional*, defaults to 1):
            Decimals of the shares.
    """
    if not kept or not kept["references"] or min(kept["references"]) >= 0.5 * kept["original"]:
        return None
    share, usual = (f"{value:.{decimals}f} %" for value in (min(kept["references"]), kept["original"]))
    return (
        f"a reference is weak, right on {share} of the kept samples and the original on {usual}, and beside such a "
        "model much looks remembered"
    )


def _sentence(
    gap: Mapping[str, Any],
    recovered: bool | None,
    reference: str,
    noise: float | None,
    recognised: bool | None,
    decimals: int,
) -> str:
    found = f"{gap['title']} ({', '.join(filter(None, (gap['setting'], gap['where'])))})"
    points = f"{max(0, gap['points']):.{decimals}f} ± {gap['margin']:.{decimals}f} points"
    among = "" if noise is None else f", which differ by up to {noise:.{decimals}f} points in the same attacks"
    beside = "random weights" if reference != "retrained" else f"models that were retrained without the data{among}"
    differs = f"differs by {points} from" if gap.get("judged") == "distance" else f"recovers {points} more than from"
    if recognised is False:
        why = "the original itself does not recognise the forgotten classes in these data"
        return f"Not known: {why}; {found} {differs} {beside}."
    if reference != "retrained":
        return f"Not known without a retrained model: {found} {differs} {beside}."
    if recovered:
        return f"Not gone, only silent: {found} {differs} {beside}."
    if recovered is None:
        return f"Not known, with so few samples or attacks: {found} {differs} {beside}."
    least = f"gets over {TOLERANCE:.0f} points more than from" if noise is None else "goes beyond"
    return (
        f"No attack that was tried {least} {beside}; the largest excess over their mean is that of {found}: {points}."
    )


def outdated_audit(audit: Mapping[str, Any], entries: Sequence[TaskEntry]) -> str | None:
    """Returns what an audit does not cover, as a sentence; `None` if it covers exactly the tasks in effect.

    Args:
        audit (`Mapping[str, Any]`):
            `audit` of a [`ForgettingLedger`].
        entries (`Sequence[TaskEntry]`):
            All tasks of the ledger.
    """
    covered, active = audit["tasks"], [entry.name for entry in entries if entry.status != "revoked"]
    added = [name for name in active if name not in covered]
    revoked = [name for name in covered if name not in active]
    if not added and not revoked:
        return None
    changes = []
    if added:
        later = "later tasks are not audited" if len(added) > 1 else f"{added[0]}, which came later, is not audited"
        changes.append(later)
    if revoked:
        changes.append(f"{', '.join(revoked)} {'were' if len(revoked) > 1 else 'was'} revoked since")
    return f"Audited after {covered[-1]}; {', and '.join(changes)}."


def audit_lines(audit: Mapping[str, Any] | None, entries: Sequence[TaskEntry]) -> list[str]:
    """Returns the verdict of a recorded audit in words, after a sentence on what it does not cover.

    Args:
        audit (`Mapping[str, Any]`, *optional*):
            `audit` of a [`ForgettingLedger`].
        entries (`Sequence[TaskEntry]`):
            All tasks of the ledger.

    Returns:
        `list[str]`: One or two sentences; none without an audit.
    """
    if audit is None:
        return []
    outdated = outdated_audit(audit, entries)
    return [audit["verdict"]] if outdated is None else [outdated, f"The verdict of then: {audit['verdict']}"]
