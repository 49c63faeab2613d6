"""The app: make a small model forget classes, watch it, look at the answers, attack it, take the adapter home."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import views
from progress import Progress, VisitEnded
from reception import told
from sessions import SERVED, Visits
from sources import RECIPE, Source, digits

MOST_WAITING = 16  # visitors in the queue
# Fonts of the visitor's own system: the page asks no other server for anything.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# How the page is launched.
OPTIONS: dict[str, Any] = {
    "theme": THEME,
    "css_paths": Path(__file__).with_name("style.css"),
    "footer_links": [],
    "ssr_mode": False,
    "max_file_size": "20mb",
}

DIGITS, OWN = "Handwritten digits", "Your own pictures"
RECIPES = [("fast: the head falls silent", "fast"), ("deep: the blocks forget, too", "deep")]
INTRO = """\
# Make a model forget

Choose what a small Vision Transformer must forget, and watch it happen. Then attack it, as somebody would who wants
the knowledge back, beside a model that never had it.
"""
UPLOAD = """\
A **zip with a folder for each person or thing**: 3 to 40 folders, at least 8 pictures in each, 1,500 pictures and
20 MB in all. Pictures become grey, with 32×32 pixels. A model is trained on them, which takes up to a minute. The zip
is deleted as soon as it is read, and everything else when you close the page.

