"""From the sites' updates to the next global weights, block by block.

    update of every site, a block of each → unmodified Flower strategy → that block of the model

What Flower's strategies compute, they compute value by value: a mean, a median, a step of Adam. So
a strategy that sees the model one block at a time gives the same result, bit for bit, as one that
sees it whole. Memory is one model for the result, what the strategy remembers, and `BUDGET` values
over all sites, twice: it does not grow with the number of sites. An update is read twice, once when
it is checked on arrival and once here; the next block is read while the strategy works on one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from fedward.common import records
from fedward.common.errors import RoundError, TrainingError
from fedward.common.tensors import Weights, check_layout, check_weights
from fedward.server.arrays import array_record, block_of, spec_of
from fedward.server.aside import aside
from fedward.server.blocks import Block, block_size, blocks, cut, empty_like
from fedward.server.drift import DriftSums
from fedward.server.flower_internals import SERVER_NODE_ID
from fedward.server.history import Drift
from fedward.server.replies import Check, Replies, readable, record_of
from fedward.server.strategies import BlockMemory, is_mean

_ALL = ""


def check_update(before: Weights, max_norm: float | None) -> Check:
    """What refuses an update that does not fit the model, is not finite, or is too large.

    Args:
        before: the global weights it was trained from.
        max_norm: largest Euclidean norm of an update, None for no limit.
    """

    def check(_site: str, message: Message) -> None:
        record = record_of(message)
        with readable():
            check_layout({name: spec_of(array) for name, array in record.items()}, before)
        square = 0.0
        for block in blocks(before, block_size(1)):
            with readable():
                values = _cut_record(record, block)
            old = cut(before, block)
            check_weights(values, old)
            if max_norm is not None:
                square += _square(values, old)
        if max_norm is not None and square > max_norm**2:
            raise RoundError(
                "the update is larger than [aggregation] max_update_norm",
                hint="see what is wrong at the site",
            )

    return check


def _square(after: Weights, before: Weights) -> float:
    total = 0.0
    with np.errstate(over="ignore"):  # infinite is larger than any limit
        for name, old in before.items():
            update = (after[name] - old).astype(np.float64)
            total += float(np.vdot(update, update))
    return total


@dataclass(frozen=True)
class Parts:
    """What is combined into the next weights.

    Attributes:
        updates: weights that sites trained.
        shares: aggregation weight of each.
        drift: of each site, if somebody found it out already.
    """

    updates: Mapping[str, ArrayRecord]
    shares: Mapping[str, float]
    drift: dict[str, Drift] | None = None


@dataclass(frozen=True)
class Mean:
    """The mean of what sites trained, found where they are, in place of each.

    Attributes:
        weights: by the sites' aggregation weights.
        drift: of each site, if it was found out.
    """

    weights: Weights
    drift: dict[str, Drift]


def single_updates(replies: Replies, site_weights: Mapping[str, float]) -> Parts:
    """What sites sent one by one, whatever else than arrays they said."""
    updates = {site: record_of(message) for site, message in replies.accepted.items()}
    return Parts(updates, {site: site_weights[site] for site in updates})


def aggregate(
    strategy: flower.FedAvg, number: int, found: Parts | Mean, before: Weights
) -> tuple[Weights, dict[str, Drift]]:
    """Let a strategy combine checked updates into the next weights; a mean may be them already.

    Args:
        strategy: any of `make_strategy`.
        number: of the round.
        found: at least one update, or the mean.
        before: the global weights that the sites trained from.

    Returns:
        The next global weights, and each site's drift.

    Raises:
        RoundError: the strategy combined nothing.
        TrainingError: finite updates were combined into weights that are not.
    """
    if isinstance(found, Mean):
        if is_mean(strategy):
            _check_finite(found.weights, before)
            return found.weights, found.drift
        found = Parts({_ALL: array_record(found.weights)}, {_ALL: 1.0}, found.drift)
    drift = DriftSums(found.shares) if found.drift is None else None
    after = empty_like(before)
    plan = list(blocks(before, block_size(len(found.updates))))
    with (
        BlockMemory(strategy, before) as memory,
        np.errstate(over="ignore", invalid="ignore"),
        aside(worth=len(plan) > 1) as other,
    ):
        for block, parts in _read_ahead(found.updates, plan, other):
            old = cut(before, block)
            drifted = other.submit(drift.add, old, parts) if drift else None
            memory.show(block)
            step = _step(strategy, number, _contents(parts, found.shares))
            memory.keep(block)
            for part in block:
                # Adaptive strategies may compute in float64.
                part.of(after[part.name])[...] = step[part.name].numpy()
            _check_finite(cut(after, block), old)
            if drifted is not None:
                drifted.result()
    return after, drift.result() if drift else dict(found.drift or {})


def _read_ahead(
    updates: Mapping[str, ArrayRecord], plan: Sequence[Block], other: Executor
) -> Iterator[tuple[Block, dict[str, Weights]]]:
    """Each block with what every site made of it; the next is read meanwhile."""

    def read(block: Block) -> dict[str, Weights]:
        return {site: _cut_record(record, block) for site, record in updates.items()}

    coming = [other.submit(read, block) for block in plan[:1]]
    for number, block in enumerate(plan, start=1):
        parts = coming.pop().result()
        coming += [other.submit(read, following) for following in plan[number : number + 1]]
        yield block, parts


def _cut_record(record: ArrayRecord, block: Block) -> Weights:
    return {
        part.name: block_of(record[part.name], part.start, part.stop).reshape(part.shape)
        for part in block
    }


def _contents(parts: Mapping[str, Weights], shares: Mapping[str, float]) -> list[RecordDict]:
    """A block of each update and the site's weight, where a strategy looks for them."""
    return [
        RecordDict(
            {
                records.ARRAYS: array_record(values),
                records.METRICS: MetricRecord({records.WEIGHT: shares[site]}),
            }
        )
        for site, values in parts.items()
    ]


def _step(strategy: flower.FedAvg, number: int, contents: list[RecordDict]) -> ArrayRecord:
    # A strategy looks only at the content of a reply.
    replies = [
        Message(content, dst_node_id=SERVER_NODE_ID, message_type=records.TRAIN)
        for content in contents
    ]
    arrays, _ = strategy.aggregate_train(number, replies)
    if arrays is None:
        raise RoundError(f"round {number} could not be aggregated", hint="see the sites' refusals")
    return arrays


def _check_finite(after: Weights, before: Weights) -> None:
    """Refuse a model that finite updates were combined into, but that is not finite itself."""
    try:
        check_weights(after, before)
    except RoundError as error:
        raise TrainingError(
            f"training diverged at the server, {error.problem}",
            hint="lower the learning rates of [training] and [algorithm]",
        ) from error
