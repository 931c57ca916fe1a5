"""The last door: every body that leaves a site passes it, or stays.

It reads a reply's file and the task it answers, knows the study, and believes neither the server
nor the process that trained. Nothing here computes what is sent; it only decides.

Guarantee:
    A body that passes holds exactly what a reply to that action may hold, under exactly those
    keys: the study's own arrays in the types and shapes of the task, finite, no further from what
    was sent than the study allows; sums and counts that are whole cells, where there is no noise;
    and in a private study only what its ledger has been charged for. A reply to another study, to
    a round that does not exist, or to one that is over, does not pass. A refusal passes only in
    the words of `telling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedward.client.telling import may_be_told, reason_to_tell
from fedward.common import records
from fedward.common.errors import FedwardError, PrivacyError, RoundError, RoundSpentError
from fedward.common.metrics.counts import Counts, cell_shapes
from fedward.common.preprocess.statistics import Statistics
from fedward.common.study import Study, study_hash
from fedward.common.study.schema import FedProx
from fedward.common.wire.body import ArraySpec, Body, Content

ACTIONS = (records.INTRODUCE, records.STATISTICS, records.TRAIN, records.EVALUATE)
"""What a site does when it is asked; anything else is refused."""
_BLOCK = 1 << 18
"""Elements of an array that are held in memory at once."""
_MOST_STATISTICS = 1 << 20
"""Elements of all sums together."""

Paid = Callable[[str, int, str], bool]
"""`(run, round, group)`: whether the ledger was charged for that; group as in `spending`. For a
reply: for that very reply. For a task: at all."""


@dataclass(frozen=True)
class Question:
    """The task that a reply answers.

    Attributes:
        study: hash, as the task's header says.
        run: of the study.
        round: of the run; 0 before the first.
        action: see `ACTIONS`.
        body: the task's own body.
    """

    study: str
    run: str
    round: int
    action: str
    body: Path


class Gate:
    """The door of one study at one site.

    Args:
        study: as it was approved.
        site: the site's name: all that an introduction says.
        paid: asks the ledger; used where the study is private.
    """

    def __init__(self, study: Study, *, site: str, paid: Paid) -> None:
        self._study = study
        self._hash = study_hash(study)
        self._site = site
        self._paid = paid

    def check_task(self, asked: Question, *, last_round: int) -> None:
        """Refuse what this study cannot ask, before anything is computed.

        Args:
            asked: the task.
            last_round: the highest round of the run that this site has answered, 0 for none.

        Raises:
            RoundSpentError: a round that is over, and was paid for: its reply is not there any
                more, or never was, or answered another task.
            RoundError: another study, an unknown action, a round that does not exist or is over,
                or a body that says something else than its header.
            LinkError: the body cannot be read.
        """
        if asked.study != self._hash:
            raise _refused("the server asked for another study than this site approved")
        if asked.action not in ACTIONS:
            raise _refused("the server asked for something that sites do not do")
        rounds = self._study.training.rounds
        early = asked.action in (records.INTRODUCE, records.STATISTICS)
        if not (asked.round == 0 if early else 1 <= asked.round <= rounds):
            raise _refused("the server asked for a round that the study does not have")
        if not early and asked.round < last_round:
            raise self._over(asked)
        self.check_named(asked)
        with Body.open(asked.body) as body:
            told = 0 if early else asked.round
            if body.config.get(records.ROUND, 0) != told:
                raise _refused("a task's body names another round than its header")
            if asked.action == records.TRAIN and not _same_pull(self._study, body):
                raise _refused("the server asked for another training than the study's")

    @staticmethod
    def check_named(asked: Question) -> None:
        """Refuse a task whose body is about another study than its header.

        Raises:
            RoundError: it is.
            LinkError: the body cannot be read.
        """
        with Body.open(asked.body) as body:
            if body.config.get(records.STUDY_HASH) != asked.study:
                raise _refused("a task's body names another study than its header")

    def check(self, asked: Question, reply: Path) -> None:
        """Refuse a reply that may not leave; return if it may.

        Raises:
            RoundError: it is not what a reply to that task is.
            PrivacyError: the ledger was not charged for it, or a cell is too small.
            LinkError: it cannot be read.
        """
        with Body.open(reply) as body:
            if records.ERROR_CODE in body.config or records.ERROR_REASON in body.config:
                _check_refusal(body)
                return
            if asked.action == records.INTRODUCE:
                self._check_introduction(body)
            elif asked.action == records.STATISTICS:
                self._check_statistics(body)
            elif asked.action == records.TRAIN:
                self._check_update(asked.body, body)
            elif asked.action == records.EVALUATE:
                self._check_counts(body)
            else:
                raise _stopped("answers something that sites do not do")
        if self._study.private and asked.action != records.INTRODUCE and not self._was_paid(asked):
            raise PrivacyError(
                "a reply was stopped, the ledger was not charged for it",
                hint="see the site's log; do not restore an older ledger",
            )

    def _was_paid(self, asked: Question) -> bool:
        group = "testing" if asked.action == records.EVALUATE else "training"
        return self._paid(asked.run, asked.round, group)

    def _over(self, asked: Question) -> RoundError | RoundSpentError:
        # A server that lost its newest checkpoint asks again. Where a round was paid for, it must
        # learn that nobody can do it any more, so that it does not ask for ever.
        if self._study.private and self._was_paid(asked):
            return RoundSpentError(
                f"round {asked.round} is over at this site, and was paid for",
                hint="a site does nothing twice; continue with the next round",
            )
        return _refused("the server asked for a round that is over at this site")

    def _check_introduction(self, body: Body) -> None:
        _check_keys(body, config={records.SITE}, metrics=set())
        if body.specs or body.config[records.SITE] != self._site:
            raise _stopped("says more than the site's name")

    def _check_statistics(self, body: Body) -> None:
        _check_keys(body, config={records.LEVELS}, metrics=set())
        levels = body.config[records.LEVELS]
        if not isinstance(levels, str):
            raise _stopped("has levels that are no text")
        if sum(spec.size for spec in body.specs.values()) > _MOST_STATISTICS:
            raise _stopped("has more sums than any study")
        Statistics.from_arrays(self._study, body.content().arrays, levels)

    def _check_update(self, task: Path, body: Body) -> None:
        _check_keys(body, config=set(), metrics={records.WEIGHT})
        _check_weight(body)
        with Body.open(task) as sent:
            _check_layout(body.specs, sent.specs)
            squares = sum(_squared_distance(sent, body, name) for name in body.specs)
        limit = self._study.aggregation.max_update_norm
        if limit is not None and not math.sqrt(squares) <= limit:
            raise RoundError(
                "the update is larger than [aggregation] max_update_norm",
                hint="see what is wrong at the site",
            )

    def _check_counts(self, body: Body) -> None:
        _check_keys(body, config=set(), metrics={records.WEIGHT, records.RELEASED})
        _check_weight(body)
        released = body.metrics[records.RELEASED]
        if released not in (0.0, 1.0) or (released == 0.0 and body.specs):
            raise _stopped("does not say what it releases")
        if released == 1.0:
            _check_cells(self._study, body)


def refusal(error: FedwardError) -> Content:
    """The reply of a site that refuses: its kind, and what may be told about it."""
    return Content(
        {records.ERROR_CODE: error.exit_code, records.ERROR_REASON: reason_to_tell(error)}
    )


def _check_refusal(body: Body) -> None:
    _check_keys(body, config={records.ERROR_CODE, records.ERROR_REASON}, metrics=set())
    code, reason = body.config[records.ERROR_CODE], body.config[records.ERROR_REASON]
    known = type(code) is int and isinstance(reason, str) and may_be_told(code, reason)
    if body.specs or not known:
        raise _stopped("refuses in words that may not leave")


def _same_pull(study: Study, body: Body) -> bool:
    """Whether a task holds a site to the shared model as the study does: the server names it."""
    algorithm = study.algorithm
    wanted = algorithm.mu if isinstance(algorithm, FedProx) else 0.0
    given = body.config.get(records.PROXIMAL_MU, 0.0)
    return isinstance(given, int | float) and float(given) == wanted


def _check_keys(body: Body, *, config: set[str], metrics: set[str]) -> None:
    if set(body.config) != config or set(body.metrics) != metrics:
        raise _stopped("holds other keys than it may")


def _check_weight(body: Body) -> None:
    # A site always says 1: how many patients it has is the site's secret.
    if body.metrics[records.WEIGHT] != 1.0:
        raise _stopped("has a weight of its own")


def _check_layout(given: Mapping[str, ArraySpec], sent: Mapping[str, ArraySpec]) -> None:
    if not given or list(given) != list(sent):
        raise _stopped("holds other arrays than it was sent")
    for name, spec in given.items():
        if (spec.dtype, spec.shape) != (np.dtype("<f4"), sent[name].shape):
            raise _stopped("holds an array of another type or shape than it was sent")
        if sent[name].dtype != spec.dtype:
            raise _stopped("answers a task that holds another type than weights")


def _squared_distance(sent: Body, reply: Body, name: str) -> float:
    """Sum over an array of the squared changes, read block by block."""
    size, total = reply.specs[name].size, 0.0
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        after = reply.block(name, start, stop)
        if not np.isfinite(after).all():
            raise _stopped("holds NaN or infinite values")
        with np.errstate(all="ignore"):  # an overflow becomes infinite, which is beyond any limit
            change = (after - sent.block(name, start, stop)).astype(np.float64)
        total += float(np.dot(change, change))
    return total


def _check_cells(study: Study, body: Body) -> None:
    """Counts of an evaluation: the study's names and shapes; whole cells, unless noised."""
    task, smallest = study.task, study.evaluation.min_cell
    shapes = cell_shapes(task.kind, task.outputs, study.evaluation.bins)
    allowed = sum(math.prod(shape) for shape in shapes.values()) + 3  # decisions, bounds
    if sum(spec.size for spec in body.specs.values()) > allowed:
        raise _stopped("has more counts than the study")
    if any(spec.dtype != np.dtype("<f8") for spec in body.specs.values()):
        raise _stopped("has counts of another type than float64")
    counts = Counts.from_arrays(
        task.kind,
        body.content().arrays,
        outputs=task.outputs,
        bins=study.evaluation.bins,
        bounds=task.bounds,
        noised=study.private,
    )
    if study.private:
        return
    cells = counts.cells
    told = [cells["sums"][:1]] if task.kind == "regression" else list(cells.values())
    for cell in told:
        if (cell != np.floor(cell)).any():
            raise _too_small("a count is not a whole number")
        if ((cell > 0) & (cell < smallest)).any():
            raise _too_small("a cell is below the study's minimum")


def _too_small(what: str) -> PrivacyError:
    return PrivacyError(f"a reply was stopped, {what}", hint="report this as a defect of fedward")


def _stopped(what: str) -> RoundError:
    return RoundError(f"a reply was stopped, it {what}", hint="report this as a defect of fedward")


def _refused(what: str) -> RoundError:
    return RoundError(what, hint="server and site must run the same study in the same order")
