"""The files of a finished simulation."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from fedward.common.errors import OutputError
from fedward.common.files import (
    check_replaceable,
    output_error,
    replace_directory,
    staging,
    write_atomic,
)
from fedward.common.models.bundle import write_bundle
from fedward.common.models.card import CardFacts
from fedward.common.models.provenance import Provenance
from fedward.common.study.schema import Study
from fedward.simulations.assemble import Findings
from fedward.simulations.judging import Judgement
from fedward.simulations.report import write_report
from fedward.simulations.report.results import Results

MODEL = "model"
PREDICTIONS = "predictions.parquet"
REPORT = "report.html"
RESULTS = "results.json"


def check_output(out: Path) -> None:
    """Refuse, before any work, an output folder that could not take the results; make nothing.

    Raises:
        OutputError: it is a file, may not be written, or `model` in it holds other people's files.
    """
    existing = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise OutputError(f"{existing} is a file, not a folder", hint="choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            f"{existing} may not be written to by this user",
            hint="choose another --out, or change its permissions",
        )
    check_replaceable(out / MODEL)


def write_outputs(out: Path, found: Findings, results: Results) -> None:
    """Write `predictions.parquet`, `model/`, `report.html` and `results.json`.

    All are written beside their place first and get their names only when all of them are on the
    disk: a full disk leaves what was there. Whoever finds `results.json` finds the others of the
    same run.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    with staging(out / RESULTS) as stage:
        write_atomic(stage / PREDICTIONS, predictions(found))
        _write_model(stage / MODEL, found, results)
        write_report(results, stage / REPORT)
        results.save(stage / RESULTS)
        _publish(stage, out)


def _publish(stage: Path, out: Path) -> None:
    try:
        # In this order: without results.json, the rest counts as not there.
        (out / RESULTS).unlink(missing_ok=True)
        replace_directory(stage / MODEL, out / MODEL)
        for name in (PREDICTIONS, REPORT, RESULTS):
            (stage / name).replace(out / name)
    except OSError as error:
        raise output_error(out, error) from error


def _write_model(directory: Path, found: Findings, results: Results) -> None:
    outcome = next(arm for arm in found.arms if arm.name == "federated").outcomes[""]
    content = results.model_dump(mode="json", include={"metrics", "privacy"})
    write_bundle(
        directory,
        study=found.study,
        weights=outcome.weights,
        transform_json=outcome.transform.to_json(),
        provenance=Provenance.of(found.study, simulated=True),
        facts=CardFacts(
            sites=[site.name for site in results.sites],
            empty_rounds=[one.round for one in outcome.history if not one.participants],
            patients={site.name: f"{site.train_patients} (training)" for site in results.sites},
            metrics=content["metrics"],
            privacy=content["privacy"],
        ),
    )


def predictions(found: Findings) -> bytes:
    """Scores of every test row as Parquet: arm, site, row, patient, truth, one score per output.

    `row` numbers the test rows of a site from 0, `patient` its test patients. With these, anyone
    can recompute every figure.
    """
    frames = [
        _predictions(found, arm, judged) for arm, judged in found.judgements.items() if judged
    ]
    buffer = io.BytesIO()
    pl.concat(frames).write_parquet(buffer)
    return buffer.getvalue()


def _predictions(found: Findings, arm: str, judged: Mapping[str, Judgement]) -> pl.DataFrame:
    """Those of an arm: a frame for each of many sites would need more room than what is in it."""
    parts = list(judged.values())
    sizes = [len(part.truth) for part in parts]
    scores = np.concatenate([part.scores for part in parts])
    return pl.DataFrame(
        {
            "arm": pl.repeat(arm, sum(sizes), eager=True),
            "site": np.repeat(list(judged), sizes),
            "row": np.concatenate([np.arange(size) for size in sizes]),
            "patient": np.concatenate([part.patient for part in parts]),
            "truth": np.concatenate([part.truth for part in parts]),
            **{name: scores[:, index] for index, name in enumerate(score_names(found.study))},
        }
    )


def score_names(study: Study) -> list[str]:
    """Column names of the scores: `score`, or `score_<label>` for each of several classes."""
    if study.task.kind == "multiclass":
        return [f"score_{label}" for label in study.task.labels]
    return ["score"]
