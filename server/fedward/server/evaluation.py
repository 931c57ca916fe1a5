"""Metrics from the counts that sites released: by site, and over all of them by adding counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flwr.app import Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.errors import RoundError
from fedward.common.metrics import Counts, evaluate, evaluate_each
from fedward.common.study import Study
from fedward.server.replies import Replies, arrays_of, number_of
from fedward.server.strategies import MetricsFunction

OVERALL = "overall"


def check_counts(study: Study, replies: Replies) -> Replies:
    """Refuse counts that are not what the study demands.

    Returns:
        The replies, offending sites moved to `refused` with the reason. What is accepted holds
        the checked counts and nothing else, as the strategy expects of all sites alike.
    """

    def check(_site: str, message: Message) -> None:
        released = number_of(message, records.RELEASED)
        if released not in (0.0, 1.0):
            raise RoundError("the reply does not say what it releases", hint="check the site")
        content = RecordDict(
            {records.METRICS: MetricRecord({records.WEIGHT: 1.0, records.RELEASED: released})}
        )
        if released:
            _from_arrays(study, arrays_of(message))
            content[records.ARRAYS] = message.content[records.ARRAYS]
        message.content = content

    return replies.checked(check)


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
    released = {site: _counts(study, m.content) for site, m in replies.accepted.items()}
    known = {site: counts for site, counts in released.items() if counts is not None}
    result = dict(zip(known, evaluate_each(list(known.values())), strict=True))
    result[OVERALL] = {name: float(cast("float", value)) for name, value in merged.items()}
    return result


def _counts(study: Study, content: RecordDict) -> Counts | None:
    metrics = content.metric_records[records.METRICS]
    if metrics[records.RELEASED] != 1.0:
        return None
    arrays = {key: array.numpy() for key, array in content.array_records[records.ARRAYS].items()}
    return _from_arrays(study, arrays)


def _from_arrays(study: Study, arrays: Mapping[str, NDArray[Any]]) -> Counts:
    return Counts.from_arrays(
        study.task.kind,
        arrays,
        outputs=study.task.outputs,
        bins=study.evaluation.bins,
        bounds=study.task.bounds,
        noised=study.private,
    )
