"""Private pictures of people before and after they were forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..data import NamedRows, cell_name, picture_cell
from ..errors import InvalidInputError
from ..images import to_image
from ..io import StrPath, as_path, refuse_links, write_bytes_atomic
from ..reports import FAINT, FORGOTTEN, KEPT, TEXT, new_figure, own_style, png_bytes
from .faces import FaceAudit, FacePredictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES_FOLDER = "private_pictures"

_MAX_COLUMNS = 8
_MAX_SIDE, _MIN_WIDTH = 2.3, 4.2  # inches: side of a face, and width of the picture, which the legend needs
_SHAPES = "o^sDvP*X"  # of people in the map; people beyond these share shapes


def private_folder(folder: StrPath) -> Path:
    """Makes `private_pictures` in a folder, readable only by its owner; raises InvalidInputError if it is a link."""
    folder = as_path(folder, "folder")
    refuse_links(folder, [PICTURES_FOLDER])
    place = folder / PICTURES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    return place


def draw_face_pictures(
    audit: FaceAudit,
    dataset: Any,
    folder: StrPath,
    *,
    image_column: str = "image",
    method: Literal["tsne", "pca"] = "tsne",
    max_images: int = 1000,
    seed: int = 0,
) -> list[Path]:
    """Draws forgotten and kept people before and after, to `private_pictures` in a folder.

    `faces.png` shows up to eight forgotten and eight kept people, evenly spread. Each has the image of median
    similarity before the tasks; up to four people have several images each, from the least to the most similar. Below
    each image is the cosine between its embedding and the direction of the person in the head, before and after.
    `embedding_map.png` shows the embeddings of the same images before and after in one plane. No person is named.

    **The pictures show faces that are to be forgotten. Store them with the data, and delete them with the data.**
    [`push_to_hub`] does not publish them.

    Args:
        audit ([`FaceAudit`]):
            From [`audit_faces`].
        dataset (map-style dataset):
            The data set of the audit.
        folder (`str` or `os.PathLike`):
            A folder, e.g. the folder of the run.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images, in any form that [`to_image`] accepts.
        method (`str`, *optional*, defaults to `"tsne"`):
            `"tsne"` preserves neighbours, `"pca"` distances.
        max_images (`int`, *optional*, defaults to 1000):
            The largest number of images in the map. They are chosen at random.
        seed (`int`, *optional*, defaults to 0):
            Seed for the choice of images and for t-SNE.

    Returns:
        `list[pathlib.Path]`: The two files.

    Raises:
        InvalidInputError: If `dataset` is not that of the audit or has no such column, or `method` is unknown.
        OSError: If a file could not be written.
    """
    folder = as_path(folder, "folder")
    if method not in ("tsne", "pca"):
        raise InvalidInputError("method", method, "'tsne' or 'pca'")
    if len(dataset) != len(audit.predictions[0].labels):
        expected = f"the {len(audit.predictions[0].labels)} rows of the data set that was audited"
        raise InvalidInputError("dataset", f"{len(dataset)} rows", expected, "Pass the data set of the audit.")
    rows = _people_to_show(audit)
    named = NamedRows(dataset)
    images = {row: _image(named[int(row)], image_column) for of_role in rows for row in of_role}
    place = private_folder(folder)
    files = [place / "faces.png", place / "embedding_map.png"]
    with own_style():
        write_bytes_atomic(files[0], png_bytes(_faces(audit, rows, images)), private=True)
        write_bytes_atomic(files[1], png_bytes(_map(audit, method, max_images, seed)), private=True)
    return files


# Faces


def _people_to_show(audit: FaceAudit) -> tuple[list[int], list[int]]:
    """Returns rows of the data set with images of forgotten people, and of kept ones."""
    before = audit.predictions[0]
    gone = audit.everybody_forgotten
    kept = sorted(set(before.labels.tolist()) - set(gone))
    return _typical_rows(before, gone), _typical_rows(before, kept)


def _typical_rows(predictions: FacePredictions, people: Sequence[int]) -> list[int]:
    present = [person for person in people if (predictions.labels == person).any()]
    count = min(len(present), _MAX_COLUMNS)
    rows = []
    for person in (present[place * len(present) // count] for place in range(count)):
        own = np.flatnonzero(predictions.labels == person)
        by_similarity = own[np.argsort(predictions.similarities[own], kind="stable")]
        shown = min(_MAX_COLUMNS // count, len(own))  # few people have several images each, to fill the row
        rows += [int(by_similarity[(2 * place + 1) * len(own) // (2 * shown)]) for place in range(shown)]
    return rows


def _image(row: Any, column: str) -> np.ndarray:
    if column not in row:
        fix = f"There is no {column!r}: pass the name of the image column."
        raise InvalidInputError("image_column", column, f"one of the columns {sorted(row)}", fix)
    return np.asarray(to_image(picture_cell(row, column), name=cell_name(row, column)))


def _faces(audit: FaceAudit, rows: tuple[list[int], list[int]], images: dict[int, np.ndarray]) -> Figure:
    # The longer row decides the number of columns, so that few faces are shown larger.
    columns = max(map(len, rows))
    width = 1.15 * _MAX_COLUMNS + 0.4
    side = min((width - 0.4) / columns, _MAX_SIDE)
    width = max(columns * side + 0.4, _MIN_WIDTH)
    figure = new_figure(width, 2 * (1.15 * side) + 2.1)
    bands = figure.subfigures(2, 1)
    titles = ("Forgotten people", "Kept people")
    first, last = audit.predictions[0], audit.predictions[-1]
    lowest = min(0.0, *(float(found.similarities[row]) for of in rows for row in of for found in (first, last)))
    for band, shown, title, colour in zip(bands, rows, titles, (FORGOTTEN, KEPT), strict=True):
        band.suptitle(title, x=0.01, ha="left", fontsize=12)
        panels = band.subplots(2, columns, height_ratios=(5 * side, 1), squeeze=False)
        for column, (face, strip) in enumerate(panels.T):
            face.axis("off")
            if column >= len(shown):
                strip.axis("off")
                continue
            row = shown[column]
            face.imshow(images[row])
            _similarity_strip(strip, float(first.similarities[row]), float(last.similarities[row]), lowest, colour)
    _legend(figure)
    return figure


def _similarity_strip(axes: Axes, before: float, after: float, lowest: float, colour: str) -> None:
    axes.plot([before, after], [0, 0], color=colour, linewidth=1.5, alpha=0.5)
    # The larger point stays visible around the other if both are equal.
    axes.plot([before], [0], "o", color=colour, markerfacecolor="white", markersize=9)
    axes.plot([after], [0], "o", color=colour, markersize=5)
    axes.set(xlim=(lowest - 0.1, 1.1), ylim=(-1, 1), yticks=[])
    axes.set_xticks([0, 1])
    axes.tick_params(axis="x", length=2, labelsize=7, pad=1)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{before:.2f} → {after:.2f}", fontsize=9, labelpad=1)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    point: dict[str, Any] = {"marker": "o", "linestyle": "", "color": TEXT}
    handles = [
        Line2D([], [], markerfacecolor="white", markersize=9, label="before", **point),
        Line2D([], [], markersize=5, label="after all tasks", **point),
    ]
    title = "cosine to the person's own direction:"
    figure.legend(handles=handles, title=title, loc="outside lower left", ncols=2, alignment="left", title_fontsize=9)


# Map of embeddings


def _map(audit: FaceAudit, method: str, max_images: int, seed: int) -> Figure:
    first, last = audit.predictions[0], audit.predictions[-1]
    count = len(first.labels)
    rows = np.sort(np.random.default_rng(seed).permutation(count)[:max_images])
    plane = _plane(np.concatenate([first.embeddings[rows], last.embeddings[rows]]), method, seed)
    figure = new_figure(10, 5.4)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = ("Before", "After all tasks")
    people = audit.everybody_forgotten
    gone = np.isin(first.labels[rows], people)
    for axes, title, points in zip(panels, titles, np.split(plane, 2), strict=True):
        axes.scatter(*points[~gone].T, s=9, color=KEPT, alpha=0.45, linewidths=0, label="kept people")
        for number, person in enumerate(people):
            own = points[first.labels[rows] == person]
            shape = _SHAPES[number % len(_SHAPES)]
            axes.scatter(*own.T, s=26, marker=shape, color=FORGOTTEN, edgecolors="white", linewidths=0.4)
        axes.set(title=title, xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, color=FAINT)
    _map_legend(figure, len(people), method)
    return figure


def _plane(embeddings: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Returns directions of embeddings in two dimensions, shape `(n, 2)`."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    directions = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(directions)
    perplexity = min(30.0, (len(directions) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(directions)


def _map_legend(figure: Figure, count: int, method: str) -> None:
    from matplotlib.lines import Line2D

    label = "the forgotten person" if count == 1 else "forgotten people"
    if 1 < count <= len(_SHAPES):
        label += ", a shape for each"
    handles = [
        Line2D([], [], marker="o", linestyle="", color=KEPT, markersize=4, label="kept people"),
        Line2D([], [], marker="^", linestyle="", color=FORGOTTEN, label=label),
    ]
    name = "t-SNE" if method == "tsne" else "PCA"
    title = f"A point is the embedding of an image; both panels are one map ({name} of directions)."
    figure.legend(handles=handles, title=title, loc="outside lower left", ncols=2, alignment="left", title_fontsize=9)
