"""A grid whose sites train in this process or its workers, asked all at once.

Every site checks and pays in this process, before anything is computed; executors only compute.
Test rows of all sites are scored at once, and each site releases what it may. What comes before the
first round travels as messages, as in the `loop` engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedward.client.dataset import Dataset
from fedward.client.site import Site, largest_weight
from fedward.client.training import diverged
from fedward.common.errors import FedwardError, RoundError
from fedward.common.metrics import Counts
from fedward.common.preprocess import Transform
from fedward.common.tensors import Weights
from fedward.server.evaluation import Evaluated
from fedward.server.history import Drift
from fedward.server.replies import Refusal
from fedward.server.together import Asked, AskedToEvaluate, Trained
from fedward.simulations.engines.executors import Executor, Round
from fedward.simulations.engines.loop import LoopGrid, reached
from fedward.simulations.engines.pool import Pool
from fedward.simulations.engines.results import MOST_KEPT, Layout, Results
from fedward.simulations.scoring import Scoring

MakeExecutor = Callable[[Sequence[Site], Transform], Executor]
_TOO_LARGE = "the update is larger than [aggregation] max_update_norm"


class EngineGrid(LoopGrid):
    """A grid over an executor.

    Args:
        sites: all of them.
        make: makes the executor when the preprocessing is known.
        workers: processes that compute; 0 to compute in this one.
    """

    def __init__(self, sites: Iterable[Site], *, make: MakeExecutor, workers: int) -> None:
        self._sites = list(sites)
        super().__init__(*reached(self._sites))
        self._names = [site.name for site in self._sites]
        self._index = {name: index for index, name in enumerate(self._names)}
        self._make = make
        self._workers = min(workers, len(self._sites))
        self._crew: _Crew | None = None
        self._transform: tuple[str, Transform] | None = None

    def train_together(self, asked: Asked) -> Trained:
        """See `server.together.AsksTogether`."""
        crew = self._ready(asked)
        transform, largest = crew.transform, largest_weight(asked.weights)

        def admit(site: Site) -> None:
            site.admit(asked.weights, transform, round_number=asked.number, largest=largest)

        admitted, refused = self._each(asked.shares, admit)
        results = crew.results
        results.before[:] = results.layout.vector(asked.weights)
        # Shares of all add up to one, so that a sum is no larger than what is added.
        all_of_them = sum(asked.shares.values())
        results.share[admitted] = [asked.shares[self._names[i]] / all_of_them for i in admitted]
        try:
            crew.train(Round(asked.number, asked.proximal_mu, asked.max_norm), admitted)
        except BaseException:
            self.close()  # a worker may still be busy: its answer belongs to no later round
            raise
        trained = self._trained(asked, results, admitted, refused)
        if asked.number == self._sites[0].study.training.rounds:
            self.close()  # nothing is left to train: workers and results give way to evaluation
        return trained

    def evaluate_together(self, asked: AskedToEvaluate) -> Evaluated:
        """See `server.together.AsksTogether`."""
        transform, largest = self._parsed(asked.transform), largest_weight(asked.weights)

        def admit(site: Site) -> None:
            site.admit(
                asked.weights,
                transform,
                round_number=asked.number,
                purpose="evaluation",
                largest=largest,
            )
            site.testing(transform)

        admitted, refused = self._each(asked.sites, admit)
        released: dict[str, Counts | None] = {}
        sites = [self._sites[index] for index in admitted]
        for site, rows, scores in self._scored(sites, transform, asked.weights, refused):
            try:
                released[site.name] = site.release(scores, rows, round_number=asked.number)
            except FedwardError as error:
                refused[site.name] = _refusal(error)
        return Evaluated(released, refused)

    def _scored(
        self,
        sites: Sequence[Site],
        transform: Transform,
        weights: Weights,
        refused: dict[str, Refusal],
    ) -> Iterable[tuple[Site, Dataset, NDArray[np.float32]]]:
        """Sites, their test rows, and the scores of these; all refuse weights that are none."""
        if not sites:
            return []
        tests = Scoring(sites, transform)
        try:
            scores = tests.split(tests.scores(weights))
        except FedwardError as error:
            refused |= {site.name: _refusal(error) for site in sites}
            return []
        return zip(sites, tests.each, scores, strict=True)

    def close(self) -> None:
        """End the workers."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _ready(self, asked: Asked) -> _Crew:
        """The executor and its workers, made before the first round."""
        if self._crew is None or self._crew.text != asked.transform:
            self.close()
            transform = self._parsed(asked.transform)
            executor = self._make(self._sites, transform)
            layout, sites = Layout.of(asked.weights, executor.turned), len(self._sites)
            keep = asked.each or layout.size * sites <= MOST_KEPT
            results = Results(sites, layout, workers=max(1, self._workers), keep=keep)
            self._crew = _Crew(asked.transform, transform, executor, results, self._workers)
        return self._crew

    def _parsed(self, text: str) -> Transform:
        """The preprocessing; the same object as before, so that nobody has to compare."""
        if self._transform is None or self._transform[0] != text:
            self._transform = text, Transform.from_json(text)
        return self._transform[1]

    def _each(
        self, names: Iterable[str], ask: Callable[[Site], None]
    ) -> tuple[list[int], dict[str, Refusal]]:
        """Ask each of some sites: who agrees, and why the others do not."""
        agreed, refused = [], {}
        for name in names:
            index = self._index[name]
            try:
                ask(self._sites[index])
            except FedwardError as error:
                refused[name] = _refusal(error)
            else:
                agreed.append(index)
        return agreed, refused

    def _trained(
        self, asked: Asked, results: Results, admitted: list[int], refused: dict[str, Refusal]
    ) -> Trained:
        accepted = []
        for index, square in zip(admitted, results.square[admitted].tolist(), strict=True):
            if math.isnan(square):
                refused[self._names[index]] = _refusal(diverged())
            elif asked.max_norm is not None and square > asked.max_norm**2:
                refused[self._names[index]] = Refusal(RoundError.exit_code, _TOO_LARGE)
            else:
                accepted.append(index)
        layout, updates = results.layout, {}
        if asked.each and results.updates is not None:
            after = {index: results.before + results.updates[index] for index in accepted}
            updates = {self._names[index]: layout.weights(own) for index, own in after.items()}
        moved = results.moved(accepted)
        with np.errstate(over="ignore"):  # who aggregates says that it diverged
            mean = (results.before + moved).astype(np.float32)
        return Trained(
            accepted=tuple(self._names[index] for index in accepted),
            refused=refused,
            mean=layout.weights(mean),
            updates=updates,
            drift=self._drift(results, accepted, moved),
        )

    def _drift(
        self, results: Results, accepted: list[int], moved: NDArray[np.float64]
    ) -> dict[str, Drift]:
        if results.updates is None:
            return {}
        everybody = accepted == list(range(len(results.updates)))
        updates = results.updates if everybody else results.updates[accepted]
        with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges
            inner = (updates @ moved.astype(np.float32)).astype(np.float64)
            if not np.isfinite(inner).all():
                inner = updates.astype(np.float64) @ moved
        norms = np.sqrt(results.square[accepted])
        lengths = norms * float(np.linalg.norm(moved))
        cosines = np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0)
        cosines = np.clip(cosines, -1.0, 1.0)
        names = [self._names[index] for index in accepted]
        return dict(zip(names, map(Drift, norms.tolist(), cosines.tolist()), strict=True))


