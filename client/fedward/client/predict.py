"""Score new patients with a trained model: verify, read, clean, transform, compute.

Nothing is learnt from the patients and nothing leaves the machine.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client import evaluation
from fedward.client.cohort import Cohort
from fedward.client.dataset import to_dataset
from fedward.client.new_patients import NewPatients, read_table
from fedward.client.new_pictures import read_pictures
from fedward.client.statistics import site_statistics
from fedward.common.errors import ModelError, OutputError, RoundError, SiteConfigError
from fedward.common.files import write_atomic
from fedward.common.models.bundle import Bundle, load_bundle
from fedward.common.preprocess import Transform, check_transform, fit_site, needs_site
from fedward.common.study.schema import Study
from fedward.common.table import Features


@dataclass(frozen=True)
class Predictions:
    """Scores of new patients.

    Attributes:
        table: `row` (from 1), then `patient_id` or `file` if known (`split` of an archive in the
            MedMNIST layout), then the scores. A binary task has `probability_LABEL` of its positive
            label; a multiclass task that of each label, and the likeliest as `predicted`; a
            regression has `value`.
        bundle: the model that gave them.
    """

    table: pl.DataFrame
    bundle: Bundle

    def to_csv(self) -> str:
        """A CSV file with a header line."""
        return self.table.write_csv()

    def to_json(self) -> str:
        """One object: which model, and the rows of the table."""
        provenance = self.bundle.provenance
        content = {
            "study": self.bundle.study.study.name,
            "study_hash": provenance.study_hash,
            "simulated": provenance.simulated,
            "notice": provenance.notice,
            "predictions": self.table.to_dicts(),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def to_parquet(self) -> bytes:
        """A Parquet file."""
        buffer = io.BytesIO()
        self.table.write_parquet(buffer)
        return buffer.getvalue()


def predict(
    model: Path, patients: Path, *, reference: Path | None = None, site: Path | None = None
) -> Predictions:
    """Score every row of a table, or every picture.

    Args:
        model: the bundle's folder.
        patients: the table or the pictures to score.
        reference: the hospital's own data of the same kind, for a study that standardises or fills
            in values per site; else None.
        site: the hospital's site.toml, if its columns are not named as in the study.

    Raises:
        ModelError: the model is damaged, does not fit, or needs (or does not need) a reference.
        DataError: the patients' data are not what the study allows.
        SiteConfigError: `site` does not fit the study.
    """
    bundle = load_bundle(model)
    transform = _transform(bundle, reference, site)
    found = _read(bundle.study, patients, site)
    scores = _scores(bundle, transform, found.features)
    return Predictions(_table(bundle.study, found, scores), bundle)


def write(path: Path, predictions: Predictions, *, as_json: bool = False, force: bool) -> None:
    """Write scores as CSV, as Parquet if the name ends so, or as JSON; whole or not at all.

    Raises:
        OutputError: the file exists and `force` is False, or the disk refuses.
    """
    check_free(path, force=force)
    if as_json:
        write_atomic(path, predictions.to_json())
    elif path.suffix.lower() in (".parquet", ".pq"):
        write_atomic(path, predictions.to_parquet())
    else:
        write_atomic(path, predictions.to_csv())


def check_free(path: Path, *, force: bool) -> None:
    """Refuse to replace a file that nobody said may be replaced.

    Raises:
        OutputError: it exists and `force` is False.
    """
    if path.exists() and not force:
        raise OutputError(f"{path.name} exists already", hint="choose another --out or add --force")


def _read(study: Study, path: Path, site: Path | None) -> NewPatients:
    image = study.preprocess.image
    if image is None:
        return read_table(study, path, site=site)
    if site is not None:
        raise SiteConfigError("pictures have no columns to map", hint="leave out --site")
    return read_pictures(image, path)


def _transform(bundle: Bundle, reference: Path | None, site: Path | None) -> Transform:
    study = bundle.study
    transform = Transform.from_json(bundle.transform_json)
    _check_transform(study, transform)
    if not needs_site(study):
        if reference is not None:
            raise ModelError("the model brings its own preprocessing", hint="leave out --reference")
        return transform
    if reference is None:
        raise ModelError(
            "the study takes means and deviations from each hospital's own patients",
            hint="add --reference TABLE with your hospital's patients, such as those it trained on",
        )
    own = _read(study, reference, site).features
    return fit_site(study, transform, site_statistics(study, own, np.arange(len(own))))


def _check_transform(study: Study, transform: Transform) -> None:
    try:
        check_transform(study, transform)
    except RoundError as error:
        raise ModelError(
            "the preprocessing does not fit the study", hint="get a new copy of the model"
        ) from error


def _scores(bundle: Bundle, transform: Transform, features: Features) -> NDArray[np.float32]:
    rows = len(features)
    cohort = Cohort(
        site="new patients",
        features=features,
        target=np.zeros(rows, np.float32),  # unknown, and not looked at
        patient=np.arange(rows, dtype=np.int64),
        test=np.ones(rows, np.bool_),
    )
    dataset = to_dataset(cohort, transform)
    module = bundle.module(dataset.inputs.shape)
    scores = evaluation.predict(module, dataset, bundle.study.task.kind)
    if not np.isfinite(scores).all():
        raise ModelError(
            "the model gives scores that are not finite",
            hint="check the patients for extreme values; if they are right, the model is of no use",
        )
    return scores


def _table(study: Study, found: NewPatients, scores: NDArray[np.float32]) -> pl.DataFrame:
    columns: dict[str, Any] = {"row": np.arange(1, len(found) + 1), **found.known}
    labels = study.task.labels
    if study.task.kind == "regression":
        columns["value"] = scores[:, 0]
    elif study.task.kind == "binary":
        columns[f"probability_{labels[1]}"] = scores[:, 0]
    else:
        columns |= {f"probability_{label}": scores[:, i] for i, label in enumerate(labels)}
        columns["predicted"] = [labels[i] for i in scores.argmax(axis=1)]
    return pl.DataFrame(columns)
