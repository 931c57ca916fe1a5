"""One picture: from whatever a file holds to uint8 pixels of the study's size.

Order: decode at full depth, denoise, contrast, 8 bits, resize, channels. Denoising and stretching
come before the cut to 8 bits, so that a 12-bit scan stored in 16 bits keeps its shades.

    >>> grey = np.array([[0, 65535], [65535, 0]], dtype=np.uint16).repeat(8, 0).repeat(8, 1)
    >>> study = ImageSection(height=8, width=8)
    >>> prepare(grey, study)[:, :, 0].min(), prepare(grey, study).shape
    (np.uint8(0), (8, 8, 1))
"""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from fedward.common.study.schema import ImageSection

LARGEST = 100_000_000
"""Pixels of the largest picture that is decoded; more is taken for a decompression bomb."""
_FULL_RANGE = {"uint8": 255.0, "uint16": 65535.0}
_STRETCH = (1.0, 99.0)
"""Percentiles that `contrast = "stretch"` spreads over the full range."""

PICTURE_ERRORS = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on files that are no picture, or half of one."""


class UnusablePicture(ValueError):  # noqa: N818  (internal; becomes a DataError that names the row)
    """A picture that can be read but not used: several frames, unknown depth, too large."""


def decode(file: Any) -> NDArray[Any]:
    """Pixels of a picture file: `[h, w]` or `[h, w, 3]`, uint8, uint16, int32 or float32.

    A picture with a palette becomes RGB, transparency is dropped, the orientation that a camera
    noted is applied.

    Raises:
        UnusablePicture: it has several frames or more than `LARGEST` pixels.
        OSError: it is corrupt, or no picture (see `PICTURE_ERRORS` for all that Pillow raises).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files quote their metadata
        with Image.open(file) as picture:
            if picture.width * picture.height > LARGEST:
                raise UnusablePicture("too large")
            if getattr(picture, "n_frames", 1) != 1:
                raise UnusablePicture("several frames")
            return np.asarray(_plain(ImageOps.exif_transpose(picture)))


def _plain(picture: Image.Image) -> Image.Image:
    """A picture in a mode without palette, transparency or colour space."""
    mode = picture.mode
    if mode in ("1", "LA", "La"):
        return picture.convert("L")
    if mode in ("L", "RGB", "I", "F") or mode.startswith("I;16"):
        return picture
    return picture.convert("RGB")


def prepare(pixels: NDArray[Any], image: ImageSection) -> NDArray[np.uint8]:
    """Turn decoded pixels into the study's input.

    Args:
        pixels: `[h, w]` or `[h, w, 3]`, of any depth.
        image: size, channels, denoising and contrast of the study.

    Returns:
        uint8 `[height, width, channels]`.

    Raises:
        UnusablePicture: the shape is another, or the depth has no known full range and is not
            stretched.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise UnusablePicture("shape")
    if image.denoise == "median":
        pixels = ndimage.median_filter(pixels, size=(3, 3, 1)[: pixels.ndim])
    eight = _stretched(pixels) if image.contrast == "stretch" else _eight_bits(pixels)
    picture = Image.fromarray(eight)
    if image.contrast == "equalise":
        picture = ImageOps.equalize(picture)
    if picture.size != (image.width, image.height):
        picture = picture.resize((image.width, image.height), Image.Resampling.BILINEAR)
    picture = picture.convert("L" if image.channels == 1 else "RGB")
    return np.asarray(picture).reshape(image.height, image.width, image.channels)


def _eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    full = _FULL_RANGE.get(pixels.dtype.newbyteorder("=").name)
    if full is None:
        raise UnusablePicture("depth")
    return _rounded(pixels.astype(np.float32) * np.float32(255.0 / full))


def _stretched(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Spread the middle 98 % of the values over 0 … 255; an even picture becomes black."""
    values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise UnusablePicture("values")
    low, high = np.percentile(values, _STRETCH)
    if high <= low:
        low, high = values.min(), values.max()
    scale = 255.0 / (high - low) if high > low else 0.0
    return _rounded((values - low) * scale)


def _rounded(values: NDArray[Any]) -> NDArray[np.uint8]:
    eight: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return eight
