"""The command that converts a face model of the papers' code."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from .commands import Out
from .terminal import Json, print_result, working

_SHOWN = (
    "image_size", "patch_size", "patch_stride", "num_hidden_layers", "hidden_size", "num_attention_heads",
    "intermediate_size", "head_type", "scale", "margin",
)  # fmt: skip


# The choices of `convert_face_checkpoint`, which takes seconds to import.
class Head(StrEnum):
    """Heads with the same tensors. A softmax head is recognised by its bias."""

    cosface = "cosface"
    arcface = "arcface"
    sface = "sface"


class Pixels(StrEnum):
    """Pixel values that a model was trained on."""

    unit = "unit"
    symmetric = "symmetric"
    bytes = "bytes"
    standardized = "standardized"


def convert_face(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="File with the state dict of a ViT_face or ViTs_face (.pth).")
    ],
    out: Out,
    scale: Annotated[float, typer.Option(metavar="S", help="Scale of the head.")] = 64.0,
    margin: Annotated[
        float | None,
        typer.Option(metavar="M", help="Margin of the head; by default 0.35 for cosface, 0.5 for arcface."),
    ] = None,
    head_type: Annotated[
        Head | None, typer.Option("--head", help="Kind of head; by default cosface.", show_default=False)
    ] = None,
    heads: Annotated[int, typer.Option(metavar="N", help="Number of attention heads.")] = 8,
    image_size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Side of the images; only for overlapping patches other than P12S8."),
    ] = None,
    pixels: Annotated[
        Pixels,
        typer.Option(
            metavar="KIND",
            help="Pixel values that the model was trained on: RGB in [0, 1] (unit), [-1, 1] (symmetric) or [0, 255] "
            "(bytes), or grey images of mean 0 and deviation 1 (standardized).",
        ),
    ] = Pixels.unit,
    label_names: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Names of the people in the order of their ids: a file, one name a line, or a,b,c."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a face model of the papers' code to a folder that transformers loads, and print the folder.

    The file is read as plain tensors, and no code in it is executed. Other files are refused.
    """
    with working(f"Converting {checkpoint}"):
        names = None if label_names is None else read_names(label_names)
        from transformers.utils.logging import disable_progress_bar

        from ..models import FaceTransformerConfig, convert_face_checkpoint

        disable_progress_bar()
        folder = convert_face_checkpoint(
            checkpoint,
            out,
            image_size=image_size,
            num_attention_heads=heads,
            head_type=head_type and head_type.value,
            scale=scale,
            margin=margin,
            label_names=names,
            pixels=pixels.value,
        )
        config = FaceTransformerConfig.from_pretrained(folder)
    document = {
        "folder": os.fspath(folder),
        "people": config.num_labels,
        "pixels": pixels.value,
        **{name: getattr(config, name) for name in _SHOWN},
    }
    print_result(as_json, document, os.fspath(folder))


def read_names(text: str) -> list[str]:
    """Reads names from a file, one a line, or from text, split by `,`.

    Args:
        text (`str`):
            The path of a file, or names, e.g. `"people.txt"` or `"ada,bob"`. An existing file takes precedence.

    Returns:
        `list[str]`: The names in order, without empty ones.

    Raises:
        InvalidInputError: If there is no such file and no `,` in the text, or the file is not UTF-8 text.
        OSError: If the file cannot be read.
    """
    path = Path(os.path.expanduser(text))
    if path.is_file():
        try:
            names = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            expected = f"UTF-8 text with one name a line ({error})"
            raise InvalidInputError("names", text, expected, "Save the file as UTF-8.") from None
    elif "," in text:
        names = text.split(",")
    else:
        fix = f"There is no file '{text}'."
        raise InvalidInputError("names", text, "a file with one name a line, or names split by ','", fix)
    return [name.strip() for name in names if name.strip()]
