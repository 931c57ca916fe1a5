"""Image studies end to end, on pictures made here: from an archive, from a folder, with privacy."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pictures = runpy.run_path(str(Path(__file__).with_name("pictures.py")))
SITES: tuple[str, ...] = pictures["SITES"]
OPEN = 'mode = "none"'
PRIVATE = 'mode = "dp"\nepsilon = 8.0\ndelta = 1e-3'


def write_study(folder: Path, **changes: Any) -> None:
    settings = {
        "standardise": "federated",
        "rounds": 20,
        "steps": 6,
        "batch": 8,
        "rate": 0.05,
        "seed": 1,
        "privacy": OPEN,
        "holdout": "",
        "compare": '["local"]',
    }
    (folder / "study.toml").write_text(pictures["STUDY"].format(**settings | changes))


def write_archives(folder: Path, seed: int, train: int, test: int) -> None:
    draw = np.random.default_rng(seed)
    for number, name in enumerate(SITES):
        arrays = {}
        for part, patients in (("train", train), ("test", test)):
            pixels, finding = pictures["make"](draw, patients, number)
            arrays[f"{part}_images"] = pixels
            arrays[f"{part}_labels"] = finding[:, None].astype(np.uint8)
        np.savez(folder / f"{name}.npz", **arrays)
        (folder / f"{name}.toml").write_text(pictures["ARCHIVE_SITE"].format(name=name))


def auroc(out: Path, arm: str) -> float:
    """Mean over sites."""
    found = json.loads((out / "results.json").read_text())["metrics"][arm]
    return float(np.mean([found[site]["auroc"]["value"] for site in SITES]))


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 4))]
)
def test_hospitals_with_few_pictures_learn_more_together(
    seed: int, tmp_path: Path, fedward: Any
) -> None:
    """16 pictures each, as an archive in the MedMNIST layout; seen in five seeds: 0.05 to 0.12."""
    write_archives(tmp_path, seed, train=16, test=100)
    write_study(tmp_path, seed=seed)
    done = fedward("simulate", "study.toml", cwd=tmp_path)
    assert (done.code, done.errors) == (0, [])
    out = tmp_path / "OUT"
    together, alone = auroc(out, "federated"), auroc(out, "local")
    assert together > alone + 0.02
    assert together > 0.8
    page = (out / "report.html").read_text()
    for site in SITES:
        assert site in page

    # New pictures, scored from the bundle, are those of the simulation.
    with np.load(tmp_path / "east.npz") as archive:
        np.savez(tmp_path / "new.npz", images=archive["test_images"])
    done = fedward("predict", "OUT/model", "new.npz", cwd=tmp_path)
    assert done.code == 0, done.err
    scores = pl.read_csv(done.out.encode())["probability_spot"].to_numpy()
    table = pl.read_parquet(out / "predictions.parquet")
    kept = table.filter((pl.col("arm") == "federated") & (pl.col("site") == "east"))
    np.testing.assert_allclose(scores, kept.sort("row")["score"].to_numpy(), atol=1e-5)


def test_a_folder_of_pictures_with_privacy(tmp_path: Path, fedward: Any) -> None:
    draw = np.random.default_rng(7)
    for number, name in enumerate(SITES):
        pictures["write_folder"](tmp_path / name, *pictures["make"](draw, 120, number, spot=200.0))
        (tmp_path / f"{name}.toml").write_text(pictures["FOLDER_SITE"].format(name=name))
    write_study(
        tmp_path,
        privacy=PRIVATE,
        standardise="bounds",  # costs no privacy
        rounds=8,
        steps=6,
        batch=30,
        rate=0.2,
        compare="[]",
    )
    done = fedward("simulate", "study.toml", cwd=tmp_path)
    assert (done.code, done.errors) == (0, [])
    out = tmp_path / "OUT"
    assert auroc(out, "federated") > 0.85, "far above chance in spite of the noise"
    results = json.loads((out / "results.json").read_text())
    for site in SITES:
        assert 7.0 < results["privacy"][site]["epsilon"] <= 8.0
        assert results["privacy"][site]["unit"] == "patient"

    # Pictures of other sizes and of a hospital that did not take part.
    new = tmp_path / "new"
    pictures["write_folder"](new, *pictures["make"](draw, 30, 1, spot=200.0))
    truth = pl.read_csv(new / "labels.csv")
    (new / "labels.csv").unlink()
    done = fedward("predict", "OUT/model", "new", "--out", "scores.csv", cwd=tmp_path)
    assert done.code == 0, done.err
    scores = pl.read_csv(tmp_path / "scores.csv").join(truth, on="file")
    ill = scores["finding"] == "spot"
    assert scores["probability_spot"].filter(ill).mean() > (
        scores["probability_spot"].filter(~ill).mean() + 0.05
    )


def test_prepared_pictures_are_kept_and_used_again(tmp_path: Path, warm: Any) -> None:
    write_archives(tmp_path, 3, train=12, test=24)
    write_study(tmp_path, rounds=1, steps=1, compare="[]")
    assert warm("simulate", "study.toml", cwd=tmp_path).code == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "OUT").rglob("*.npy")}
    assert len(kept) == len(SITES)
    first = (tmp_path / "OUT" / "predictions.parquet").read_bytes()
    assert warm("simulate", "study.toml", cwd=tmp_path).code == 0
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "OUT").rglob("*.npy")}
    assert (tmp_path / "OUT" / "predictions.parquet").read_bytes() == first
    # Without the cache: the same.
    shutil.rmtree(tmp_path / "OUT" / "cache")
    assert warm("simulate", "study.toml", cwd=tmp_path).code == 0
    assert (tmp_path / "OUT" / "predictions.parquet").read_bytes() == first
