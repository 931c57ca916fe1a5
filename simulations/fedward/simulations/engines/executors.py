"""How the sites of a round are computed in one process: one after another, or stacked.

An executor is made once for a run, when the preprocessing is frozen; worker processes inherit it.
Paying for a round, and whether it may be done at all, is settled before (`carrier.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedward.client.dataset import Dataset
from fedward.client.patient_rows import PatientRows
from fedward.client.site import LocalRound, Site
from fedward.client.training import train
from fedward.common.errors import PrivacyError, TrainingError
from fedward.common.preprocess import Transform
from fedward.simulations.engines.results import Results
from fedward.simulations.engines.stacked.program import Program
from fedward.simulations.engines.stacked.schedule import drawn, shuffled
from fedward.simulations.engines.stacked.training import Chunk, Privacy, train_chunk
from fedward.simulations.engines.table import Table

CHUNK = 1 << 19
"""Values of the weights of all sites of a chunk: what fits into a core's cache."""
BATCH = 1 << 23
"""Values of a step's rows, of all sites of a chunk and all layers."""
MOST_SITES = 128


@dataclass(frozen=True)
class Round:
    """What all sites of a round are asked; the weights are in the results.

    Attributes:
        number: of the round.
        proximal_mu: of FedProx, else 0.
        max_norm: an update of a larger norm counts for nothing; None for no limit.
    """

    number: int
    proximal_mu: float
    max_norm: float | None


class Executor(Protocol):
    """Computes sites."""

    turned: frozenset[str]
    """Matrices that stand transposed in the results' vectors."""

    def train(self, asked: Round, sites: Sequence[int], results: Results, worker: int) -> None:
        """Train these sites from `results.before` and add what they send to the results."""
        ...

    def cost(self, site: int) -> float:
        """How much work a site is, compared with others."""
        ...


class Looped:
    """One site after another, with the code that runs at a hospital.

    Args:
        sites: all of them.
        transform: the frozen preprocessing.
    """

    turned: frozenset[str] = frozenset()

    def __init__(self, sites: Sequence[Site], transform: Transform) -> None:
        self._sites = sites
        self._transform = transform
        for site in sites:
            site.training(transform)  # before workers are forked, so that they share it

    def cost(self, site: int) -> float:
        """Steps that it takes."""
        return float(self._sites[site].settings(proximal_mu=0.0).steps)

    def train(self, asked: Round, sites: Sequence[int], results: Results, worker: int) -> None:
        """See `Executor`."""
        before = results.layout.weights(results.before)
        results.total[worker] = 0.0
        for index in sites:
            site, work = self._sites[index], self._work(index, asked)
            module, source = site.module(work.dataset), site.gradients(work)
            try:
                after = train(module, before, source, work.settings)
            except (TrainingError, PrivacyError):  # weights or a sum that are not finite
                results.square[index] = np.nan
                continue
            own = torch.from_numpy(results.layout.vector(after)).unsqueeze(0)
            add(own, [index], results, worker, asked.max_norm)

    def _work(self, index: int, asked: Round) -> LocalRound:
        return self._sites[index].local_round(
            self._transform, round_number=asked.number, proximal_mu=asked.proximal_mu
        )


