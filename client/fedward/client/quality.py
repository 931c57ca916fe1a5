"""The data quality report of a site: what its data are like under a study, and what is wrong.

It holds exact counts, so it stays at the site: nothing in fedward sends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedward.client.division import Division, divide
from fedward.client.examination import (
    TARGET,
    ColumnFindings,
    Examination,
    examine,
    missing_columns,
)
from fedward.client.loading import without_duplicates
from fedward.client.refusals import row_problems, split_problems
from fedward.client.site_config import SiteConfig
from fedward.client.sources import ROW, PictureFindings, Source, open_source
from fedward.common.errors import DataError
from fedward.common.study import Study, study_hash

NOTICE = "This report holds exact counts. It stays at the site: do not send it to anyone."


@dataclass(frozen=True)
class QualityReport:
    """A site's data under a study.

    Attributes:
        site: name of the site.
        study: name of the study.
        study_hash: hash of the study.
        source: name of the file or data set.
        rows: rows that meet the site's filter; None if columns are missing, as all below.
        patients: different patients.
        rows_per_patient_max: rows of the patient with the most.
        duplicates: rows that repeat another of the same patient.
        features: findings per feature.
        target: findings about the outcome.
        classes: rows per label.
        patients_training: patients to train on; None if the site's key is not given.
        patients_testing: patients kept for testing; None likewise.
        split: "published" by the data, or by "keyed hash".
        pictures: sizes and unreadable pictures, for images.
        problems: everything for which the study refuses these data; empty if they can be used.
    """

    site: str
    study: str
    study_hash: str
    source: str
    problems: tuple[str, ...]
    rows: int | None = None
    patients: int | None = None
    rows_per_patient_max: int | None = None
    duplicates: int | None = None
    features: tuple[ColumnFindings, ...] = ()
    target: ColumnFindings | None = None
    classes: dict[str, int] | None = None
    patients_training: int | None = None
    patients_testing: int | None = None
    split: str | None = None
    pictures: PictureFindings | None = None

    @property
    def usable(self) -> bool:
        """Whether the study takes these data as they are."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-safe values."""
        return {"notice": NOTICE, "usable": self.usable, **asdict(self)}


def check_quality(study: Study, config: SiteConfig, *, key: bytes | None = None) -> QualityReport:
    """Look at everything, refuse nothing that can be looked at.

    Args:
        study: the protocol.
        config: the site's file.
        key: secret of the site, if the division into training and testing is to be checked too;
            a published one is always checked.

    Raises:
        SiteConfigError: the site's file does not fit the study.
        DataError: the source cannot be opened or read at all.
    """
    config.check_fit(study)
    source = open_source(study, config)
    head = (config.name, study.study.name, study_hash(study), source.label)
    absent = missing_columns(study, config, source)
    if absent:
        return QualityReport(*head, problems=tuple(str(problem) for problem in absent))
    found = examine(study, config, source)
    frame = without_duplicates(study, found)
    pictures = _pictures(study, source, found)
    division = divide(study, config, source, frame, key or b"")
    known = key is not None or division.published
    problems = [
        *row_problems(study, config, source, found),
        *_split_problems(study, frame, division, found, known=known),
        *_picture_problems(pictures),
    ]
    sizes = [
        int(np.unique(division.patient[side]).size) for side in (~division.test, division.test)
    ]
    return QualityReport(
        *head,
        problems=tuple(str(problem) for problem in problems),
        rows=found.rows,
        patients=division.patients,
        rows_per_patient_max=int(division.rows_per_patient.max(initial=0)),
        duplicates=found.duplicates,
        features=found.features,
        target=found.target,
        classes=_classes(study, frame),
        patients_training=sizes[0] if known else None,
        patients_testing=sizes[1] if known else None,
        split="published" if division.published else "keyed hash",
        pictures=pictures,
    )


def _split_problems(
    study: Study, frame: pl.DataFrame, division: Division, found: Examination, *, known: bool
) -> list[DataError]:
    """Problems of patients and division, as far as they can be judged."""
    if not found.rows or found.without_patient:
        return []
    if known or division.patients < 2:
        return split_problems(study, frame, division)
    return []


