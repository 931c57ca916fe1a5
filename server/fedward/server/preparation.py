"""Before the first round: who is there, the frozen preprocessing, the first weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedward.common import records
from fedward.common.errors import RoundError
from fedward.common.models.state import build_module, get_weights
from fedward.common.preprocess import Statistics, Transform, fit, merge, needs_federated
from fedward.common.study import Study, study_hash
from fedward.common.tensors import Weights
from fedward.server.replies import arrays_of, ask, config_of


@dataclass(frozen=True)
class Preparation:
    """What the rounds start from.

    Attributes:
        transform: the frozen preprocessing.
        site_weights: aggregation weight of each site.
        weights: first weights, from the study's seed.
    """

    transform: Transform
    site_weights: dict[str, float]
    weights: Weights


def introduce(study: Study, grid: Grid) -> dict[int, str]:
    """Ask every node which site it is.

    Returns:
        Site name by node id.

    Raises:
        FedwardError: fewer sites than the study needs hold this study.
        RoundError: two nodes claim to be the same site.
    """
    nodes = {node: str(node) for node in grid.get_node_ids()}
    messages = _queries(study, records.INTRODUCE, nodes)
    replies = ask(grid, messages, nodes, deadline_s=study.aggregation.deadline_s)
    replies.require(study.aggregation.min_sites, during="introduction")
    sites = {
        int(node): cast("str", config_of(answer)[records.SITE])
        for node, answer in replies.accepted.items()
    }
    if len(set(sites.values())) != len(sites):
        raise RoundError(
            "two nodes introduced themselves as the same site", hint="give every site its own name"
        )
    return sites


def prepare(study: Study, grid: Grid, sites: dict[int, str]) -> Preparation:
    """Collect the sums that the study needs, freeze the transform, draw the first weights.

    Raises:
        FedwardError: fewer sites than the study needs answered, or the sums cannot be used.
    """
    by_size = study.aggregation.weights == "size"
    site_weights = dict.fromkeys(sorted(sites.values()), 1.0)
    total: Statistics | None = None
    if needs_federated(study) or by_size:
        parts = _statistics(study, grid, sites)
        total = merge(parts.values())
        site_weights = {name: part.weight if by_size else 1.0 for name, part in parts.items()}
    transform = fit(study, total)
    return Preparation(transform, site_weights, first_weights(study, transform))


def first_weights(study: Study, transform: Transform) -> Weights:
    """Weights of the study's model before training, drawn from the study's seed."""
    image = study.preprocess.image
    shape: tuple[int, ...] = (transform.width,)
    if image is not None:
        shape = (image.channels, image.height, image.width)
    module = build_module(study.model, shape, study.task.outputs, study.training.seed)
    return get_weights(module)


def _statistics(study: Study, grid: Grid, sites: dict[int, str]) -> dict[str, Statistics]:
    messages = _queries(study, records.STATISTICS, sites)
    replies = ask(grid, messages, sites, deadline_s=study.aggregation.deadline_s)
    replies.require(study.aggregation.min_sites, during="preprocessing")
    return {
        name: Statistics.from_arrays(
            study, arrays_of(answer), cast("str", config_of(answer)[records.LEVELS])
        )
        for name, answer in replies.accepted.items()
    }


def _queries(study: Study, kind: str, nodes: Iterable[int]) -> list[Message]:
    config = ConfigRecord({records.STUDY_HASH: study_hash(study)})
    content = RecordDict({records.CONFIG: config})
    return [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
