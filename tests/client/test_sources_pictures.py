"""Pictures: decoding at full depth, and every step of their preparation against plain NumPy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fedward.client.sources.pictures import (
    PICTURE_ERRORS,
    UnusablePicture,
    decode,
    prepare,
)
from fedward.common.study.schema import ImageSection

GENERATOR = np.random.default_rng(7)


def section(**keys: Any) -> ImageSection:
    return ImageSection(**{"height": 8, "width": 8, **keys})


def saved(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return io.BytesIO(stream.getvalue())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("dtype", "shape"), [("u1", (9, 7)), ("u1", (9, 7, 3)), ("u2", (9, 7))])
def test_lossless_files_come_back_as_they_were(
    kind: str, dtype: str, shape: tuple[int, ...]
) -> None:
    pixels = GENERATOR.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    found = decode(saved(pixels, kind))
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == pixels.dtype


def test_jpeg_is_close() -> None:
    pixels = np.full((16, 16, 3), 90, dtype=np.uint8)
    assert np.abs(decode(saved(pixels, "JPEG")).astype(int) - 90).max() <= 3


@pytest.mark.parametrize(
    ("mode", "shape"), [("1", (4, 5)), ("LA", (4, 5)), ("P", (4, 5, 3)), ("RGBA", (4, 5, 3))]
)
def test_unusual_modes_become_plain(mode: str, shape: tuple[int, ...]) -> None:
    picture = Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)
    found = decode(saved(picture))
    assert found.shape == shape
    assert found.min() == 255


def test_orientation_of_cameras_is_applied() -> None:
    pixels = np.zeros((4, 6), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    found = decode(saved(pixels, "PNG", exif=exif.tobytes()))
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))


def test_several_frames_are_refused() -> None:
    frame = Image.new("L", (4, 4))
    with pytest.raises(UnusablePicture):
        decode(saved(frame, "TIFF", save_all=True, append_images=[frame]))


def test_bombs_are_refused() -> None:
    bomb = saved(Image.new("1", (20_000, 20_000)))
    with pytest.raises(PICTURE_ERRORS):
        decode(bomb)


@given(st.integers(0, 10_000), st.sampled_from(["cut", "flip"]), st.sampled_from(["PNG", "TIFF"]))
def test_damage_is_never_a_surprise(place: int, damage: str, kind: str) -> None:
    """A damaged file gives pixels or one of the errors that are turned into a refusal."""
    pixels = np.arange(3 * 40 * 40, dtype=np.uint8).reshape(40, 40, 3)
    content = bytearray(saved(pixels, kind).getvalue())
    place %= len(content)
    if damage == "cut":
        del content[place:]
    else:
        content[place] ^= 0xFF
    try:
        found = prepare(decode(io.BytesIO(bytes(content))), section())
    except PICTURE_ERRORS:
        return
    assert found.shape == (8, 8, 1)


def test_nothing_to_do_changes_nothing() -> None:
    grey = GENERATOR.integers(0, 256, (8, 8), dtype=np.uint8)
    colour = GENERATOR.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(prepare(grey, section())[:, :, 0], grey)
    np.testing.assert_array_equal(prepare(colour, section(channels=3)), colour)


def test_channels() -> None:
    grey = GENERATOR.integers(0, 256, (8, 8), dtype=np.uint8)
    tripled = prepare(grey, section(channels=3))
    np.testing.assert_array_equal(tripled, np.repeat(grey[:, :, None], 3, axis=2))
    colour = np.zeros((8, 8, 3), dtype=np.uint8)
    colour[:, :, 1] = 200
    assert abs(int(prepare(colour, section())[0, 0, 0]) - 0.587 * 200) <= 1  # ITU-R 601 luma


def test_sixteen_bits_are_scaled_not_cut() -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.rint(deep.astype(float) / 257)
    assert np.abs(prepare(deep, section())[:, :, 0] - expected).max() <= 1
    swapped = deep.astype(">u2")
    np.testing.assert_array_equal(prepare(swapped, section()), prepare(deep, section()))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4"])
def test_stretch_spreads_the_middle_98_per_cent(dtype: str) -> None:
    pixels = GENERATOR.integers(20, 90, (40, 40)).astype(dtype)
    pixels[0, 0] = 127  # an outlier must not decide
    low, high = np.quantile(pixels.astype(float), [0.01, 0.99])
    expected = np.clip(np.rint((pixels - low) / (high - low) * 255), 0, 255)
    found = prepare(pixels, section(height=40, width=40, contrast="stretch"))[:, :, 0]
    assert np.abs(found - expected).max() <= 1


def test_stretching_keeps_the_shades_of_twelve_bits_in_sixteen() -> None:
    deep = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    size = {"height": 64, "width": 64}
    assert len(np.unique(prepare(deep, section(**size)))) <= 17
    assert len(np.unique(prepare(deep, section(**size, contrast="stretch")))) == 256


@pytest.mark.parametrize("contrast", ["none", "stretch", "equalise"])
@pytest.mark.parametrize("value", [0, 17, 255])
def test_even_pictures_are_no_accident(contrast: str, value: int) -> None:
    found = prepare(np.full((8, 8), value, dtype=np.uint8), section(contrast=contrast))
    assert len(np.unique(found)) == 1


def test_equalise_makes_a_ramp_of_a_dark_picture() -> None:
    dark = np.repeat(np.arange(64, dtype=np.uint8), 16).reshape(32, 32)
    found = prepare(dark, section(height=32, width=32, contrast="equalise"))
    steps = np.diff(np.unique(found).astype(int))
    assert found.max() >= 250
    assert steps.min() >= 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_median_removes_specks_and_keeps_edges(dtype: Any) -> None:
    full = int(np.iinfo(dtype).max)
    pixels = np.zeros((8, 8), dtype=dtype)
    pixels[:, 4:] = full
    clean = prepare(pixels, section())
    pixels[2, 2], pixels[5, 6] = full, 0
    assert (prepare(pixels, section()) != clean).sum() == 2
    np.testing.assert_array_equal(prepare(pixels, section(denoise="median")), clean)


def test_median_does_not_mix_channels() -> None:
    colour = np.zeros((8, 8, 3), dtype=np.uint8)
    colour[:, :, 1] = 255  # the middle one: a median over channels would wipe it out
    found = prepare(colour, section(channels=3, denoise="median"))
    np.testing.assert_array_equal(found, colour)


def test_resizing_is_antialiased() -> None:
    """A fine checkerboard becomes grey; picking single pixels would leave black and white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = prepare(board, section())
    assert np.abs(found.astype(int) - 127).max() < 40


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8,), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8), np.int32),
    ],
)
def test_unexpected_shapes_and_depths_are_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(UnusablePicture):
        prepare(pixels, section())


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UnusablePicture):
        prepare(np.full((8, 8), np.nan, np.float32), section(contrast="stretch"))


def test_decoding_reads_paths_too(tmp_path: Path) -> None:
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").shape == (2, 3)
