"""The page of an audit, its table in a terminal, and the files of both. They name no class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..io import StrPath, as_path, write_bytes_atomic, write_json_atomic
from ..reports import Table, render_html, render_markdown
from .base import Measurement
from .charts import FIGURES, draw_figures, worst_of_each
from .results import AttackResult, AuditResults, Comparison

JSON_NAME, MARKDOWN_NAME, HTML_NAME = "audit.json", "report.md", "report.html"

_SHOWN_ELSEWHERE = ("answers", "not_applicable", "quick", "remarks", "seed", "versions")
_MINUS = "\N{MINUS SIGN}"


def save_report(results: AuditResults, folder: StrPath) -> list[Path]:
    """Writes an audit: `audit.json`, `report.md` with its figures, and `report.html`, which needs no other file.

    Each file is written whole or not at all. Figures of an earlier audit in the same folder are removed.

    Args:
        results ([`AuditResults`]):
            The audit.
        folder (`str` or `os.PathLike`):
            The folder, made if it is missing. Other files in it stay.

    Returns:
        `list[pathlib.Path]`: The files.

    Raises:
        OSError: If a file could not be written.
    """
    folder = as_path(folder, "folder")
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(results)
    markdown = render_report(results, list(figures))
    for name in FIGURES:
        if name in figures:
            write_bytes_atomic(folder / name, figures[name])
        else:
            (folder / name).unlink(missing_ok=True)
    write_bytes_atomic(folder / MARKDOWN_NAME, markdown.encode())
    write_bytes_atomic(folder / HTML_NAME, render_html(markdown, figures).encode())
    write_json_atomic(folder / JSON_NAME, results.to_dict())
    return [folder / name for name in (JSON_NAME, MARKDOWN_NAME, HTML_NAME, *figures)]


def render_report(results: AuditResults, figures: list[str]) -> str:
    """Renders the page in Markdown.

    Args:
        results ([`AuditResults`]):
            The audit.
        figures (`list[str]`):
            Names of the figures beside the page.

    Returns:
        `str`: The page.
    """
    facts = results.facts
    return render_markdown(
        "audit",
        verdict=results.verdict,
        remarks=[*results.warnings(), *facts.get("remarks", [])],
        gap=results.gap,
        signed=_signed,
        place=lambda found: ", ".join(filter(None, (found.setting, found.where))),
        tasks=results.tasks,
        is_quick=facts.get("quick", False),
        seed=facts.get("seed"),
        reference=results.reference_kind,
        references=results.references,
        reference_gaps=[_signed(gap) for gap in results.reference_gaps],
        judged_count=results.judged_count,
        figures=figures,
        summary=summary_table(results),
        models=Table(
            ["Model", "What it is", "Kept: right", "Forgotten: recognised", "SHA-256 of the weights"],
            list(_models(results)),
            "llrrl",
        ),
        attacks=Table(
            ["Attack", "What the attacker has", "Judged by", "Budget", "Seconds"], list(_budgets(results)), "llllr"
        ),
        not_applicable=facts.get("not_applicable", []),
        versions=Table(["Library", "Version"], [[str(k), str(v)] for k, v in facts.get("versions", {}).items()]),
        facts=Table(["Fact", "Value"], [[name, str(value)] for name, value in _flat(facts)]),
        shown=shown_table(results),
        tables=[
            (attack.title, attack.unit, full_table(results, attack), facts_table(results, attack))
            for attack in results.attacks
        ],
    )


def format_audit(results: AuditResults) -> str:
    """Returns the worst figure of each attack as a table in plain text, and the verdict below it.

    Args:
        results ([`AuditResults`]):
            The audit.

    Returns:
        `str`: The table and the verdict.
    """
    rows = [
        [found.attack.title, _place(found), *_cells(found)]
        for found in sorted(worst_of_each(results), key=lambda found: -found.excess)
    ]
    header = ["attack", "its worst setting", "original", "forgotten", "reference", "above it"]
    notes = [results.verdict, *results.facts.get("remarks", [])]
    if missing := results.facts.get("not_applicable"):
        notes.append(f"Not tried, because they do not apply to this model and data: {', '.join(missing)}.")
    return Table(
        header, rows, align="llrrrr", caption="Recovered of the forgotten classes, in points", notes=notes
    ).to_text()


def summary_table(results: AuditResults) -> Table:
    """Returns the worst figure of each attack that is judged, a row each, the largest excess first."""
    rows = [
        [found.attack.title, _place(found), *_cells(found)]
        for found in sorted(worst_of_each(results), key=lambda found: -found.excess)
    ]
    reference = "Retrained" if results.has_retrained else "Random weights"
    header = ["Attack", "Its worst setting", "Original", "Forgotten", reference, "Above the reference"]
    return Table(header, rows, align="llrrrr")


def full_table(results: AuditResults, attack: AttackResult) -> Table:
    """Returns all figures of an attack: a row for each setting and place, a column for each model."""
    names = [model.name for model in results.models]
    measured = {name: {found.key: found for found in attack.measurements.get(name, [])} for name in names}
    compared = {found.forgotten.key: found for found in results.comparisons() if found.attack is attack}
    keys = dict.fromkeys(key for name in names for key in measured[name])
    rows = []
    for key in keys:
        first = next(measured[name][key] for name in names if key in measured[name])
        cells = [_with_interval(measured[name].get(key), attack.unit) for name in names]
        excess = "–" if attack.judged == "shown" or key not in compared else _excess(compared[key])
        rows.append([first.setting, first.where or "–", *cells, excess])
    return Table(["Setting", "Place", *names, "Above the reference"], rows, align="ll" + "r" * (len(names) + 1))


def shown_table(results: AuditResults) -> Table:
    """Returns the figures in points that are shown and not judged, such as those with the adapters left off."""
    rows = []
    for attack in results.attacks:
        if attack.judged == "shown" and attack.unit == "points":
            rows += [[attack.title, *row[:-1]] for row in full_table(results, attack).rows]
    names = [model.name for model in results.models]
    return Table(["Attack", "Setting", "Place", *names], rows, align="lll" + "r" * len(names))


def facts_table(results: AuditResults, attack: AttackResult) -> Table:
    """Returns the further figures of an attack, such as its number of steps: a column for each model."""
    names = [model.name for model in results.models]
    values: dict[tuple[str, str, str], dict[str, str]] = {}
    for name in names:
        for found in attack.measurements.get(name, []):
            for fact, value in found.facts.items():
                key = (found.setting, found.where or "–", fact)
                values.setdefault(key, {})[name] = "never" if value is None else f"{value:g}"
    rows = [[*key, *(of.get(name, "–") for name in names)] for key, of in values.items()]
    return Table(["Setting", "Place", "What", *names], rows, align="lll" + "r" * len(names))


def _place(found: Comparison) -> str:
    return ", ".join(filter(None, (found.setting, found.where)))


def _cells(found: Comparison) -> list[str]:
    unit = found.attack.unit
    values = [reference.value for reference in found.references]
    reference = _number(found.reference, unit)
    if len(values) > 1:
        reference += f" ({_number(min(values), unit)} to {_number(max(values), unit)})"
    return [_number(found.original.value, unit), _number(found.forgotten.value, unit), reference, _excess(found)]


def _excess(found: Comparison) -> str:
    return f"{_signed(found.excess)} ± {_number(found.margin, found.attack.unit)}"


def _number(value: float, unit: str) -> str:
    return f"{value:.1f}" if unit == "points" else f"{value:.2f}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", _MINUS)  # 0.0 is added because of -0.0


def _with_interval(found: Measurement | None, unit: str) -> str:
    if found is None:
        return "–"
    return f"{_number(found.value, unit)} ({_number(found.low, unit)} to {_number(found.high, unit)})"


_KINDS = {
    "original": "before anything was forgotten",
    "forgotten": "with all audited tasks merged",
    "retrained": "trained without the forgotten classes",
    "random": "the same architecture with random weights",
}
_JUDGED = {"excess": "excess over the reference", "distance": "distance from the reference", "shown": "not judged"}


def _models(results: AuditResults) -> Iterator[list[str]]:
    answers = results.facts.get("answers", {})
    for model in results.models:
        known = answers.get(model.name)
        figures = ["–", "–"] if known is None else [_number(known[role], "points") for role in ("kept", "forgotten")]
        yield [model.name, _KINDS[model.kind], *figures, model.fingerprint.removeprefix("sha256:")[:16] + "…"]


def _budgets(results: AuditResults) -> Iterator[list[str]]:
    for attack in results.attacks:
        budget = "; ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in attack.settings.items())
        judged = _JUDGED[attack.judged]
        yield [attack.title, attack.knowledge, judged, budget or "–", f"{attack.seconds:.1f}"]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if not prefix and name in _SHOWN_ELSEWHERE:
            continue
        title = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{title}, ")
        else:
            yield title, _plain(value)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
