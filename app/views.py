"""What the page shows of a run: frames for the charts, and tables and pictures as HTML. All names are escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import torch
from PIL import Image
from progress import Progress
from sources import Source
from visits import Visit

from gs_lora_peft.audit import AuditReport

KEEP, FORGET = "to keep", "to forget"
# Okabe-Ito colours, as in the figures of the package: people with any colour vision can tell them apart.
COLOURS = {KEEP: "#0072B2", FORGET: "#D55E00"}
SHOWN_FORGOTTEN, SHOWN_KEPT = 12, 6
NORM = "group_norm/"

# Attack and setting → what a reader sees.
ATTACKS = {
    ("answer", "all classes"): "Ask: what the model answers",
    ("enrolment", "among all, {n}-shot"): "Enrol again with {pictures}: the nearest mean embedding",
    ("relearning", "head only, {n}-shot"): "Train its head again on {pictures}",
    ("relearning", "LoRA, {n}-shot"): "Train all of it again on {pictures}, with LoRA",
}


def curve(progress: Progress | None, name: str) -> pd.DataFrame | None:
    """Returns the frame of a chart: `step`, `value` and `samples`, which are to keep or to forget.

    Args:
        progress ([`Progress`], *optional*):
            What was logged so far.
        name (`"loss"` or `"accuracy"`):
            What to show; accuracies in percent.

    Returns:
        `pandas.DataFrame`: The frame; `None` without rows, because a chart that began with no colours never gets any.
    """
    if progress is None or not progress.rows:
        return None
    scale = 100 if name == "accuracy" else 1
    rows = [
        {"step": row["step"], "value": round(scale * row[f"{role}_{name}"], 3), "samples": label}
        for label, role in ((KEEP, "retain"), (FORGET, "forget"))
        for row in progress.rows
    ]
    return pd.DataFrame(rows)


def key() -> str:
    """Returns what the colours of the charts mean."""
    dots = [f"<span style='color:{colour}'>●</span> samples {label}" for label, colour in COLOURS.items()]
    return f"<p class='key'>{' &emsp; '.join(dots)}</p>"


def blocks(progress: Progress | None) -> str:
    """Returns how much the adapter changes each block, as bars."""
    if not progress or not progress.rows:
        return note_html("The blocks of the model appear here while it trains.")
    norms = [value for name, value in progress.rows[-1].items() if name.startswith(NORM)]
    largest = max(norms) or 1.0
    rows = [
        _row(f"block {number}", norm / largest, "changed", f"{norm:.2f}" if norm else "0: as it was")
        for number, norm in enumerate(norms, start=1)
    ]
    return f"<table class='bars'><caption>Norm of the adapter in each block</caption>{''.join(rows)}</table>"


def known(source: Source | None) -> str:
    """Returns a line on the base model, or that there is none yet, in Markdown."""
    if source is None:
        return "Bring your pictures first."
    share = f"{100 * source.accuracy():.1f} %"
    return f"The model gives the right answer to {share} of the test pictures, of {len(source.names)} classes."


def outcome(visit: Visit) -> str:
    """Returns whether the classes count as forgotten, in one sentence."""
    _, entry = visit.finished()
    if (entry.outcome or {}).get("forgotten"):
        return "The model no longer answers with these classes. Whether they can be brought back, an attack shows."
    return "The classes are not forgotten: the model still recognises them. Try the other recipe."


def scores(visit: Visit) -> str:
    """Returns the accuracies before and after, on test pictures, and whether the classes count as forgotten."""
    _, entry = visit.finished()
    before, after = (entry.scores[when] for when in ("before", "after"))
    rows = [
        f"<tr><th scope='row'>Classes {label}</th><td>{_percent(before[key])}</td><td>{_percent(after[key])}</td></tr>"
        for label, key in ((FORGET, "acc_forget"), (KEEP, "acc_retain"))
    ]
    head = "<tr><th scope='col'>Right answers</th><th scope='col'>before</th><th scope='col'>after</th></tr>"
    total, zero = entry.groups["total"], len(entry.groups.get("zero", []))
    left = f"leaves {zero} of {total} blocks exactly as they were" if zero else f"changes all {total} blocks"
    note = f"Measured on test pictures, which no training used. The adapter {left}."
    return f"<table class='scores'><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>{note_html(note)}"


def answers(visit: Visit) -> str:
    """Returns test pictures of forgotten and of kept classes, with the answers of both models."""
    source, entry = visit.finished()
    pixels, labels = source.pictures("test")
    gone = np.isin(labels, entry.classes or [])
    rng = np.random.default_rng(0)
    parts = []
    for title, rows, most in (("To forget", gone, SHOWN_FORGOTTEN), ("To keep", ~gone, SHOWN_KEPT)):
        chosen = _spread(labels, np.flatnonzero(rows), most, rng)
        before, after = visit.answers(torch.as_tensor(pixels[chosen]))
        cards = [
            _card(source.names, pixels[row, 0], int(labels[row]), old, new)
            for row, old, new in zip(chosen, before, after, strict=True)
        ]
        parts.append(f"<h4>{title}</h4><div class='cards'>{''.join(cards)}</div>")
    return "".join(parts)


def attacks(report: AuditReport, shots: int) -> str:
    """Returns what each attack recovers from the three models, as bars, and the verdict of the audit."""
    pictures = f"{shots} picture{'s' if shots > 1 else ''} of each class"
    found = {(one.attack.name, one.setting): one for one in report.comparisons()}
    tables = []
    for (attack, setting), title in ATTACKS.items():
        one = found[attack, setting.format(n=shots)]
        values = {"original": one.original.value, "forgotten": one.forgotten.value, "retrained": one.reference}
        rows = "".join(_row(name, value / 100, name, f"{value:.0f} %") for name, value in values.items())
        tables.append(f"<table class='bars'><caption>{title.format(pictures=pictures)}</caption>{rows}</table>")
    note = (
        "Right answers on test pictures of the forgotten classes; for training, averaged over its 20 steps. The "
        "retrained model never saw these classes: what an attack gets from it as well is not knowledge of them."
    )
    return f"{''.join(tables)}{note_html(note)}<p class='verdict'>{escape(report.verdict)}</p>"


def note_html(text: str) -> str:
    """Returns a remark in small print."""
    return f"<p class='note'>{escape(text)}</p>"


def _row(title: str, share: float, kind: str, text: str) -> str:
    bar = f"<span class='bar {kind}' style='width:{100 * min(max(share, 0.0), 1.0):.1f}%'></span>"
    return f"<tr><th scope='row'>{title}</th><td class='track'>{bar}</td><td class='figure'>{text}</td></tr>"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _spread(labels: np.ndarray, rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Picks at most `most` rows, as many of each class as possible."""
    by_class = [list(rng.permutation(rows[labels[rows] == class_id])) for class_id in np.unique(labels[rows])]
    taken: list[int] = []
    while len(taken) < min(most, len(rows)):
        for left in by_class:
            if left and len(taken) < most:
                taken.append(int(left.pop()))
    return np.array(sorted(taken, key=lambda row: (labels[row], row)))


def _card(names: Sequence[str], picture: np.ndarray, label: int, before: torch.Tensor, after: torch.Tensor) -> str:
    lines = "".join(
        f"<dt>{when}</dt><dd class='{'right' if int(found.argmax()) == label else 'wrong'}'>"
        f"{escape(names[int(found.argmax())])} <small>{100 * float(found.max()):.0f}&nbsp;%</small></dd>"
        for when, found in (("before", before), ("after", after))
    )
    image = f"<img src='{_data_uri(picture)}' alt='{escape(names[label], quote=True)}'>"
    return f"<figure>{image}<figcaption><b>{escape(names[label])}</b><dl>{lines}</dl></figcaption></figure>"


def _data_uri(picture: np.ndarray) -> str:
    """The picture as a PNG inside the page, so that no file is written. `picture`: shape `(size, size)`, [-1, 1]."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.clip((picture + 1) * 127.5, 0, 255))).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