No face data are small and free enough to come with this page. Bring a folder of your own, or one of the public
collections, and forget a person.
"""
NOTHING_YET = "After forgetting, the answers of the model stand here, before and after."
ATTACK = (
    "Trains the same model again without the classes, which takes a while the first time, and attacks all three. The "
    "slider says how many pictures of each forgotten class the attacker has."
)
DOWNLOAD = """\
The adapter is plain LoRA in safetensors, and loads with stock PEFT. The zip also has its base model, **which still
knows what was forgotten**, and a note on how to merge the two. It does not say which classes were forgotten.
"""


def build(root: Path, source: Source) -> gr.Blocks:
    """Makes the page.

    Args:
        root (`Path`):
            An empty folder, below which everything is written.
        source ([`Source`]):
            What visitors find.
    """
    # The page shows the outcome; warnings in the log of the server would be about visitors.
    logging.getLogger("gs_lora_peft").setLevel(logging.CRITICAL)
    os.environ["GRADIO_TEMP_DIR"] = str(root / SERVED)
    visits = Visits(root, source)
    # One request computes at a time, so that each has both cores to itself; the others see their place in the queue.
    work: dict[str, Any] = {"concurrency_id": "work", "concurrency_limit": 1, "api_visibility": "private"}
    with gr.Blocks(title="Make a model forget", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("## 1. Choose")
                kind = gr.Radio([DIGITS, OWN], value=DIGITS, label="Pictures")
                with gr.Column(visible=False) as upload:
                    gr.Markdown(UPLOAD)
                    file = gr.File(label="Zip of folders", file_types=[".zip"])
                status = gr.Markdown(views.known(source), elem_id="status")
                classes = gr.CheckboxGroup(_choices(source), label="To forget", elem_id="classes")
                recipe = gr.Radio(RECIPES, value="fast", label="Recipe")
                forget = gr.Button("Forget", variant="primary", elem_id="forget")
            with gr.Column(scale=3, min_width=300):
                gr.Markdown("## 2. Watch")
                gr.HTML(views.key(), elem_classes="gs")
                losses = _chart("Loss (nats)", None)
                accuracies = _chart("Right answers in training (%)", [0, 100])
                blocks = gr.HTML(views.blocks(None), elem_classes="gs", elem_id="blocks")
        gr.Markdown("## 3. Before and after")
        scores = gr.HTML(views.note_html(NOTHING_YET), elem_classes="gs", elem_id="scores")
        answers = gr.HTML(elem_classes="gs", elem_id="answers")
        gr.Markdown("## 4. Attack")
        with gr.Row(equal_height=True):
            shots = gr.Slider(1, 16, value=4, step=1, label="Pictures of each class that the attacker has", scale=3)
            attack = gr.Button("Attack", variant="primary", interactive=False, elem_id="attack", min_width=160)
        attacks = gr.HTML(views.note_html(ATTACK), elem_classes="gs", elem_id="attacks")
        gr.Markdown("## 5. Take it home")
        gr.Markdown(DOWNLOAD)
        download = gr.DownloadButton("Download the adapter", interactive=False, elem_id="download")

        results = [scores, answers, attack, attacks, download]
        cleared = [
            views.note_html(NOTHING_YET),
            "",
            gr.update(interactive=False),
            views.note_html(ATTACK),
            gr.update(value=None, interactive=False),
        ]

        @told
        def on_kind(chosen: str, request: gr.Request) -> tuple:
            visit = visits.of(str(request.session_hash))
            visit.choose(source if chosen == DIGITS else None)
            return gr.update(visible=chosen == OWN), views.known(visit.source), *_start(visit.source), *cleared

        @told
        def on_upload(path: str, request: gr.Request, progress: Any = gr.Progress(track_tqdm=True)) -> tuple:  # noqa: B008
            try:
                own = visits.of(str(request.session_hash)).bring(path, source.recipe)
            except VisitEnded:
                Path(path).unlink(missing_ok=True)  # its name may say whom it shows
                raise
            return None, views.known(own), *_start(own), *cleared

        @told
        def on_forget(chosen: list[int], recipe: str, request: gr.Request) -> Iterator[tuple]:
            visit = visits.of(str(request.session_hash))
            found = None
            for found in visit.forget(chosen, recipe):
                yield f"**Forgetting: {found.share:.0%}**", *_watched(found), *cleared
            yield (
                f"**Done.** {views.outcome(visit)}",
                *_watched(found),
                views.scores(visit),
                views.answers(visit),
                gr.update(interactive=True),
                views.note_html(ATTACK),
                gr.update(value=visit.download(), interactive=True),
            )

        @told
        def on_attack(shots: float, request: gr.Request) -> Iterator[str]:
            visit = visits.of(str(request.session_hash))
            yield views.note_html("Training the same model again, without these classes …")
            visit.retrain()
            yield views.note_html("Attacking the original, the forgotten and the retrained model …")
            yield views.attacks(visit.attack(int(shots)), int(shots))

        def on_leave(request: gr.Request) -> None:
            visits.leave(str(request.session_hash))

        charts = [losses, accuracies, blocks]
        # A mark of an error on one part of the page, not on all.
        work["show_progress_on"] = status
        kind.input(on_kind, kind, [upload, status, classes, *charts, *results], show_progress="minimal", **work)
        file.upload(on_upload, file, [file, status, classes, *charts, *results], **work)
        forget.click(on_forget, [classes, recipe], [status, *charts, *results], show_progress="minimal", **work)
        work["show_progress_on"] = attacks
        attack.click(on_attack, shots, attacks, show_progress="minimal", **work)
        page.unload(on_leave)
    return page.queue(max_size=MOST_WAITING)


def _choices(source: Source | None) -> list[tuple[str, int]]:
    return [(name, number) for number, name in enumerate(source.names)] if source else []


def _start(source: Source | None) -> tuple:
    return gr.update(choices=_choices(source), value=[]), *_watched(None)


def _watched(progress: Progress | None) -> tuple:
    return views.curve(progress, "loss"), views.curve(progress, "accuracy"), views.blocks(progress)


def _chart(title: str, limits: list[float] | None) -> gr.LinePlot:
    return gr.LinePlot(
        x="step",
        y="value",
        color="samples",
        color_map=views.COLOURS,
        color_title=" ",  # views.key names the colours; the chart's own legend has a title alone
        y_lim=limits,
        x_title="step",
        y_title=" ",
        label=title,
        height=230,
    )


def main() -> None:
    """Trains the model of the digits, then serves the page until it is stopped."""
    with tempfile.TemporaryDirectory(prefix="gs-lora-app-") as folder:
        root = Path(folder)
        page = build(root, digits(root / "digits", RECIPE))
        page.launch(**OPTIONS)


if __name__ == "__main__":
    main()
