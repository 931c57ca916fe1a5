"""Metrics from the counts that sites released: by site, and over all of them by adding counts."""

from __future__ import annotations

from typing import cast

from flwr.app import MetricRecord, RecordDict

from fedward.common import records
from fedward.common.metrics import Counts, evaluate
from fedward.common.study import Study
from fedward.server.replies import Replies
from fedward.server.strategies import MetricsFunction

OVERALL = "overall"


def merged_metrics(study: Study) -> MetricsFunction:
    """The strategy's hook: add up all released counts and compute the metrics once.

    The mean of the sites' metrics would be another, wrong number: AUROC does not average.
    """

    def merge(contents: list[RecordDict], _weighted_by: str) -> MetricRecord:
        released = [counts for content in contents if (counts := _counts(study, content))]
        if not released:
            return MetricRecord()
        metrics = evaluate(sum(released[1:], start=released[0]))
        return MetricRecord({name: v for name, v in metrics.items() if v is not None})

    return merge


def metrics_by_site(
    study: Study, replies: Replies, merged: MetricRecord
) -> dict[str, dict[str, float | None]]:
    """Metrics of every site that released counts, and `overall` as merged by the strategy."""
    result: dict[str, dict[str, float | None]] = {}
    for site, message in replies.accepted.items():
        counts = _counts(study, message.content)
        if counts is not None:
            result[site] = dict(evaluate(counts))
    result[OVERALL] = {name: float(cast("float", value)) for name, value in merged.items()}
    return result


def _counts(study: Study, content: RecordDict) -> Counts | None:
    metrics = cast("MetricRecord", content[records.METRICS])
    if metrics[records.RELEASED] != 1.0:
        return None
    arrays = {key: array.numpy() for key, array in content.array_records[records.ARRAYS].items()}
    return Counts.from_arrays(
        study.task.kind,
        arrays,
        outputs=study.task.outputs,
        bins=study.evaluation.bins,
        bounds=study.task.bounds,
        noised=study.private,
    )
