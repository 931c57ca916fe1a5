"""The durable round loop: one execution of a study over any Flower `Grid`.

    configure_train → sites → aggregate_train → configure_evaluate → sites → aggregate_evaluate

The four methods are those of an unmodified Flower strategy; where a carrier asks all sites at once,
it is asked only for what it would change (see `together`). The loop around them is ours because
Flower's has no resume, no quorum that ends, and no fixed order. Here: participants are drawn from
the study's seed and the round's number, replies are put in order of site name, every update is
checked before it is used, and the state is on disk before the next round begins. So an interrupted
run continues to the same final model, bit for bit, as one that was not. A private round that was
cut off at too many sites is put on record as empty; see `empty_rounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedward.common import records
from fedward.common.errors import Interrupted, RoundError, StudyError
from fedward.common.preprocess import Transform
from fedward.common.study import Study, study_hash
from fedward.common.tensors import Weights
from fedward.server.aggregation import Mean, Parts, aggregate, check_update, single_updates
from fedward.server.arrays import array_record
from fedward.server.attendance import Attendance
from fedward.server.checkpoints import Checkpoints, RunState
from fedward.server.empty_rounds import Progress, check_trained, empty_round, is_lost
from fedward.server.evaluation import Evaluated, merged_metrics, metrics_by_site
from fedward.server.history import History, RoundRecord
from fedward.server.preparation import FirstWeights, first_weights, prepare
from fedward.server.replies import Check, Replies, SelectedGrid, ask
from fedward.server.strategies import make_strategy, restore_state, strategy_state
from fedward.server.together import AskedToEvaluate, asked_of, combined, together


class Observer(Protocol):
    """Follows a run; what it returns is kept in the checkpoint and given back on resume."""

    def on_prepared(self, transform: Transform, weights: Weights) -> dict[str, Any]:
        """The transform is frozen and the first weights are drawn; before the first round."""
        ...

    def on_resumed(self, state: RunState) -> None:
        """The run continues from `state` instead of being prepared."""
        ...

    def on_evaluating(self, number: int) -> None:
        """The sites are asked to evaluate the weights of round `number`."""
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
    history: Sequence[RoundRecord]


class Rounds:
    """One run of a study.

    Args:
        study: the protocol.
        grid: the carrier that reaches the sites.
        checkpoints: where the run's state is kept.
        observer: follows the run.
        make_weights: makes the weights that training starts from.
        should_stop: is asked before each round whether the run shall stop there.
        resumed_after: the last round that was done when a person let the run go on. By default
            whoever calls `run` is that person.
    """

    def __init__(
        self,
        study: Study,
        grid: Grid,
        *,
        checkpoints: Checkpoints,
        observer: Observer,
        make_weights: FirstWeights = first_weights,
        should_stop: Callable[[], bool] = lambda: False,
        resumed_after: int | None = None,
    ) -> None:
        self._study = study
        self._hash = study_hash(study)
        self._grid = grid
        self._checkpoints = checkpoints
        self._observer = observer
        self._make_weights = make_weights
        self._should_stop = should_stop
        self._resumed_after = resumed_after
        self._attendance = Attendance(study, grid)
        self._strategy = make_strategy(study, evaluate_metrics=merged_metrics(study))

    def run(self) -> Outcome:
        """Run all rounds that are not done yet.

        Raises:
            Interrupted: `should_stop` said so.
            NothingTrained: nobody took part in too many rounds, or in any.
            FedwardError: too few sites could take part, or training diverged at all of them.

        The checkpoint of the last completed round stays in either case.
        """
        unknown = self._attendance.begin()
        state = self._resume() or self._prepare()
        state = replace(state, absent={**state.absent, **unknown})
        transform = Transform.from_json(state.transform)
        since = state.round if self._resumed_after is None else self._resumed_after
        progress, rounds = Progress.of(state.history, since=since), self._study.training.rounds
        while state.round < rounds:
            progress.check(rounds)
            self._stop_if_asked(state.round)
            state = self._checkpoints.save(self._round(state))
            progress = progress.then(state.history[-1])
        check_trained(state.history)
        return Outcome(state.weights, transform, state.history)

    def _stop_if_asked(self, done: int) -> None:
        if self._should_stop():
            raise Interrupted(
                f"the run was stopped after round {done}", hint="resume it to go on from there"
            )

    def _resume(self) -> RunState | None:
        state = self._checkpoints.newest()
        if state is None:
            return None
        if state.study_hash != self._hash:
            raise StudyError(
                "the checkpoint belongs to another study",
                hint="continue with the study file it was made with, or start again",
            )
        missing = sorted(set(state.site_weights) - set(self._attendance.sites.values()))
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
        ready = prepare(self._study, self._grid, self._attendance.sites, self._make_weights)
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
        return self._checkpoints.save(state)

    def _round(self, state: RunState) -> RunState:
        number = state.round + 1
        news = self._attendance.update(state.site_weights)
        state = replace(state, absent=state.absent | news)
        weights, record = self._train(state, number)
        if self._evaluates(number):
            self._observer.on_evaluating(number)
            record = self._evaluate(state, record, weights)
        notes = self._observer.on_round(record, weights)
        return replace(
            state,
            round=number,
            weights=weights,
            history=History.of(state.history).then(replace(record, notes=notes)),
            strategy=strategy_state(self._strategy),
            absent={},
        )

    def _train(self, state: RunState, number: int) -> tuple[Weights, RoundRecord]:
        replies, parts = self._updates(state, number)
        if is_lost(self._study, replies, expected=self._expected(state)):
            return state.weights, empty_round(number, replies, state.absent)
        replies.require(self._study.aggregation.min_sites, during=f"round {number}")
        after, drift = aggregate(self._strategy, number, parts(), state.weights)
        record = RoundRecord(
            round=number,
            participants=tuple(replies.accepted),
            refused=state.absent | replies.reasons,
            drift=drift,
        )
        return after, record

    def _updates(self, state: RunState, number: int) -> tuple[Replies, Callable[[], Parts | Mean]]:
        """Have sites train: who answered, and what is to be combined if they are enough."""
        nodes = self._participants(state, number)
        carrier = together(self._grid)
        grid = SelectedGrid(self._grid, nodes[:1] if carrier else nodes)
        messages = list(
            self._strategy.configure_train(
                number, array_record(state.weights), self._config(state), grid
            )
        )
        if carrier is None:
            check = check_update(state.weights, self._study.aggregation.max_update_norm)
            replies = self._ask(messages, check)
            return replies, lambda: single_updates(replies, state.site_weights)
        names = sorted(self._attendance.sites[node] for node in nodes)
        shares = {name: state.site_weights[name] for name in names}
        asked = asked_of(self._study, number, state.weights, messages[0].content, shares)
        trained = carrier.train_together(asked)
        return trained.replies(), lambda: combined(asked, trained)

    def _evaluate(self, state: RunState, record: RoundRecord, weights: Weights) -> RoundRecord:
        found = self._evaluated(state, record.round, weights)
        merged = self._strategy.aggregate_evaluate(record.round, found.replies())
        late = {site: f"evaluation: {reason}" for site, reason in found.reasons.items()}
        return replace(
            record,
            refused=late | record.refused,
            evaluation=metrics_by_site(found, merged or MetricRecord()),
        )

    def _evaluated(self, state: RunState, number: int, weights: Weights) -> Evaluated:
        """Have sites evaluate: what each of them releases."""
        eligible = self._eligible(state)
        carrier = together(self._grid)
        if carrier is not None:
            names = tuple(sorted(eligible))
            return carrier.evaluate_together(
                AskedToEvaluate(number, weights, state.transform, names)
            )
        messages = self._strategy.configure_evaluate(
            number,
            array_record(weights),
            self._config(state),
            SelectedGrid(self._grid, eligible.values()),
        )
        return Evaluated.of(self._study, self._ask(list(messages)))

    def _evaluates(self, number: int) -> bool:
        every = self._study.evaluation.every
        return number == self._study.training.rounds or (every > 0 and number % every == 0)

    def _eligible(self, state: RunState) -> dict[str, int]:
        """Node of every site that took part in the preparation and is still there."""
        sites = self._attendance.sites
        return {site: node for node, site in sites.items() if site in state.site_weights}

    def _expected(self, state: RunState) -> int:
        """How many more may come for this round; whom a share was drawn from was there."""
        if self._study.aggregation.participation < 1.0:
            return 0
        return self._attendance.expected(state.site_weights)

    def _participants(self, state: RunState, number: int) -> list[int]:
        """Nodes that train in a round: all, or a share drawn from the seed and the round."""
        eligible = self._eligible(state)
        minimum = self._study.aggregation.min_sites
        if len(eligible) < minimum:  # Flower would wait for them for ever
            away = sorted(set(state.site_weights) - set(eligible))
            raise RoundError(
                f"round {number} stopped, {len(eligible)} of {minimum} needed sites are there",
                hint=f"connect {', '.join(away)}",
            )
        wanted = round(self._study.aggregation.participation * len(eligible))
        wanted = min(max(wanted, minimum, 1), len(eligible))
        generator = np.random.default_rng([self._study.training.seed, number])
        chosen = generator.permutation(sorted(eligible))[:wanted]
        return [eligible[str(site)] for site in chosen]

    def _config(self, state: RunState) -> ConfigRecord:
        return ConfigRecord({records.STUDY_HASH: self._hash, records.TRANSFORM: state.transform})

    def _ask(self, messages: list[Message], check: Check | None = None) -> Replies:
        return ask(
            self._grid,
            messages,
            self._attendance.sites,
            deadline_s=self._study.aggregation.deadline_s,
            check=check,
        )
