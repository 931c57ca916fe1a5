"""The files of a finished simulation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from fedward.common.files import write_atomic
from fedward.common.models.bundle import write_bundle
from fedward.common.models.card import CardFacts
from fedward.common.models.provenance import Provenance
from fedward.common.study.schema import Study
from fedward.simulations.assemble import Findings
from fedward.simulations.report import write_report
from fedward.simulations.report.results import Results


def write_outputs(out: Path, found: Findings, results: Results) -> None:
    """Write `predictions.parquet`, `model/`, `report.html` and, last, `results.json`.

    Each is whole or absent; whoever finds `results.json` finds the others too.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    write_atomic(out / "predictions.parquet", predictions(found))
    outcome = next(arm for arm in found.arms if arm.name == "federated").outcomes[""]
    content = results.model_dump(mode="json")
    write_bundle(
        out / "model",
        study=found.study,
        weights=outcome.weights,
        transform_json=outcome.transform.to_json(),
        provenance=Provenance.of(found.study, simulated=True),
        facts=CardFacts(
            sites=[site.name for site in results.sites],
            patients={site.name: f"{site.train_patients} (training)" for site in results.sites},
            metrics=content["metrics"],
            privacy=content["privacy"],
        ),
    )
    write_report(results, out / "report.html")
    results.save(out / "results.json")


def predictions(found: Findings) -> bytes:
    """Scores of every test row as Parquet: arm, site, row, patient, truth, one score per output.

    `row` numbers the test rows of a site from 0, `patient` its test patients. With these, anyone
    can recompute every figure.
    """
    names = score_names(found.study)
    frames = []
    for arm, judged in found.judgements.items():
        for site, one in judged.items():
            columns = {name: one.scores[:, index] for index, name in enumerate(names)}
            frames.append(
                pl.DataFrame(
                    {
                        "arm": [arm] * len(one.truth),
                        "site": [site] * len(one.truth),
                        "row": np.arange(len(one.truth)),
                        "patient": one.patient,
                        "truth": one.truth,
                        **columns,
                    }
                )
            )
    buffer = io.BytesIO()
    pl.concat(frames).write_parquet(buffer)
    return buffer.getvalue()


def score_names(study: Study) -> list[str]:
    """Column names of the scores: `score`, or `score_<label>` for each of several classes."""
    if study.task.kind == "multiclass":
        return [f"score_{label}" for label in study.task.labels]
    return ["score"]
