"""Which rows are in which step of which site: the batches of a chunk of sites, padded.

Sites are sorted by their number of steps, the longest first: those that still train are always the
first ones. The rows of a step are positions in the table of all sites (`table.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedward.client.patient_rows import PatientRows
from fedward.common.privacy.randomness import Randomness

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One step of the sites that still train.

    Attributes:
        rows: int64 `[active · B]`, positions in the table.
        weight: float64 `[active, B]`: what the row's loss counts; 0 for padding.
        owner: int64 `[active, B]`: which patient of the step a row belongs to, padding to one of
            its own; None where every row has a patient of its own.
    """

    rows: Tensor
    weight: Tensor
    owner: Tensor | None = None

    @property
    def active(self) -> int:
        """Sites that still train."""
        return len(self.weight)


def orders(sources: Sequence[Randomness], sizes: Ints) -> Ints:
    """The next order of each stream, `[sites, largest]`, padded with 0."""
    found = np.zeros((len(sources), int(sizes.max(initial=0))), np.int64)
    for row, source, size in zip(found, sources, sizes.tolist(), strict=True):
        row[:size] = source.order(size)
    return found


def shuffled(
    starts: Ints, sizes: Ints, steps: Ints, batch_size: int, sources: Sequence[Randomness]
) -> Iterator[Step]:
    """The steps of `client.training.ShuffledBatches`, at many sites.

    Args:
        starts: `[sites]`, where each site's rows begin in the table.
        sizes: `[sites]`, how many it has, at least 1.
        steps: `[sites]`, how many it takes; descending.
        batch_size: of all.
        sources: of each site's order.
    """
    in_pass = -(-sizes // batch_size)
    passes = -(-steps // in_pass)
    width = int(in_pass.max()) * batch_size
    column = np.arange(min(batch_size, int(sizes.max())))
    known: list[Ints] = []
    for step in range(int(steps[0])):
        active = _active(steps, step)
        number, place = np.divmod(step, in_pass[:active])
        while len(known) <= number.max():
            known.append(_pass(sources, sizes, passes > len(known), width))
        first = place * batch_size
        rows = np.empty((active, len(column)), np.int64)
        for one in np.unique(number):
            there = np.flatnonzero(number == one)
            rows[there] = known[one][there[:, None], first[there, None] + column]
        left = sizes[:active] - first
        valid = column < left[:, None]
        # Padded by a row of the same batch: nothing of another one can spoil it.
        rows = np.where(valid, rows, rows[:, :1])
        weight = valid / np.minimum(left, batch_size)[:, None]
        yield Step(
            torch.from_numpy((rows + starts[:active, None]).reshape(-1)),
            torch.from_numpy(weight),
        )


def _active(steps: Ints, step: int) -> int:
    return int(np.searchsorted(-steps, -step, side="left"))


def _pass(sources: Sequence[Randomness], sizes: Ints, going: NDArray[np.bool_], width: int) -> Ints:
    """An order of the rows of each site that begins another pass; 0 is what pads it."""
    found = np.zeros((len(sizes), width), np.int64)
    drawn = orders([s for s, on in zip(sources, going, strict=True) if on], sizes[going])
    drawn[np.arange(drawn.shape[1]) >= sizes[going, None]] = 0
    found[going, : drawn.shape[1]] = drawn
    return found


def drawn(
    starts: Ints,
    steps: Ints,
    patients: Sequence[PatientRows],
    sources: Sequence[Randomness],
) -> Iterator[Step]:
    """The steps of private sites: patients drawn by each site's plan.

    Args:
        starts: `[sites]`, where each site's rows begin in the table.
        steps: `[sites]`, descending.
        patients: of each site.
        sources: of each site's sampling; noise is drawn from them in between.
    """
    for step in range(int(steps[0])):
        active = _active(steps, step)
        found = [patients[site].draw(sources[site]) for site in range(active)]
        most = max(1, *(len(rows) for rows, _ in found))
        rows = np.repeat(starts[:active, None], most, axis=1)
        owner = np.tile(np.arange(most), (active, 1))
        weight = np.zeros((active, most))
        shared = False
        for site, (own, who) in enumerate(found):
            rows[site, : len(own)] += own
            weight[site, : len(own)] = 1.0
            if len(own) and who[-1] + 1 < len(own):
                owner[site, : len(own)] = who
                shared = True
        yield Step(
            torch.from_numpy(rows.reshape(-1)),
            torch.from_numpy(weight),
            torch.from_numpy(owner) if shared else None,
        )
