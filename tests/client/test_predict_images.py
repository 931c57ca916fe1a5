"""Scoring new pictures: a folder or an archive, prepared as for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fedward.client.predict import predict
from fedward.common.errors import DataError, ModelError, SiteConfigError
from fedward.common.models.bundle import write_bundle
from fedward.common.models.provenance import Provenance
from fedward.common.models.state import build_module, get_weights
from fedward.common.preprocess import Transform
from fedward.common.preprocess.transform import Channel
from fedward.common.study.load import parse_study

STUDY = """
[study]
name = "chest"
title = "Chest"
purpose = "Try predictions"
contact = "nobody@example.org"
[task]
kind = "binary"
target = "finding"
labels = ["none", "nodule"]
[data]
modality = "image"
[preprocess]
standardise = "federated"
[preprocess.image]
height = 8
width = 8
[model]
name = "cnn"
channels = [8]
pool = 2
[training]
rounds = 3
local_epochs = 1
batch_size = 32
learning_rate = 0.1
[algorithm]
name = "fedavg"
[privacy]
mode = "none"
"""
PIXELS = np.random.default_rng(5).integers(0, 256, (5, 8, 8), dtype=np.uint8)
MEAN, DEVIATION = 0.4, 0.2


def make_model(folder: Path, *, own: bool = False) -> Path:
    study = parse_study(STUDY.replace('"federated"', '"site"') if own else STUDY)
    frozen = Transform(
        scope="site" if own else "federated",
        complete=not own,
        channels=(Channel(mean=MEAN, deviation=DEVIATION),),
    )
    write_bundle(
        folder,
        study=study,
        weights=get_weights(build_module(study.model, (1, 8, 8), 1, seed=2)),
        transform_json=frozen.to_json(),
        provenance=Provenance.of(study, simulated=True),
    )
    return folder


def by_hand(mean: float = MEAN, deviation: float = DEVIATION) -> NDArray[np.float32]:
    module = build_module(parse_study(STUDY).model, (1, 8, 8), 1, seed=2).eval()
    inputs = (PIXELS[:, None].astype(np.float64) / 255 - mean) / deviation
    with torch.no_grad():
        found = torch.sigmoid(module(torch.from_numpy(inputs.astype(np.float32)))[:, 0])
    return np.asarray(found.numpy(), np.float32)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    names = ("a.png", "b.PNG", "c.tif", "more/d.tiff", "more/e.png")
    for name, pixels in zip(names, PIXELS, strict=True):
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_equals_the_model_by_hand(tmp_path: Path, pictures: Path) -> None:
    table = predict(make_model(tmp_path / "model"), pictures).table
    assert table.columns == ["row", "file", "probability_nodule"]
    assert table["file"].to_list() == ["a.png", "b.PNG", "c.tif", "more/d.tiff", "more/e.png"]
    np.testing.assert_allclose(table["probability_nodule"], by_hand(), atol=1e-6)


def test_an_archive_of_images(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "new.npz", images=PIXELS)
    table = predict(make_model(tmp_path / "model"), tmp_path / "new.npz").table
    assert table.columns == ["row", "probability_nodule"]
    np.testing.assert_allclose(table["probability_nodule"], by_hand(), atol=1e-6)


def test_an_archive_in_the_medmnist_layout(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[np.uint8]] = {}
    for name, part in (("train", PIXELS[:2]), ("val", PIXELS[2:3]), ("test", PIXELS[3:])):
        arrays[f"{name}_images"] = part
        arrays[f"{name}_labels"] = np.zeros((len(part), 1), np.uint8)
    np.savez(tmp_path / "med.npz", allow_pickle=False, **arrays)
    table = predict(make_model(tmp_path / "model"), tmp_path / "med.npz").table
    assert table["split"].to_list() == ["train", "train", "val", "test", "test"]
    np.testing.assert_allclose(table["probability_nodule"], by_hand(), atol=1e-6)


def test_site_statistics_come_from_the_reference(tmp_path: Path, pictures: Path) -> None:
    model = make_model(tmp_path / "model", own=True)
    table = predict(model, pictures, reference=pictures).table
    scaled = PIXELS / 255.0
    expected = by_hand(float(scaled.mean()), float(scaled.std()))
    np.testing.assert_allclose(table["probability_nodule"], expected, atol=1e-5)
    with pytest.raises(ModelError, match="add --reference"):
        predict(model, pictures)


def test_refusals(tmp_path: Path, pictures: Path) -> None:
    model = make_model(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.csv").write_text("age\n1\n")
    for name, message in {
        "empty": "has no pictures",
        "gone": "there is no file or folder gone",
        "p.csv": "neither a folder nor an archive",
    }.items():
        with pytest.raises(DataError, match=message):
            predict(model, tmp_path / name)
    with pytest.raises(SiteConfigError, match="leave out --site"):
        predict(model, pictures, site=tmp_path / "site.toml")
    (pictures / "b.PNG").write_bytes((pictures / "b.PNG").read_bytes()[:60])
    with pytest.raises(DataError, match=r"row 2 is corrupt .*files in the order of their names"):
        predict(model, pictures)


BAD_ARRAYS: dict[str, NDArray[np.generic]] = {
    "float": PIXELS.astype(np.float32),
    "flat": PIXELS.reshape(5, 64),
    "none": PIXELS[:0],
    "four channels": np.zeros((2, 8, 8, 4), np.uint8),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_pictures(tmp_path: Path, case: str) -> None:
    np.savez(tmp_path / "new.npz", allow_pickle=False, images=BAD_ARRAYS[case])
    with pytest.raises(DataError):
        predict(make_model(tmp_path / "model"), tmp_path / "new.npz")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", allow_pickle=True, images=np.array([{}], dtype=object))
    np.save(tmp_path / "one.npy", PIXELS)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    (tmp_path / "text.npz").write_text("images")
    for name in ("new", "one", "text"):
        with pytest.raises(DataError, match="no NumPy archive"):
            predict(make_model(tmp_path / "model"), tmp_path / f"{name}.npz")


@pytest.mark.parametrize("prefix", ["", "test_"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), mask=st.integers(1, 255))
def test_a_damaged_archive_gives_one_refusal_or_scores(
    tmp_path: Path, prefix: str, data: st.DataObject, mask: int
) -> None:
    whole = tmp_path / "whole.npz"
    if not whole.exists():
        arrays = {f"{prefix}images": PIXELS, f"{prefix}labels": np.zeros((5, 1), np.uint8)}
        np.savez_compressed(whole, allow_pickle=False, **arrays)
        make_model(tmp_path / "model")
    damaged = bytearray(whole.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= mask
    (tmp_path / "new.npz").write_bytes(damaged)
    try:
        table = predict(tmp_path / "model", tmp_path / "new.npz").table
    except DataError:
        return
    assert table["probability_nodule"].is_between(0, 1).all()
