"""What sites release is added up; what each may say is limited, and no sum of it ends a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedward.common.metrics import Counts, count, evaluate
from fedward.common.study import Study
from fedward.server.evaluation import OVERALL, Evaluated, merged_metrics, metrics_by_site
from fedward.server.flower_internals import identify
from fedward.simulations.fakes import small_study

TRUTH = np.array([0, 0, 1, 1, 0, 1, 0, 1], np.float32)
SCORES = np.array([0.1, 0.6, 0.5, 0.9, 0.3, 0.7, 0.2, 0.4], np.float32)[:, None]


def counts(study: Study, rows: slice = slice(None)) -> Counts:
    return count("binary", TRUTH[rows], SCORES[rows], bins=study.evaluation.bins)


def merged(study: Study, found: Evaluated) -> dict[str, Any]:
    identify(run_id=5)
    contents = [message.content for message in found.replies()]
    assert len(contents) == bool(found.released)
    return dict(merged_metrics(study)(contents, ""))


def test_the_metrics_are_those_of_all_counts() -> None:
    study = small_study()
    parts = {"a": counts(study, slice(0, 4)), "b": None, "c": counts(study, slice(4, 8))}
    found = Evaluated(parts, {})
    whole = {name: v for name, v in evaluate(counts(study)).items() if v is not None}
    assert merged(study, found) == whole
    record = merged_metrics(study)([message.content for message in found.replies()], "")
    by_site = metrics_by_site(found, record)
    assert by_site.keys() == {"a", "c", OVERALL}
    assert by_site[OVERALL] == whole


@pytest.mark.parametrize("released", [{}, {"a": None, "b": None}])
def test_nothing_released_is_nothing_known(released: dict[str, Counts | None]) -> None:
    assert merged(small_study(), Evaluated(released, {})) == {}


def test_counts_at_their_limit_may_be_added() -> None:
    """Two sites that each say as much as a site may: their run goes on."""
    study = small_study()
    large = {"hist": counts(study).cells["hist"] * 6e99}
    each = Counts.from_arrays(
        "binary", {**large, "decisions": np.ones(1)}, bins=study.evaluation.bins
    )
    metrics = merged(study, Evaluated({"a": each, "b": each}, {}))
    assert metrics["auroc"] == pytest.approx(evaluate(counts(study))["auroc"])