class Stacked:
    """Many sites as one program.

    Args:
        sites: all of them, of one study.
        transform: the frozen preprocessing.

    Raises:
        UnknownLayer: their model cannot be stacked.
    """

    def __init__(self, sites: Sequence[Site], transform: Transform) -> None:
        self._sites = sites
        self._transform = transform
        module = sites[0].module(sites[0].training(transform))
        # Noise comes in the order of the module's own weights.
        self._program = Program(module, turned=sites[0].plan is None)
        self.turned = self._program.turned
        self._patients: list[PatientRows] = []
        sizes = [site.rows for site in sites]
        self._table = Table.of(map(self._taken, sites), sizes)
        self._steps = np.array([site.settings(proximal_mu=0.0).steps for site in sites], np.int64)
        self._rows = [_batch(site, size) for site, size in zip(sites, sizes, strict=True)]
        outputs = sum(p.shape[0] for p in module.parameters() if p.dim() > 1)
        self._width = int(np.prod(self._table.inputs.shape)) + outputs
        size = sum(parameter.numel() for parameter in module.parameters())
        # Convolutions go site by site: more sites at once only leave the cache sooner.
        most = 1 if self._program.convolves else MOST_SITES
        self._chunk = min(max(1, CHUNK // size), most)
        self._last: tuple[list[int], list[NDArray[np.int64]]] | None = None

    def cost(self, site: int) -> float:
        """Steps that it takes: a short last batch costs as much as a whole one."""
        return float(self._steps[site])

    def train(self, asked: Round, sites: Sequence[int], results: Results, worker: int) -> None:
        """See `Executor`."""
        results.total[worker] = 0.0
        if not sites:
            return
        before = results.layout.parts(results.before)
        weights = [torch.from_numpy(before[name]) for name in self._program.names]
        for part in self._chunks(sites):
            stack = train_chunk(self._chunk_of(asked, part), weights)
            after = torch.cat([weight.flatten(1) for layer in stack for weight in layer], dim=1)
            add(after, part, results, worker, asked.max_norm)

    def _chunks(self, sites: Sequence[int]) -> list[NDArray[np.int64]]:
        """As `_divided`; mostly the same sites are asked as in the round before."""
        if self._last is None or self._last[0] != sites:
            self._last = list(sites), list(self._divided(sites))
        return self._last[1]

    def _divided(self, sites: Sequence[int]) -> Iterator[NDArray[np.int64]]:
        """Sites to train together: those with most steps, then with largest batches, first.

        All are padded to the largest batch among them, so it decides how many there are.
        """
        order = sorted(sites, key=lambda site: (-self._steps[site], -self._rows[site], site))
        even = -(-len(order) // -(-len(order) // self._chunk))
        chunk: list[int] = []
        most = 0
        for site in order:
            most = max(most, self._rows[site])
            values = (len(chunk) + 1) * most * max(self._width, most if self._patients else 0)
            if chunk and (len(chunk) == even or values > BATCH):
                yield np.array(chunk, np.int64)
                chunk, most = [], self._rows[site]
            chunk.append(site)
        if chunk:
            yield np.array(chunk, np.int64)

    def _taken(self, site: Site) -> Dataset:
        """A site's rows, which are in the table from then on and not kept by the site."""
        dataset = site.training(self._transform)
        site.forget()
        if site.plan is not None:
            self._patients.append(PatientRows(dataset, site.plan))
        return dataset

    def _chunk_of(self, asked: Round, sites: NDArray[np.int64]) -> Chunk:
        sources = [self._sites[site].randomness("training", asked.number) for site in sites]
        steps, starts = self._steps[sites], self._table.starts[sites]
        study, privacy = self._sites[0].study, None
        if self._patients:
            plans = [plan for site in sites if (plan := self._sites[site].plan) is not None]
            privacy = Privacy(plans, sources)
            patients = [self._patients[site] for site in sites]
            batches = drawn(starts, steps, patients, sources)
        else:
            size = study.training.batch_size
            batches = shuffled(starts, self._table.sizes[sites], steps, size, sources)
        return Chunk(
            program=self._program,
            table=self._table,
            kind=study.task.kind,
            settings=self._sites[sites[0]].settings(proximal_mu=asked.proximal_mu),
            sites=len(sites),
            steps=batches,
            privacy=privacy,
        )


def _batch(site: Site, rows: int) -> int:
    """Rows of a site's step, about."""
    if site.plan is None:
        return min(rows, site.study.training.batch_size)
    return math.ceil(site.plan.sampling_probability * rows)


def add(
    after: torch.Tensor,
    sites: Sequence[int] | NDArray[np.int64],
    results: Results,
    worker: int,
    max_norm: float | None,
) -> None:
    """Add what sites became to the results, but for those that diverged or are too far away.

    Args:
        after: `[sites, parameters]`, is changed.
        sites: which they are.
        results: to be added to.
        worker: that adds.
        max_norm: of an update that counts; None for no limit.
    """
    after -= torch.from_numpy(results.before)
    if results.updates is not None:
        results.updates[sites] = after.numpy()
    square = torch.linalg.vecdot(after, after).double().numpy()
    for row in np.flatnonzero(~np.isfinite(square)):  # finite values may have squares that are not
        square[row] = after[row].double().square().sum().item()
    results.square[sites] = np.where(np.isfinite(square), square, np.nan)
    counted = np.isfinite(square)
    if max_norm is not None:
        counted &= square <= max_norm**2
    if not counted.all():
        after[torch.from_numpy(~counted)] = 0.0  # 0 · ∞ would be NaN
    share = torch.from_numpy(results.share[sites] * counted).to(after.dtype)
    results.total[worker] += share.matmul(after).numpy()
