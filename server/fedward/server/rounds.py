"""The durable round loop: one execution of a study over any Flower `Grid`.

    configure_train → sites → aggregate_train → configure_evaluate → sites → aggregate_evaluate

The four methods are those of an unmodified Flower strategy; the loop around them is ours because
Flower's has no resume, no quorum that ends, and no fixed order. Here: participants are drawn from
the study's seed and the round's number, replies are put in order of site name, every update is
checked before it is used, and the state is on disk before the next round begins. So an interrupted
run continues to the same final model, bit for bit, as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedward.common import records
from fedward.common.errors import RoundError, StudyError, TrainingError
from fedward.common.preprocess import Transform
from fedward.common.study import Study, study_hash
from fedward.common.tensors import Weights, check_weights, difference, norm
from fedward.server.checkpoints import Checkpoints, RoundRecord, RunState
from fedward.server.drift import measure_drift
from fedward.server.evaluation import check_counts, merged_metrics, metrics_by_site
from fedward.server.preparation import introduce, prepare
from fedward.server.replies import (
    Replies,
    SelectedGrid,
    array_record,
    arrays_of,
    ask,
    weights_of,
)
from fedward.server.strategies import make_strategy, restore_state, strategy_state


class Observer(Protocol):
    """Follows a run; what it returns is kept in the checkpoint and given back on resume."""

    def on_prepared(self, transform: Transform, weights: Weights) -> dict[str, Any]:
        """The transform is frozen and the first weights are drawn; before the first round."""
        ...

    def on_resumed(self, state: RunState) -> None:
        """The run continues from `state` instead of being prepared."""
        ...

    def on_round(self, record: RoundRecord, weights: Weights) -> dict[str, Any]:
        """A round is complete; `weights` are the new global ones."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a run ends with.

    Attributes:
        weights: the final global weights.
        transform: the frozen preprocessing.
        history: a record of every round.
    """

    weights: Weights
    transform: Transform
    history: tuple[RoundRecord, ...]


class Rounds:
    """One run of a study.

    Args:
        study: the protocol.
        grid: the carrier that reaches the sites.
        checkpoints: where the run's state is kept.
        observer: follows the run.
    """

    def __init__(
        self, study: Study, grid: Grid, *, checkpoints: Checkpoints, observer: Observer
    ) -> None:
        self._study = study
        self._hash = study_hash(study)
        self._grid = grid
        self._checkpoints = checkpoints
        self._observer = observer
        self._sites: dict[int, str] = {}
        self._strategy = make_strategy(study, evaluate_metrics=merged_metrics(study))

    def run(self) -> Outcome:
        """Run all rounds that are not done yet.

        Raises:
            FedwardError: too few sites could take part, or training diverged at all of them. The
                checkpoint of the last completed round stays.
        """
        self._sites, unknown = introduce(self._study, self._grid)
        state = self._resume() or self._prepare()
        state = replace(state, absent={**state.absent, **unknown})
        transform = Transform.from_json(state.transform)
        while state.round < self._study.training.rounds:
            state = self._round(state)
            self._checkpoints.save(state)
        return Outcome(state.weights, transform, state.history)

    def _resume(self) -> RunState | None:
        state = self._checkpoints.newest()
        if state is None:
            return None
        if state.study_hash != self._hash:
            raise StudyError(
                "the checkpoint belongs to another study",
                hint="continue with the study file it was made with, or start again",
            )
        missing = sorted(set(state.site_weights) - set(self._sites.values()))
        present = len(state.site_weights) - len(missing)
        if present < self._study.aggregation.min_sites:
            raise RoundError(
                f"{present} of {self._study.aggregation.min_sites} needed sites that began this "
                "run are connected",
                hint=f"connect {', '.join(missing)}",
            )
        restore_state(self._strategy, state.strategy)
        self._observer.on_resumed(state)
        return replace(state, absent=state.absent | dict.fromkeys(missing, "not connected"))

    def _prepare(self) -> RunState:
        ready = prepare(self._study, self._grid, self._sites)
        notes = self._observer.on_prepared(ready.transform, ready.weights)
        state = RunState(
            study_hash=self._hash,
            round=0,
            weights=ready.weights,
            transform=ready.transform.to_json(),
            site_weights=ready.site_weights,
            notes=notes,
            absent=ready.refused,
        )
        self._checkpoints.save(state)
        return state

    def _round(self, state: RunState) -> RunState:
        number = state.round + 1
        weights, record = self._train(state, number)
        if self._evaluates(number):
            record = self._evaluate(state, record, weights)
        notes = self._observer.on_round(record, weights)
        return replace(
            state,
            round=number,
            weights=weights,
            history=(*state.history, replace(record, notes=notes)),
            strategy=strategy_state(self._strategy),
            absent={},
        )

    def _train(self, state: RunState, number: int) -> tuple[Weights, RoundRecord]:
        grid = SelectedGrid(self._grid, self._participants(state, number))
        messages = self._strategy.configure_train(
            number, array_record(state.weights), self._config(state), grid
        )
        replies = self._ask(list(messages))
        replies = check_updates(replies, state.weights, self._study.aggregation.max_update_norm)
        replies.require(self._study.aggregation.min_sites, during=f"round {number}")
        set_weights(replies, state.site_weights)
        with np.errstate(over="ignore", invalid="ignore"):  # the result is checked below
            drift = measure_drift(replies, state.weights, state.site_weights)
            arrays, _ = self._strategy.aggregate_train(number, list(replies.accepted.values()))
        if arrays is None:
            raise RoundError(
                f"round {number} could not be aggregated", hint="see the sites' refusals"
            )
        after = weights_of(arrays)
        _check_finite(after, state.weights)
        record = RoundRecord(
            round=number,
            participants=tuple(replies.accepted),
            refused=state.absent | replies.reasons,
            drift=drift,
        )
        return after, record

    def _evaluate(self, state: RunState, record: RoundRecord, weights: Weights) -> RoundRecord:
        number = record.round
        grid = SelectedGrid(self._grid, self._sites)
        messages = self._strategy.configure_evaluate(
            number, array_record(weights), self._config(state), grid
        )
        replies = check_counts(self._study, self._ask(list(messages)))
        merged = self._strategy.aggregate_evaluate(number, list(replies.accepted.values()))
        late = {site: f"evaluation: {reason}" for site, reason in replies.reasons.items()}
        return replace(
            record,
            refused=late | record.refused,
            evaluation=metrics_by_site(self._study, replies, merged or MetricRecord()),
        )

    def _evaluates(self, number: int) -> bool:
        every = self._study.evaluation.every
        return number == self._study.training.rounds or (every > 0 and number % every == 0)

    def _participants(self, state: RunState, number: int) -> list[int]:
        """Nodes that train in a round: all, or a share drawn from the seed and the round."""
        eligible = {site: node for node, site in self._sites.items() if site in state.site_weights}
        wanted = round(self._study.aggregation.participation * len(eligible))
        wanted = min(max(wanted, self._study.aggregation.min_sites, 1), len(eligible))
        generator = np.random.default_rng([self._study.training.seed, number])
        chosen = generator.permutation(sorted(eligible))[:wanted]
        return [eligible[str(site)] for site in chosen]

    def _config(self, state: RunState) -> ConfigRecord:
        return ConfigRecord({records.STUDY_HASH: self._hash, records.TRANSFORM: state.transform})

    def _ask(self, messages: list[Message]) -> Replies:
        deadline_s = self._study.aggregation.deadline_s
        return ask(self._grid, messages, self._sites, deadline_s=deadline_s)


def check_updates(replies: Replies, before: Weights, max_norm: float | None) -> Replies:
    """Refuse updates that do not fit the model, are not finite, or are larger than allowed.

    Args:
        replies: answers of the sites.
        before: the global weights they trained from.
        max_norm: largest Euclidean norm of an update, None for no limit.

    Returns:
        The replies, offending sites moved to `refused` with the reason.
    """

    def check(_site: str, message: Message) -> None:
        weights = cast("Weights", arrays_of(message))
        check_weights(weights, before)
        if max_norm is not None and norm(difference(weights, before)) > max_norm:
            raise RoundError(
                "the update is larger than [aggregation] max_update_norm",
                hint="see what is wrong at the site",
            )

    return replies.checked(check)


def set_weights(replies: Replies, site_weights: Mapping[str, float]) -> None:
    """Leave in each reply the update and the site's weight, where the strategy looks for it.

    Whatever else a site put into its reply is dropped: strategies expect the same of all sites.
    """
    for site, message in replies.accepted.items():
        message.content = RecordDict(
            {
                records.ARRAYS: message.content[records.ARRAYS],
                records.METRICS: MetricRecord({records.WEIGHT: site_weights[site]}),
            }
        )


def _check_finite(after: Weights, before: Weights) -> None:
    """Refuse a model that finite updates were combined into, but that is not finite itself."""
    try:
        check_weights(after, before)
    except RoundError as error:
        raise TrainingError(
            f"training diverged at the server, {error.problem}",
            hint="lower the learning rates of [training] and [algorithm]",
        ) from error
