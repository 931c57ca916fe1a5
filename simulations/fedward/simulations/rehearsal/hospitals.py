"""Data for the hospitals of a rehearsal: a folder each, with a `site.toml` that a daemon can read.

Given data are used as they are, where the study's `[simulation]` lists a `site.toml` per hospital.
A table that `[simulation]` divides is divided by the same rule and written out, so that a rehearsal
sees the very patients of `fedward simulate`. Otherwise patients are made from the study's schema:
plausible values within the public bounds, and an outcome that depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.client.site_config import load_site_config
from fedward.common.errors import StudyError
from fedward.common.files import write_atomic
from fedward.common.study import Study
from fedward.common.study.schema import Feature
from fedward.common.table import FeatureTable
from fedward.simulations.cohorts import load_cohorts

Origin = Literal["given", "divided", "made"]
_PATIENTS = 160
"""Made patients of a hospital; enough for a batch of the usual sizes and for minimum cells."""
_LEVELS = ("a", "b", "c")


@dataclass(frozen=True)
class Hospital:
    """One hospital's data.

    Attributes:
        name: of the site.
        site_file: its `site.toml`, already where it can be read.
        origin: where the patients come from.
    """

    name: str
    site_file: Path
    origin: Origin


def prepare_hospitals(
    study: Study, folder: Path, out: Path, *, sites: int | None = None, made: bool = False
) -> list[Hospital]:
    """Have data for every hospital.

    Args:
        study: the protocol.
        folder: that the paths of its `[simulation]` are relative to.
        out: an existing folder for what is written here.
        sites: how many hospitals; as many as the study's simulation has, or 4, by default.
        made: make patients even if the study says where there are some.

    Raises:
        StudyError: the study's simulation has fewer hospitals than asked for.
        FedwardError: given data cannot be used.
    """
    simulation = None if made else study.simulation
    if simulation is not None and simulation.sites:
        paths = [folder / path for path in simulation.sites][:sites]
        _enough(len(paths), sites)
        return [Hospital(load_site_config(path).name, path.resolve(), "given") for path in paths]
    if simulation is not None and study.data.modality == "tabular":
        cohorts = load_cohorts(study, folder)[:sites]
        _enough(len(cohorts), sites)
        return [_write_table(study, cohort, out, "divided") for cohort in cohorts]
    names = [f"hospital-{index + 1}" for index in range(sites or 4)]
    if study.data.modality == "image":
        return [_write_pictures(study, name, out) for name in names]
    return [_write_table(study, make_table(study, name), out, "made") for name in names]


def _enough(found: int, wanted: int | None) -> None:
    if wanted is not None and found < wanted:
        raise StudyError(
            f"the study's [simulation] has {found} hospitals, not {wanted}",
            hint="ask for fewer --sites, or add --made to make patients from the schema",
        )


def make_table(study: Study, site: str, *, patients: int = _PATIENTS) -> Cohort:
    """Patients made from the schema of a tabular study; the same name gives the same ones."""
    rng = np.random.default_rng([study.training.seed, *site.encode()])
    standard = rng.normal(size=(patients, len(study.data.numeric)))
    numeric = np.empty_like(standard)
    for index, feature in enumerate(study.data.numeric):
        numeric[:, index] = _values(feature, standard[:, index])
    levels = tuple(f.categories or _LEVELS for f in study.data.categorical)
    codes = np.empty((patients, len(levels)), np.int32)
    for index, level in enumerate(levels):
        codes[:, index] = rng.integers(0, len(level), patients)
    slopes = np.where(np.arange(standard.shape[1]) % 2, -1.0, 1.0)
    signal = standard @ slopes + codes.sum(axis=1) + rng.normal(0.0, 1.0, patients)
    return Cohort(
        site=site,
        features=FeatureTable(numeric.astype(np.float32), codes, levels),
        target=_outcome(study, signal),
        patient=np.arange(patients),
        test=(np.arange(patients) * study.evaluation.holdout) % 1.0
        >= 1.0 - study.evaluation.holdout,
    )


def _values(feature: Feature, standard: NDArray[np.float64]) -> NDArray[np.float64]:
    if feature.type == "boolean":
        return (standard > 0).astype(np.float64)
    if feature.min is None or feature.max is None:
        return standard
    middle, spread = (feature.min + feature.max) / 2, (feature.max - feature.min) / 6
    # Inside by a hair: the nearest float32 of a bound may lie outside it.
    margin = 1e-3 * spread
    return np.clip(middle + spread * standard, feature.min + margin, feature.max - margin)


def _outcome(study: Study, signal: NDArray[np.float64]) -> NDArray[np.float32]:
    if study.task.kind != "regression":
        cuts = np.quantile(signal, np.linspace(0.0, 1.0, len(study.task.labels) + 1)[1:-1])
        return np.asarray(np.searchsorted(cuts, signal), np.float32)
    if study.task.bounds is None:
        return signal.astype(np.float32)
    low, high = study.task.bounds
    share = (signal - signal.min()) / max(float(np.ptp(signal)), 1e-9)
    return np.asarray(low + (high - low) * (0.01 + 0.98 * share), np.float32)


def _write_table(study: Study, cohort: Cohort, out: Path, origin: Origin) -> Hospital:
    """A cohort as a Parquet file, which keeps every bit, and the `site.toml` that maps it."""
    if not isinstance(cohort.features, FeatureTable):
        raise StudyError("only tables are divided for a rehearsal", hint="add --made")
    columns: dict[str, Any] = {
        "patient_id": [f"p{number:07d}" for number in cohort.patient],
        "split": np.where(cohort.test, "test", "train"),
        study.task.target: _target(study, cohort.target),
    }
    for index, feature in enumerate(study.data.numeric):
        values = pl.Series(cohort.features.numeric[:, index]).fill_nan(None)
        columns[feature.name] = values.cast(pl.Boolean) if feature.type == "boolean" else values
    for index, feature in enumerate(study.data.categorical):
        level = np.array([*cohort.features.levels[index], None], dtype=object)
        columns[feature.name] = list(level[cohort.features.codes[:, index]])
    folder = out / cohort.site
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(folder / "patients.parquet")
    return _site_file(folder, cohort.site, "parquet", "patients.parquet", origin, split=True)


def _target(study: Study, target: NDArray[np.float32]) -> Sequence[str] | NDArray[np.float32]:
    if study.task.kind == "regression":
        return target
    return [study.task.labels[int(value)] for value in target]


def _write_pictures(study: Study, site: str, out: Path) -> Hospital:
    """Made pictures as a MedMNIST archive: noise, brighter where the label is higher."""
    image = study.preprocess.image
    if image is None:
        raise StudyError("an image study has no [preprocess.image]", hint="add it")
    rng = np.random.default_rng([study.training.seed, *site.encode()])
    classes = max(len(study.task.labels), 2)
    arrays: dict[str, NDArray[Any]] = {}
    for subset, count in (("train", _PATIENTS), ("test", _PATIENTS // 3)):
        labels = rng.integers(0, classes, count)
        shape = (count, image.height, image.width, *((3,) if image.channels == 3 else ()))
        noise = rng.integers(0, 100, shape)
        bright = (labels * (155 // (classes - 1))).reshape(-1, *(1,) * (noise.ndim - 1))
        arrays[f"{subset}_images"] = (noise + bright).astype(np.uint8)
        arrays[f"{subset}_labels"] = labels.reshape(-1, 1).astype(np.uint8)
        arrays[f"{subset}_patient_id"] = np.array([f"{subset}-{i}" for i in range(count)])
    arrays |= {
        f"val_{name}": arrays[f"train_{name}"][:0] for name in ("images", "labels", "patient_id")
    }
    folder = out / site
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "pictures.npz", **arrays)  # type: ignore[arg-type]
    return _site_file(folder, site, "medmnist", "pictures.npz", "made", split=False)


def _site_file(
    folder: Path, site: str, kind: str, path: str, origin: Origin, *, split: bool
) -> Hospital:
    text = (
        f"[site]\nname = {json.dumps(site)}\n\n"
        f'[source]\nkind = "{kind}"\npath = "{path}"\n\n'
        '[patients]\ncolumn = "patient_id"\n'
    )
    if split:
        text += '\n[split]\ncolumn = "split"\n'
    write_atomic(folder / "site.toml", text)
    return Hospital(site, folder / "site.toml", origin)
