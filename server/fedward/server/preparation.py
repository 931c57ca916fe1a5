"""Before the first round: who is there, the frozen preprocessing, the first weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedward.common import records
from fedward.common.errors import RoundError
from fedward.common.models.state import build_module, get_weights
from fedward.common.preprocess import Statistics, Transform, fit, merge, needs_federated
from fedward.common.study import Study, study_hash
from fedward.common.tensors import Weights
from fedward.server.evaluation import OVERALL
from fedward.server.replies import arrays_of, ask, text_of

_LONGEST_NAME = 200


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


def introduce(study: Study, grid: Grid) -> tuple[dict[int, str], dict[str, str]]:
    """Ask every node which site it is.

    Returns:
        Site name by node id; and of nodes that did not say so, `node <id>` and the reason.

    Raises:
        FedwardError: fewer sites than the study needs hold this study.
        RoundError: two nodes claim to be the same site.
    """
    nodes = {node: f"node {node}" for node in grid.get_node_ids()}
    messages = _queries(study, records.INTRODUCE, nodes)
    replies = ask(grid, messages, nodes, deadline_s=study.aggregation.deadline_s)
    replies = replies.checked(lambda _node, answer: _check_name(text_of(answer, records.SITE)))
    replies.require(study.aggregation.min_sites, during="introduction")
    sites: dict[int, str] = {}
    for answer in replies.accepted.values():
        name = text_of(answer, records.SITE)
        if name in sites.values():
            raise RoundError(
                f"two nodes introduced themselves as site {name}",
                hint="give every site its own name",
            )
        sites[answer.metadata.src_node_id] = name
    return sites, replies.reasons


def _check_name(name: str) -> None:
    if name == OVERALL or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise RoundError("that is no name for a site", hint="choose another in site.toml")


def prepare(study: Study, grid: Grid, sites: dict[int, str]) -> Preparation:
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
    return Preparation(transform, site_weights, first_weights(study, transform), refused)


def first_weights(study: Study, transform: Transform) -> Weights:
    """Weights of the study's model before training, drawn from the study's seed."""
    image = study.preprocess.image
    shape: tuple[int, ...] = (transform.width,)
    if image is not None:
        shape = (image.channels, image.height, image.width)
    module = build_module(study.model, shape, study.task.outputs, study.training.seed)
    return get_weights(module)


def _statistics(
    study: Study, grid: Grid, sites: dict[int, str]
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Sums by site, sorted by name, and why others have none."""
    messages = _queries(study, records.STATISTICS, sites)
    replies = ask(grid, messages, sites, deadline_s=study.aggregation.deadline_s)
    parts: dict[str, Statistics] = {}

    def read(site: str, answer: Message) -> None:
        levels = text_of(answer, records.LEVELS)
        parts[site] = Statistics.from_arrays(study, arrays_of(answer), levels)

    replies = replies.checked(read)
    replies.require(study.aggregation.min_sites, during="preprocessing")
    return parts, replies.reasons


def _queries(study: Study, kind: str, nodes: Iterable[int]) -> list[Message]:
    config = ConfigRecord({records.STUDY_HASH: study_hash(study)})
    content = RecordDict({records.CONFIG: config})
    return [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
