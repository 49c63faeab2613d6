"""Prepares face images for a Face Transformer."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs

from ...errors import InvalidInputError
from ...images import is_scaled, to_image

# ITU-R BT.601, with which Pillow converts RGB to grey.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)[:, None, None]

# Kinds of pixels that models are trained on → settings of the processor.
PIXEL_KINDS: dict[str, dict[str, Any]] = {
    "unit": {},
    "symmetric": {"do_normalize": True},
    "bytes": {"do_rescale": False},
    "standardized": {"do_grayscale": True, "do_standardize": True},
}


class FaceImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of [`FaceImageProcessor`] that transformers' processors do not have.

    Args:
        do_grayscale (`bool`, *optional*):
            Whether images become grey, with three equal channels.
        do_standardize (`bool`, *optional*):
            Whether each image is standardised by its own mean and standard deviation.
        standardize_epsilon (`float`, *optional*):
            Added to the standard deviation.
    """

    do_grayscale: bool | None
    do_standardize: bool | None
    standardize_epsilon: float | None


class FaceImageProcessor(PilBackend):
    """Prepares aligned and cropped face images as `pixel_values` of a [`FaceTransformerForRecognition`].

    The defaults are those of the GS-LoRA papers' code: RGB in [0, 1] without normalisation. The steps are, in this
    order: read the image (as [`to_image`] does), resize, convert to grey, rescale, standardise, normalise.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"height": 112, "width": 112}`):
            Size after resizing, in pixels.
        do_resize (`bool`, *optional*, defaults to `True`):
            Whether images are resized.
        resample (`int`, *optional*, defaults to bilinear):
            Filter of `PIL.Image` for resizing.
        do_rescale (`bool`, *optional*, defaults to `True`):
            Whether pixels are multiplied by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to 1/255):
            Factor for `do_rescale`.
        do_grayscale (`bool`, *optional*, defaults to `False`):
            Whether images become grey, with three equal channels.
        do_standardize (`bool`, *optional*, defaults to `False`):
            Whether each image's own mean is subtracted, and the result divided by its own standard deviation.
        standardize_epsilon (`float`, *optional*, defaults to 1e-3):
            Added to the standard deviation.
        do_normalize (`bool`, *optional*, defaults to `False`):
            Whether `image_mean` is subtracted, and the result divided by `image_std`.
        image_mean (`list[float]`, *optional*, defaults to 0.5 each):
            Mean of each channel, for `do_normalize`.
        image_std (`list[float]`, *optional*, defaults to 0.5 each):
            Standard deviation of each channel, for `do_normalize`.

    Example:
        ```py
        >>> processor = FaceImageProcessor.for_pixels("standardized", image_size=32)
        >>> processor(images=[image], return_tensors="pt")["pixel_values"].shape
        torch.Size([1, 3, 32, 32])
        ```
    """

    valid_kwargs = FaceImageProcessorKwargs
    size = {"height": 112, "width": 112}  # noqa: RUF012
    resample = PILImageResampling.BILINEAR
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_grayscale = False
    do_standardize = False
    standardize_epsilon = 1e-3
    do_normalize = False
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)

    @classmethod
    def for_pixels(cls, pixels: str = "unit", *, image_size: int = 112) -> FaceImageProcessor:
        """Returns the processor for a model that was trained on a known kind of pixels.

        Args:
            pixels (`str`, *optional*, defaults to `"unit"`):
                `"unit"`: RGB in [0, 1], as in the GS-LoRA papers' code. `"symmetric"`: RGB in [-1, 1]. `"bytes"`: RGB
                in [0, 255], as in the Face Transformer's code. `"standardized"`: grey in [0, 1], minus the image's own
                mean, divided by its own standard deviation + 1e-3, in three equal channels.
            image_size (`int`, *optional*, defaults to 112):
                Height and width, in pixels.

        Raises:
            InvalidInputError: If the kind is unknown.
        """
        if pixels not in PIXEL_KINDS:
            raise InvalidInputError("pixels", pixels, f"one of {', '.join(PIXEL_KINDS)}")
        return cls(size={"height": image_size, "width": image_size}, **PIXEL_KINDS[pixels])

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, **kwargs: Any
    ) -> np.ndarray:
        # transformers' own conversion clips 16 bits at 255. Floats stay as they are, for calls with
        # `do_rescale=False`.
        if do_convert_rgb and input_data_format is None and not is_scaled(image, do_rescale=False):
            image = to_image(image)
        return super().process_image(image, do_convert_rgb, input_data_format, **kwargs)

    def _preprocess(  # type: ignore[override]
        self,
        images: list[np.ndarray],
        *,
        do_resize: bool,
        size: Any,
        resample: Any,
        do_grayscale: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_standardize: bool,
        standardize_epsilon: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        def prepared(image: np.ndarray) -> np.ndarray:
            if do_resize:
                image = self.resize(image, size, resample)
            image = image.astype(np.float32)
            if do_grayscale:
                image = np.broadcast_to((_LUMA * image).sum(0, keepdims=True), image.shape)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_standardize:
                image = (image - image.mean()) / (image.std() + standardize_epsilon)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            return image.astype(np.float32)

        return BatchFeature({"pixel_values": [prepared(image) for image in images]}, tensor_type=return_tensors)
