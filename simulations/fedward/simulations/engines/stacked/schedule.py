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
from fedward.common.privacy.randomness import Randomness, uniforms

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
    known = _orders(sources, sizes, -(-steps // in_pass))
    number, place = np.divmod(np.arange(steps[0]), in_pass[:, None])
    left = sizes[:, None] - place * batch_size
    column = np.arange(min(batch_size, int(sizes.max())))
    valid = column < left[..., None]
    # Padded by a row of the same batch: nothing of another one can spoil it.
    offset = place[..., None] * batch_size + np.where(valid, column, 0)
    number = np.minimum(number, known.shape[1] - 1)  # of sites that are done already
    site = np.arange(len(sizes))[:, None, None]
    rows = torch.from_numpy(known[site, number[..., None], offset] + starts[:, None, None])
    weight = torch.from_numpy(valid / np.minimum(left, batch_size)[..., None])
    for step in range(int(steps[0])):
        active = _active(steps, step)
        width = min(batch_size, int(left[:active, step].max()))
        yield Step(rows[:active, step, :width].reshape(-1), weight[:active, step, :width])


def _active(steps: Ints, step: int) -> int:
    return int(np.searchsorted(-steps, -step, side="left"))


def _orders(sources: Sequence[Randomness], sizes: Ints, passes: Ints) -> Ints:
    """The orders in which sites go through their rows: `[sites, passes, largest site]`.

    As `Randomness.order` gives them, one after another; what pads them is not to be looked at.
    """
    uniform = uniforms(sources, (sizes * passes).tolist())
    column = np.arange(int(sizes.max()))
    place = np.arange(int(passes.max()))[None, :, None] * sizes[:, None, None] + column
    there = column < sizes[:, None, None]
    site = np.arange(len(sizes))[:, None, None]
    found = uniform[site, np.minimum(place, uniform.shape[1] - 1)]
    return np.argsort(np.where(there, found, 1.0), axis=2, kind="stable")


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
    if all(own.single for own in patients):
        yield from _drawn_single(starts, steps, patients, sources)
        return
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


def _drawn_single(
    starts: Ints,
    steps: Ints,
    patients: Sequence[PatientRows],
    sources: Sequence[Randomness],
) -> Iterator[Step]:
    """`drawn`, where no patient has two rows: who is in which step is known at once."""
    sizes = np.array([len(own.rows) for own in patients])
    uniform = uniforms(sources, (sizes * steps).tolist())
    there = np.zeros((len(steps), int(steps[0]), int(sizes.max())), np.bool_)
    rows_of = np.zeros((len(steps), int(sizes.max())), np.int64)
    for site, own in enumerate(patients):
        taken, size = int(steps[site]), int(sizes[site])
        there[site, :taken, :size] = own.drawn(uniform[site, : taken * size].reshape(taken, size))
        rows_of[site, :size] = own.rows + starts[site]
    counts = there.sum(axis=2)
    owner, step, patient = np.nonzero(there)
    # Padded by a row of the site's own, which counts 0.
    width = max(1, int(counts.max()))
    rows = np.broadcast_to(starts[:, None, None], (*counts.shape, width)).copy()
    before = np.cumsum(counts.ravel()) - counts.ravel()
    rank = np.arange(len(owner)) - np.repeat(before, counts.ravel())
    rows[owner, step, rank] = rows_of[owner, patient]
    weight = np.arange(width) < counts[..., None]
    for number in range(int(steps[0])):
        active = _active(steps, number)
        most = max(1, int(counts[:active, number].max()))
        yield Step(
            torch.from_numpy(rows[:active, number, :most].reshape(-1)),
            torch.from_numpy(weight[:active, number, :most].astype(np.float64)),
        )
