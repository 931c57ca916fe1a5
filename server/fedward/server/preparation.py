"""Before the first round: the frozen preprocessing and the first weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedward.common import records
from fedward.common.preprocess import Statistics, Transform, fit, merge, needs_federated
from fedward.common.study import Study
from fedward.common.tensors import Weights
from fedward.server.first_weights import first_weights as first_weights
from fedward.server.replies import arrays_of, ask, queries, text_of


@dataclass(frozen=True)
class Preparation:
    """What the rounds start from.

    Attributes:
        transform: the frozen preprocessing.
        site_weights: aggregation weight of each site.
        weights: first weights, from the study's seed.
        refused: sites whose sums could not be used, and why.
    """

    transform: Transform
    site_weights: dict[str, float]
    weights: Weights
    refused: dict[str, str] = field(default_factory=dict)


FirstWeights = Callable[[Study, Transform], Weights]
"""Makes the weights that training starts from."""


def prepare(
    study: Study, grid: Grid, sites: Mapping[int, str], make_weights: FirstWeights = first_weights
) -> Preparation:
    """Collect the sums that the study needs, freeze the transform, draw the first weights.

    Raises:
        FedwardError: fewer sites than the study needs answered, or the sums cannot be used.
    """
    by_size = study.aggregation.weights == "size"
    site_weights = dict.fromkeys(sorted(sites.values()), 1.0)
    total: Statistics | None = None
    refused: dict[str, str] = {}
    if needs_federated(study) or by_size:
        parts, refused = _statistics(study, grid, sites)
        total = merge(parts.values())
        site_weights = {name: part.weight if by_size else 1.0 for name, part in parts.items()}
    transform = fit(study, total)
    return Preparation(transform, site_weights, make_weights(study, transform), refused)


def _statistics(
    study: Study, grid: Grid, sites: Mapping[int, str]
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Sums by site, sorted by name, and why others have none."""
    messages = queries(study, records.STATISTICS, sites)
    replies = ask(grid, messages, sites, deadline_s=study.aggregation.deadline_s)
    parts: dict[str, Statistics] = {}

    def read(site: str, answer: Message) -> None:
        levels = text_of(answer, records.LEVELS)
        parts[site] = Statistics.from_arrays(study, arrays_of(answer), levels)

    replies = replies.checked(read)
    replies.require(study.aggregation.min_sites, during="preprocessing")
    return parts, replies.reasons
