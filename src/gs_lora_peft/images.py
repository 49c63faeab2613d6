"""Turns a cell of a data set into a picture with 8 bits a channel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .errors import InvalidInputError, PrivateInputError, cause

# Modes that Pillow converts only by way of another mode, or with a warning.
_BY_WAY_OF = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB", "P": "RGBA", "PA": "RGBA"}

_SIXTEEN_BITS = ("PNG", "PPM")  # hold at most 16 bits; Pillow before version 11 reads them as 32-bit integers
_CHANNELS = (1, 2, 3, 4)


def to_image(cell: Any, mode: str | None = "RGB", *, name: str = "image") -> Image.Image:
    """Returns the picture in a cell of a data set, in one mode.

    Pictures with 16 bits a channel are scaled to 8. The alpha channel is dropped, as `PIL.Image.Image.convert` does. A
    file is rotated as its EXIF data say, as `datasets` does; a `PIL.Image.Image` is not.

    Args:
        cell (`Any`):
            One of these:

            - a PIL image of any mode except `I` and `F`;
            - the `dict` of an undecoded `datasets.Image`, the bytes of an image file, or its local path;
            - an array, a tensor or nested lists of shape `(height, width)`, `(height, width, channels)` or
              `(channels, height, width)` with 1 to 4 channels: grey, grey and alpha, RGB, RGB and alpha. If a shape
              has both meanings, the channels are first in a tensor and last in an array. Values are booleans, unsigned
              integers of 8 or 16 bits, floats in [0, 1], or whole numbers in [0, 255].
        mode (`str`, *optional*, defaults to `"RGB"`):
            The mode of the picture, e.g. `"L"`. With `None` a grey picture stays grey, and every other one becomes
            RGB.
        name (`str`, *optional*, defaults to `"image"`):
            Name of the cell, for errors: they show neither its path nor its content.

    Returns:
        `PIL.Image.Image`: The picture; the cell itself if it is a picture in this mode.

    Raises:
        InvalidInputError: If the cell holds no picture, or a picture that cannot be decoded, has an unknown range of
            values or lies behind a URL. Nothing is downloaded.

    Example:
        ```py
        >>> to_image(np.full((2, 3), 65535, dtype=np.uint16)).getpixel((0, 0))
        (255, 255, 255)
        ```
    """
    if not isinstance(cell, Image.Image):
        cell = _read(cell, name)
    try:
        cell.load()
    except Exception as error:  # each of Pillow's formats has errors of its own
        raise _broken(name, cell, "a picture", error, getattr(cell, "filename", None)) from None
    if 0 in cell.size:
        raise InvalidInputError(name, cell, "a picture with at least one pixel", "Leave the row out.")
    return cell if cell.mode == mode else _converted(cell, mode, name)


def is_scaled(cell: Any, do_rescale: bool | None) -> bool:
    """Whether a cell holds floats that the image processor leaves as they are, with `do_rescale=False`.

    transformers advises `do_rescale=False` if values are in [0, 1] already.
    """
    if do_rescale is not False:
        return False
    if isinstance(cell, torch.Tensor):
        return cell.is_floating_point()
    return isinstance(cell, np.ndarray) and cell.dtype.kind == "f"


def _converted(image: Image.Image, mode: str | None, name: str) -> Image.Image:
    sixteen = image.mode == "I" and image.format in _SIXTEEN_BITS
    if image.mode.startswith("I;16") or sixteen:
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.mode in ("I", "F"):
        raise InvalidInputError(
            name,
            image,
            "a picture with 8 or 16 bits a channel",
            f"Mode {image.mode!r} can hold values of any range. Scale the pictures to 0..255 and convert them to "
            "uint8, with `dataset.map` or in a transform, `dataset.with_transform(...)`.",
        )
    mode = mode or ("L" if image.mode == "L" else "RGB")
    between = _BY_WAY_OF.get(image.mode)
    if between and image.mode != mode:
        image = image.convert(between)
    return image if image.mode == mode else image.convert(mode)


def _read(cell: Any, name: str) -> Image.Image:
    """Returns the picture in a cell that is not a `PIL.Image.Image`."""
    if isinstance(cell, Mapping) and {"bytes", "path"} & set(cell):
        content, path = cell.get("bytes"), cell.get("path")
        if content is not None or path is not None:
            return _opened(path if content is None else content, name)
    elif isinstance(cell, (bytes, bytearray, memoryview, str, os.PathLike)):
        return _opened(cell, name)
    elif isinstance(cell, torch.Tensor):
        tensor = cell.detach().cpu()
        # NumPy has no bfloat16.
        return _of_array(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy(), name, first=True)
    elif isinstance(cell, (list, tuple)) or hasattr(cell, "__array__"):
        try:
            array = np.asarray(cell)
        except ValueError as error:
            raise PrivateInputError(name, cell, "lists of equal lengths", "Leave the row out.") from error
        return _of_array(array, name, first=False)
    raise PrivateInputError(
        name,
        cell,
        "a picture: a PIL image, an array, a tensor, the bytes or the path of an image file",
        "Leave the row out, for instance with `dataset.filter`.",
    )


def _opened(source: Any, name: str) -> Image.Image:
    if isinstance(source, (bytes, bytearray, memoryview)):
        value, shown, stream = f"{len(source)} bytes", None, BytesIO(source)
    else:
        value, shown, stream = os.fspath(source), "a file", source
        if "://" in str(value):
            expected = "a picture or a local file; nothing is downloaded"
            raise PrivateInputError(name, value, expected, "Download the pictures first.", "a URL")
    try:
        with Image.open(stream) as image:
            image.load()
            turned = ImageOps.exif_transpose(image)
            turned.format = image.format  # the bits a channel depend on it
            return turned
    except Exception as error:  # each of Pillow's formats has errors of its own
        raise _broken(name, value, shown or value, error, shown and value) from None


def _broken(name: str, value: Any, shown: str, error: Exception, path: Any) -> PrivateInputError:
    fix = f"Repair it or leave the row out. Pillow says: {cause(error, path)}."
    return PrivateInputError(name, value, "a picture that can be decoded", fix, shown)


def _of_array(array: np.ndarray, name: str, *, first: bool) -> Image.Image:
    pixels = _bytes_of(array, name)
    if pixels.ndim == 3:
        fits = {True: pixels.shape[0] in _CHANNELS, False: pixels.shape[-1] in _CHANNELS}
        pixels = np.moveaxis(pixels, 0, -1) if fits[True] and (first or not fits[False]) else pixels
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.ndim not in (2, 3) or channels not in _CHANNELS or not pixels.size:
        raise InvalidInputError(
            name,
            f"{array.dtype} of shape {array.shape}",
            "one picture of shape (height, width), (height, width, channels) or (channels, height, width)",
            "Reshape the pictures in a transform: `dataset.with_transform(...)`.",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _bytes_of(array: np.ndarray, name: str) -> np.ndarray:
    """Returns the values as uint8."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _eight_bits(array)
    if array.dtype.kind in "iuf" and array.size:
        lowest, highest = array.min(), array.max()  # NaN if there is one; then every comparison below is false
        if array.dtype.kind == "f" and lowest >= 0 and highest <= 1:
            return np.rint(array * 255).astype(np.uint8)
        if lowest >= 0 and highest <= 255 and (array.dtype.kind != "f" or (array == np.rint(array)).all()):
            return array.astype(np.uint8)
        shown = f"{array.dtype} from {lowest:g} to {highest:g}"
    else:
        shown = f"{array.dtype} of shape {array.shape}"
    raise InvalidInputError(
        name,
        shown,
        "values with a known range: booleans, unsigned integers of 8 or 16 bits, floats in [0, 1], whole numbers "
        "to 255",
        "Scale the pictures to 0..255 and convert them to uint8. Or let the transform of the data set return the "
        "model's `pixel_values`, which are taken as they are.",
    )


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Returns values of 16 bits as the nearest ones of 8 bits: 257 · v becomes v."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