def _pictures(study: Study, source: Source, found: Examination) -> PictureFindings | None:
    image = study.preprocess.image
    if source.pictures is None or image is None:
        return None
    return source.pictures.inspect(found.frame[ROW].to_numpy().astype(np.int64), image)


def _picture_problems(pictures: PictureFindings | None) -> list[DataError]:
    if pictures is None or not pictures.unreadable:
        return []
    return [
        DataError(
            "some pictures are missing, corrupt or of a kind that cannot be used",
            hint="replace them, or leave their rows out with [source] filter",
        )
    ]


def _classes(study: Study, frame: pl.DataFrame) -> dict[str, int] | None:
    if study.task.kind == "regression":
        return None
    codes = frame[TARGET].drop_nulls().cast(pl.Int64).to_numpy()
    counts = np.bincount(codes, minlength=len(study.task.labels))
    return {label: int(n) for label, n in zip(study.task.labels, counts, strict=True)}


def render(report: QualityReport) -> Group:
    """The report for people."""
    parts: list[Table | Text] = [_summary(report)]
    if report.features:
        parts += [Text(), _feature_table(report.features)]
    if report.pictures is not None:
        parts += [Text(), _picture_table(report.pictures)]
    verdict = "The study takes these data." if report.usable else "The study refuses these data:"
    parts += [Text(), Text(verdict, style="bold green" if report.usable else "bold red")]
    parts += [Text(f"  • {problem}") for problem in report.problems]
    return Group(*parts, Text(), Text(NOTICE, style="bold"))


def _summary(report: QualityReport) -> Table:
    table = Table(title=f"Data of site {report.site}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column()
    for name, value in _summary_rows(report):
        table.add_row(Text(name), Text(value))
    return table


def _summary_rows(report: QualityReport) -> Iterator[tuple[str, str]]:
    yield "study", f"{report.study} ({report.study_hash[:12]})"
    yield "source", report.source
    if report.rows is None or report.target is None:
        return
    yield "rows", str(report.rows)
    yield "patients", f"{report.patients}, at most {report.rows_per_patient_max} rows each"
    yield "duplicate rows", str(report.duplicates)
    if report.patients_training is None:
        yield "split", "by the site's key (give --key-file to check it)"
    else:
        sizes = f"{report.patients_training} patients train, {report.patients_testing} test"
        yield "split", f"{sizes} ({report.split})"
    yield "target", f"{report.target.name}: {_remarks(report.target)}"
    for label, count in (report.classes or {}).items():
        total = max(1, sum((report.classes or {}).values()))
        yield f"  {label}", f"{count} ({count / total:.1%})"


def _remarks(column: ColumnFindings) -> str:
    found = {
        "missing": column.missing,
        "not readable": column.malformed,
        "infinite": column.infinite,
        "out of range": column.out_of_range,
        "unknown": column.unknown,
    }
    text = ", ".join(f"{count} {word}" for word, count in found.items() if count) or "complete"
    shown = ", ".join(column.unknown_values)
    return f"{text} (unknown: {shown})" if shown else text


def _feature_table(features: tuple[ColumnFindings, ...]) -> Table:
    table = Table(title="Features", title_justify="left")
    for name in ("feature", "type", "found"):
        table.add_column(name)
    for name in ("min", "mean", "max"):
        table.add_column(name, justify="right")
    for column in features:
        numbers = (column.minimum, column.mean, column.maximum)
        shown = [Text("" if value is None else f"{value:.4g}") for value in numbers]
        table.add_row(Text(column.name), Text(column.kind), Text(_remarks(column)), *shown)
    return table


def _picture_table(pictures: PictureFindings) -> Table:
    table = Table(title="Pictures", title_justify="left")
    table.add_column("height×width")
    table.add_column("pictures", justify="right")
    for size, count in sorted(pictures.sizes.items(), key=lambda item: -item[1])[:20]:
        table.add_row(size, str(count))
    if pictures.unreadable:
        rows = ", ".join(str(row) for row in pictures.unreadable[:20])
        table.add_row(f"unusable, rows {rows}", str(len(pictures.unreadable)))
    return table
