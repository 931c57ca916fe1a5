"""What makes a site's data unusable for a study: every rule, as a one-line refusal with a way out.

No refusal holds a value, an identifier or a count.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.division import Division
from fedward.client.examination import TARGET, ColumnFindings, Examination
from fedward.client.site_config import SiteConfig
from fedward.client.sources import Source
from fedward.common.errors import DataError
from fedward.common.study import Study
from fedward.common.study.schema import Feature


def row_problems(
    study: Study, config: SiteConfig, source: Source, found: Examination
) -> list[DataError]:
    """Everything that is wrong with the rows as they are, the most basic first."""
    if not found.rows:
        filtered = config.source.filter is not None
        return [
            DataError(
                f"{source.label} has no rows{' that meet [source] filter' if filtered else ''}",
                hint="check the filter and the file" if filtered else "check the file",
            )
        ]
    problems = _target_problems(study, found.target)
    if found.without_patient:
        problems.append(
            DataError(
                "some rows have no patient identifier",
                hint="fill it in, or leave these rows out with [source] filter",
            )
        )
    for feature, column in zip(study.data.features, found.features, strict=True):
        problems += _feature_problems(study, feature, column, found.rows)
    if found.duplicates and study.data.duplicates == "refuse":
        problems.append(
            DataError(
                "some rows repeat another row of the same patient exactly",
                hint="remove them, or let the study say [data] duplicates = 'drop'",
            )
        )
    return problems


def _target_problems(study: Study, target: ColumnFindings) -> list[DataError]:
    name, problems = study.task.target, []
    if target.missing:
        problems.append(
            DataError(
                f"some rows have no value of the target {name}",
                hint="leave them out with [source] filter, as in: outcome IS NOT NULL",
            )
        )
    if target.unknown:
        problems.append(
            DataError(
                f"the target {name} has values that are none of the study's labels",
                hint=f"labels are {', '.join(study.task.labels)}; map local values to them with "
                "[target] values or threshold",
            )
        )
    if target.malformed or target.infinite:
        problems.append(_not_numbers(f"the target {name}", "[target]"))
    if target.out_of_range and study.data.out_of_range != "clip":
        problems.append(
            DataError(
                f"the target {name} has values outside the study's bounds",
                hint="correct them or their unit, or let the study clip them",
            )
        )
    return problems


def _feature_problems(
    study: Study, feature: Feature, column: ColumnFindings, rows: int
) -> list[DataError]:
    name, problems = feature.name, []
    if column.malformed or column.infinite:
        if feature.type == "boolean":
            problems.append(
                DataError(
                    f"feature {name} has values that are neither yes nor no",
                    hint=f"map them to true and false with [features.{name}] values",
                )
            )
        else:
            problems.append(_not_numbers(f"feature {name}", f"[features.{name}]"))
    absent = column.missing
    absent += column.out_of_range if study.data.out_of_range == "missing" else 0
    absent += column.unknown if study.data.unknown_category == "missing" else 0
    if absent == rows:
        problems.append(
            DataError(
                f"feature {name} has no usable value in any row",
                hint=f"check [features.{name}] column, or take part in a study without it",
            )
        )
    elif absent and feature.missing == "refuse":
        problems.append(
            DataError(
                f"feature {name} is missing in some rows, which the study refuses",
                hint="fill it in, filter these rows, or let the study say missing = 'impute'",
            )
        )
    if column.out_of_range and study.data.out_of_range == "refuse":
        problems.append(
            DataError(
                f"feature {name} has values outside the study's bounds {_bounds(feature)}",
                hint=f"check the unit and set [features.{name}] scale, or let the study say "
                "out_of_range = 'clip' or 'missing'",
            )
        )
    if column.unknown and study.data.unknown_category == "refuse":
        problems.append(
            DataError(
                f"feature {name} has values that are none of the study's categories",
                hint=f"categories are {', '.join(feature.categories)}; map local values with "
                f"[features.{name}] values, or let the study say unknown_category = 'missing'",
            )
        )
    return problems


def _not_numbers(what: str, section: str) -> DataError:
    return DataError(
        f"{what} has values that are not finite numbers",
        hint=f"correct them, name them in [source] null_values, or check {section} column",
    )


def _bounds(feature: Feature) -> str:
    low = "-∞" if feature.min is None else f"{feature.min:g}"
    high = "∞" if feature.max is None else f"{feature.max:g}"
    return f"{low} … {high}{' ' + feature.unit if feature.unit else ''}"


def split_problems(study: Study, frame: pl.DataFrame, division: Division) -> list[DataError]:
    """Everything that is wrong with the patients and their division into training and testing."""
    if division.patients < 2:
        return [
            DataError(
                "the site has fewer than two patients",
                hint="a site needs patients to train on and others to test on; check [patients]",
            )
        ]
    if division.unassigned:
        return [
            DataError(
                "the split column has values that mean neither training nor testing",
                hint="name all of them in [split] train and test, or filter these rows",
            )
        ]
    problems = []
    if division.straddling:
        problems.append(
            DataError(
                "some patient has rows in both training and testing data",
                hint="move all rows of a patient to one side, or remove [split]",
            )
        )
    sides = {"training": ~division.test, "testing": division.test}
    for side, rows in sides.items():
        if not rows.any():
            problems.append(_empty_side(side, division))
        elif _single_class(study, frame, rows):
            problems.append(
                DataError(
                    f"the {side} rows have one class of {study.task.target} only",
                    hint="check [target], or let the study say [data] single_class = 'allow'",
                )
            )
    return problems


def _empty_side(side: str, division: Division) -> DataError:
    if division.published:
        return DataError(f"no patient is in the {side} data", hint="check [split] train and test")
    return DataError(
        f"no patient is in the {side} data",
        hint="the site has too few patients for this [evaluation] holdout; "
        "add patients or give a [split]",
    )


def _single_class(study: Study, frame: pl.DataFrame, rows: NDArray[np.bool_]) -> bool:
    if study.task.kind == "regression" or study.data.single_class == "allow":
        return False
    return len(np.unique(frame[TARGET].to_numpy()[rows])) < 2
