"""What must happen to counts before they may leave a site: merging small cells, repairing noise.

These are pure functions on arrays; `Counts.coarsen` and `Counts.noised` use them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedward.common.metrics.checks import Floats


def merge_cells(weight: Floats, patients: Floats, min_cell: int) -> Floats:
    """Merge neighbours until every cell that is not empty stands for `min_cell` patients.

    Walks from the first bin to the last. A finished run of bins becomes one cell at the run's
    weighted median bin; what is left at the end joins the last run. The total weight is kept. If
    there are too few patients in all, one cell (or none) stands for all: the caller suppresses it.

    Args:
        weight: `[bins]`, ≥ 0.
        patients: `[bins]`, each patient in one only of the bins that hold their rows, so that sums
            over bins never count a patient twice.
        min_cell: smallest number of patients that may be told apart.
    """
    runs: list[tuple[int, int]] = []
    start, held = 0, 0.0
    for place in np.flatnonzero(weight):
        held += patients[place]
        if held >= min_cell:
            runs.append((start, int(place) + 1))
            start, held = int(place) + 1, 0.0
    runs = [*runs[:-1], (runs[-1][0] if runs else 0, len(weight))]
    merged = np.zeros_like(weight)
    for first, last in runs:
        part = weight[first:last]
        if part.sum() > 0:
            median = int(np.searchsorted(np.cumsum(part), part.sum() / 2))
            merged[first + median] = part.sum()
    return merged


def coarse_binary(
    cells: Mapping[str, Floats], homes: Mapping[str, Floats], min_cell: int
) -> tuple[dict[str, Floats], bool]:
    """Coarse `hist`, and whether the two sides of the threshold could be kept apart."""
    hist, patients = cells["hist"], homes["hist"]
    half = hist.shape[-1] // 2
    sides = [slice(0, half), slice(half, None)]
    apart = all(_showable(hist[:, side], patients[:, side], min_cell) for side in sides)
    merged = [
        np.stack([merge_cells(hist[c, part], patients[c, part], min_cell) for c in (0, 1)])
        for part in (sides if apart else [slice(None)])
    ]
    return {"hist": np.concatenate(merged, axis=1)}, apart


def coarse_multiclass(
    cells: Mapping[str, Floats], homes: Mapping[str, Floats], min_cell: int
) -> tuple[dict[str, Floats], bool]:
    """Coarse `hist` and `confusion`, and whether the confusion could be shown (else it is 0)."""
    hist, confusion = cells["hist"], cells["confusion"]
    classes = range(len(hist))
    merged = [
        [merge_cells(hist[k, c], homes["hist"][k, c], min_cell) for c in (0, 1)] for k in classes
    ]
    pooled = np.diag(np.diag(confusion))
    shown = _each_showable(pooled.sum(axis=1), np.diag(homes["confusion"]), min_cell)
    for k in classes:
        others = np.delete(np.arange(len(hist)), k)
        wrong, patients = confusion[k, others], homes["confusion"][k, others]
        shown = shown and _showable(wrong, patients, min_cell)
        pooled[k, others] = _pool(wrong, patients, min_cell)
    if not shown:
        pooled = np.zeros_like(pooled)
    return {"hist": np.array(merged), "confusion": pooled}, shown


def _showable(weight: Floats, patients: Floats, min_cell: int) -> bool:
    """Whether each sum over the last axis stands for no patient or enough."""
    return _each_showable(weight.sum(axis=-1), patients.sum(axis=-1), min_cell)


def _each_showable(weight: Floats, patients: Floats, min_cell: int) -> bool:
    return bool(((weight == 0) | (patients >= min_cell)).all())


def _pool(weight: Floats, patients: Floats, min_cell: int) -> Floats:
    """Put cells with too few patients together, smallest first, until the pool has enough.

    The pool stands at its heaviest cell. The total is kept.
    """
    order = np.argsort(patients, kind="stable")
    order = order[weight[order] > 0]
    held = np.cumsum(patients[order])
    size = 0
    if len(order) and patients[order[0]] < min_cell:
        size = min(int(np.searchsorted(held, min_cell)) + 1, len(order))
        # A pool that ends among small cells must take them all.
        size = max(size, int((patients[order] < min_cell).sum()))
    found = weight.copy()
    if size:
        pool = order[:size]
        found[pool] = 0.0
        found[pool[np.argmax(weight[pool])]] = weight[pool].sum()
    return found


def repaired_counts(noisy: Floats) -> Floats:
    """Counts ≥ 0 that keep the total and, where possible, the totals of halves and quarters.

    Noise makes counts negative. Cutting at 0 would keep the upward noise of all empty bins and
    drown a small site (so does, a little less, the projection onto counts ≥ 0). Sums over many bins
    are unbiased, so they are trusted from the top down: a range's total is divided between its
    halves as their noisy sums say, the disagreement shared by size, cut to what the range has. The
    idea of consistency down a tree is that of Hay et al. 2010 (section 4). It is post-processing
    and costs no privacy. Counts ≥ 0 are returned as they are; a total ≤ 0 becomes all zeros.

    Args:
        noisy: `[..., bins]`; each leading index on its own.
    """
    if not (noisy < 0).any():
        return noisy
    bins = noisy.shape[-1]
    ahead = np.zeros((*noisy.shape[:-1], bins + 1))
    ahead[..., 1:] = np.cumsum(noisy, axis=-1)
    found = np.zeros_like(noisy)
    ranges = [(0, bins, np.maximum(ahead[..., -1], 0.0))]
    while ranges:
        start, stop, total = ranges.pop()
        if stop - start == 1:
            found[..., start] = total
            continue
        middle = (start + stop) // 2
        spare = total - (ahead[..., stop] - ahead[..., start])
        left = ahead[..., middle] - ahead[..., start] + spare * (middle - start) / (stop - start)
        left = np.clip(left, 0.0, total)
        ranges += [(start, middle, left), (middle, stop, total - left)]
    return np.where((noisy < 0).any(axis=-1, keepdims=True), found, noisy)
