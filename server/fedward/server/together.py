"""What a carrier may offer that has many sites in one place: to ask them all at once.

A message for each site costs more than a small model's training. An engine of a simulation is asked
once instead, and adds up what the sites send while it is there. The round loop stays the same: who
takes part, what is refused, quorum, aggregation, evaluation, checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from flwr.app import Message, RecordDict

from fedward.common import records
from fedward.common.study import Study, schema
from fedward.common.tensors import Weights
from fedward.server.aggregation import Mean, Parts
from fedward.server.arrays import array_record
from fedward.server.evaluation import Evaluated
from fedward.server.flower_internals import SERVER_NODE_ID
from fedward.server.history import Drift
from fedward.server.replies import Refusal, Replies


@dataclass(frozen=True)
class Asked:
    """What sites are asked in a round of training.

    Attributes:
        study: hash of the study.
        number: of the round.
        weights: that training starts from.
        transform: the frozen preprocessing, as JSON.
        proximal_mu: of FedProx, else 0.
        shares: aggregation weight of each site that is asked.
        max_norm: largest norm of an update that counts; None for no limit.
        each: whether every single update is needed.
    """

    study: str
    number: int
    weights: Weights
    transform: str
    proximal_mu: float
    shares: Mapping[str, float]
    max_norm: float | None
    each: bool


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        accepted: sites whose update counts, sorted by name.
        refused: the other ones that were asked.
        mean: mean of the accepted sites' weights, by their shares.
        updates: weights of each accepted site; empty if they were not asked for.
        drift: of each accepted site; empty if single updates did not fit into memory.
    """

    accepted: tuple[str, ...]
    refused: dict[str, Refusal]
    mean: Weights
    updates: Mapping[str, Weights]
    drift: dict[str, Drift]

    def replies(self) -> Replies:
        """For those who look who answered: what each said is in the sum."""
        said = Message(RecordDict(), dst_node_id=SERVER_NODE_ID, message_type=records.TRAIN)
        return Replies(dict.fromkeys(self.accepted, said), self.refused)


@dataclass(frozen=True)
class AskedToEvaluate:
    """What sites are asked in an evaluation.

    Attributes:
        number: of the round.
        weights: that are evaluated.
        transform: the frozen preprocessing, as JSON.
        sites: that are asked, sorted by name.
    """

    number: int
    weights: Weights
    transform: str
    sites: tuple[str, ...]


@runtime_checkable
class AsksTogether(Protocol):
    """A grid whose sites can be asked all at once."""

    def train_together(self, asked: Asked) -> Trained:
        """Have sites train; each checks and pays as if it had been sent a message.

        Raises:
            FedwardError: what has nothing to do with a single site.
        """
        ...

    def evaluate_together(self, asked: AskedToEvaluate) -> Evaluated:
        """Have sites evaluate; each checks, pays and releases as if it had been sent a message."""
        ...


_ORDERED = (schema.FedMedian, schema.FedTrimmedAvg)
"""Algorithms that need every single update; the others need their mean."""


def asked_of(
    study: Study, number: int, weights: Weights, content: RecordDict, shares: Mapping[str, float]
) -> Asked:
    """A strategy's message to one site, as what all of them are asked."""
    config = content.config_records[records.CONFIG]
    return Asked(
        study=str(config[records.STUDY_HASH]),
        number=number,
        weights=weights,
        transform=str(config[records.TRANSFORM]),
        proximal_mu=float(cast("float", config.get(records.PROXIMAL_MU, 0.0))),
        shares=shares,
        max_norm=study.aggregation.max_update_norm,
        each=isinstance(study.algorithm, _ORDERED),
    )


def combined(asked: Asked, trained: Trained) -> Parts | Mean:
    """What a strategy is given: every update if it looks at each, else their mean."""
    if asked.each:
        updates = {site: array_record(own) for site, own in trained.updates.items()}
        shares = {site: asked.shares[site] for site in updates}
        return Parts(updates, shares, trained.drift)
    return Mean(trained.mean, trained.drift)


def together(grid: object) -> AsksTogether | None:
    """The grid, if its sites can be asked all at once."""
    return grid if isinstance(grid, AsksTogether) else None