@dataclass(frozen=True)
class _Task:
    """What a worker is asked: a round, at some sites."""

    round: Round
    sites: list[int]


class _Crew:
    """An executor, alone or in workers.

    Args:
        text: the preprocessing, as JSON.
        transform: the same.
        executor: what computes.
        results: where to.
        workers: processes; 0 for none.
    """

    def __init__(
        self, text: str, transform: Transform, executor: Executor, results: Results, workers: int
    ) -> None:
        self.text = text
        self.transform = transform
        self.results = results
        self._executor = executor
        self._workers = workers
        self._pool = Pool(workers, self._work) if workers else None
        self._divided: tuple[list[int], list[list[int]]] = ([], [])

    def train(self, asked: Round, sites: list[int]) -> None:
        """Compute a round at these sites."""
        if self._pool is None:
            self._executor.train(asked, sites, self.results, 0)
            return
        if self._divided[0] != sites:
            self._divided = (sites, divide(sites, self._executor.cost, self._workers))
        self._pool.run([_Task(asked, shard) for shard in self._divided[1]])

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def _work(self, worker: int, task: _Task) -> None:
        self._executor.train(task.round, task.sites, self.results, worker)


def _refusal(error: FedwardError) -> Refusal:
    """In a site's own words, as `disclose` of its client app has them."""
    return Refusal(error.exit_code, str(error))


def divide(sites: Sequence[int], cost: Callable[[int], float], workers: int) -> list[list[int]]:
    """Sites for each worker, about equal work: the largest first, each to whoever has least.

    >>> divide([0, 1, 2, 3], lambda site: [5.0, 1.0, 3.0, 3.0][site], 2)
    [[0, 1], [2, 3]]
    """
    shards: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for site in sorted(sites, key=lambda site: -cost(site)):
        least = load.index(min(load))
        shards[least].append(site)
        load[least] += cost(site)
    return shards
