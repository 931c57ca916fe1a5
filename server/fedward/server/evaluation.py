"""Metrics from the counts that sites released: by site, and over all of them by adding counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.errors import RoundError
from fedward.common.metrics import Counts, evaluate, evaluate_each
from fedward.common.study import Study
from fedward.server.flower_internals import SERVER_NODE_ID
from fedward.server.replies import Refusal, Replies, arrays_of, number_of
from fedward.server.strategies import MetricsFunction

OVERALL = "overall"


@dataclass(frozen=True)
class Evaluated:
    """What sites said that were asked to evaluate.

    Attributes:
        released: counts of each site that answered, sorted by name; None of a site that has too few
            patients to release any.
        refused: the other sites that were asked.
    """

    released: Mapping[str, Counts | None]
    refused: Mapping[str, Refusal]

    @staticmethod
    def of(study: Study, replies: Replies) -> Evaluated:
        """Read replies; whose counts are not what the study demands is among the refused."""
        released: dict[str, Counts | None] = {}
        refused = dict(replies.refused)
        for site, message in replies.accepted.items():
            try:
                released[site] = _read(study, message)
            except RoundError as error:
                refused[site] = Refusal(RoundError.exit_code, error.problem)
        return Evaluated(released, refused)

    @property
    def counts(self) -> dict[str, Counts]:
        """Of the sites that released any."""
        return {site: counts for site, counts in self.released.items() if counts is not None}

    @property
    def reasons(self) -> dict[str, str]:
        """Why each refused site is not there."""
        return {site: refusal.reason for site, refusal in self.refused.items()}

    def replies(self) -> list[Message]:
        """For a strategy: all sites as one, whose counts are the sum; none if nobody answered."""
        if not self.released:
            return []
        counts = list(self.counts.values())
        said = MetricRecord({records.WEIGHT: 1.0, records.RELEASED: float(bool(counts))})
        content = RecordDict({records.METRICS: said})
        if counts:
            total = sum(counts[1:], start=counts[0]).to_arrays()
            content[records.ARRAYS] = ArrayRecord({k: Array(v) for k, v in total.items()})
        to = SERVER_NODE_ID
        return [Message(content, dst_node_id=to, message_type=records.EVALUATE)]


def _read(study: Study, message: Message) -> Counts | None:
    """Counts of a reply.

    Raises:
        RoundError: they are not what the study demands, or the reply cannot be read.
    """
    released = number_of(message, records.RELEASED)
    if released not in (0.0, 1.0):
        raise RoundError("the reply does not say what it releases", hint="check the site")
    return _from_arrays(study, arrays_of(message)) if released else None


def merged_metrics(study: Study) -> MetricsFunction:
    """The strategy's hook: the metrics of the counts that `Evaluated.replies` added up.

    The mean of the sites' metrics would be another, wrong number: AUROC does not average.
    """

    def merge(contents: list[RecordDict], _weighted_by: str) -> MetricRecord:
        released = [counts for content in contents if (counts := _said(study, content))]
        if not released:
            return MetricRecord()
        metrics = evaluate(sum(released[1:], start=released[0]))
        return MetricRecord({name: v for name, v in metrics.items() if v is not None})

    return merge


def metrics_by_site(found: Evaluated, merged: MetricRecord) -> dict[str, dict[str, float | None]]:
    """Metrics of every site that released counts, and `overall` as merged by the strategy."""
    known = found.counts
    result = dict(zip(known, evaluate_each(list(known.values())), strict=True))
    result[OVERALL] = {name: float(cast("float", value)) for name, value in merged.items()}
    return result


def _said(study: Study, content: RecordDict) -> Counts | None:
    """What `Evaluated.replies` wrote. The limits of a site's counts are not those of a sum."""
    if content.metric_records[records.METRICS][records.RELEASED] != 1.0:
        return None
    cells = {key: array.numpy() for key, array in content.array_records[records.ARRAYS].items()}
    shown = bool(cells.pop("decisions")[0])
    bounds = study.task.bounds if cells.pop("bounds", None) is not None else None
    return Counts(study.task.kind, cells, bounds, decisions=shown)


def _from_arrays(study: Study, arrays: Mapping[str, NDArray[Any]]) -> Counts:
    return Counts.from_arrays(
        study.task.kind,
        arrays,
        outputs=study.task.outputs,
        bins=study.evaluation.bins,
        bounds=study.task.bounds,
        noised=study.private,
    )
