"""Counts that a site may send instead of rows, and that add up over sites.

Cells, by kind of task (all float64):
    binary: `hist` `[2, bins]`, negatives and positives over P(positive).
    multiclass: `hist` `[classes, 2, bins]`, one-vs-rest, and `confusion` `[classes, classes]`
        (truth, most probable class; the first one of equals).
    regression: `sums` `[5]` (see `regression.SUMS`).

Bins are equally wide over [0, 1], a bin includes its lower edge, the last one also 1. Their number
is even, so that the threshold 0.5 is an edge: a score of exactly 0.5 counts as positive, as in the
exact metrics.

A site has two ways to make counts fit to leave: `coarsen` (no cell of 1 … min_cell - 1 patients)
and `noised` (differential privacy). Coarse counts are no differential privacy: two releases about
nearly the same patients can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import DataError, PrivacyError, RoundError
from fedward.common.metrics.binary import ScoreBins
from fedward.common.metrics.checks import Floats
from fedward.common.metrics.multiclass import ClassBins
from fedward.common.metrics.regression import SUMS, ErrorSums
from fedward.common.metrics.release import coarse_binary, coarse_multiclass, repaired_counts
from fedward.common.models.outputs import Kind

Summary = ScoreBins | ClassBins | ErrorSums
Bounds = tuple[float, float]
_LIMIT = 1e100
"""Largest magnitude accepted from the wire: sums of many sites stay finite."""


class NormalSource(Protocol):
    """The part of `privacy.Randomness` that counts need."""

    def normal(self, size: int) -> Floats:
        """Standard normal numbers, `[size]`."""
        ...


@dataclass(frozen=True, eq=False)
class Counts:
    """Mergeable counts of one or several sites; made by `count` (`counting.py`).

    Attributes:
        kind: of task.
        cells: named arrays, see the module.
        bounds: public limits of a regression target, to which truth and predictions were clipped.
        decisions: False where a coarse release does not show how many decisions were right.
        per_patient: whether each patient's rows weigh 1 together (what `noised` needs).
        homes: patients per cell, each counted in one cell of a class; never sent (see `coarsen`).
    """

    kind: Kind
    cells: Mapping[str, Floats]
    bounds: Bounds | None = None
    decisions: bool = True
    per_patient: bool = False
    homes: Mapping[str, Floats] | None = field(default=None, repr=False)

    def __add__(self, other: Counts) -> Counts:
        """Counts of both; their patients are taken to be different people.

        Raises:
            RoundError: they are counts of different tasks or resolutions.
        """
        mine = {name: cell.shape for name, cell in self.cells.items()}
        if mine != {name: cell.shape for name, cell in other.cells.items()} or (
            (self.kind, self.bounds) != (other.kind, other.bounds)
        ):
            raise RoundError(
                "counts of different tasks or resolutions cannot be added",
                hint="evaluate every site with the same study file",
            )
        homes = None
        if self.homes is not None and other.homes is not None:
            homes = {name: self.homes[name] + other.homes[name] for name in self.homes}
        return Counts(
            kind=self.kind,
            cells={name: self.cells[name] + other.cells[name] for name in self.cells},
            bounds=self.bounds,
            decisions=self.decisions and other.decisions,
            per_patient=self.per_patient and other.per_patient,
            homes=homes,
        )

    @property
    def sensitivity(self) -> float:
        """L2 distance by which one patient, added or removed, can change all cells together.

        Guarantee: holds for counts made with `per="patient"`. A patient's weights sum to 1, so each
        histogram and the confusion matrix change by at most 1: binary 1, multiclass √(1 + classes).
        A regression row's five terms are in [0, 1], and so is their mean over a patient's rows: √5.

        Raises:
            PrivacyError: a patient with many rows, or a target without bounds, has no limit.
        """
        if not self.per_patient:
            raise PrivacyError(
                "counts of rows have no limit per patient",
                hint='count with per="patient" before adding noise',
            )
        if self.kind == "regression":
            if self.bounds is None:
                raise PrivacyError(
                    "a regression target without public bounds has no limit per patient",
                    hint="give [task] bounds",
                )
            return float(np.sqrt(len(SUMS)))
        if self.kind == "binary":
            return 1.0
        return float(np.sqrt(1 + len(self.cells["confusion"])))

    def noised(self, noise_multiplier: float, randomness: NormalSource) -> Counts:
        """The counts with Gaussian noise of `noise_multiplier · sensitivity` on every cell.

        Cells may become negative; that is repaired when metrics are computed, after adding up.

        Guarantee: the result is the Gaussian mechanism with that noise multiplier (σ / sensitivity)
        under adding or removing one patient, empty and one-patient sites included; all cells get
        noise, zeros too. Account it as one `GaussianRelease`.

        Args:
            noise_multiplier: > 0.
            randomness: where the noise comes from.

        Raises:
            PrivacyError: the counts have no limit per patient, or the multiplier is not positive.
        """
        if not (np.isfinite(noise_multiplier) and noise_multiplier > 0):
            raise PrivacyError(
                "the noise multiplier of an evaluation must be positive",
                hint="calibrate it from epsilon and delta",
            )
        scale = noise_multiplier * self.sensitivity
        noisy = {
            name: cell + scale * randomness.normal(cell.size).reshape(cell.shape)
            for name, cell in sorted(self.cells.items())
        }
        return replace(self, cells=noisy, homes=None)

    def coarsen(self, min_cell: int) -> Counts | None:
        """The counts without any cell that stands for 1 … `min_cell` - 1 patients, or None.

        None (nothing may leave) when a class has 1 … `min_cell` - 1 patients here, or a regression
        that few in all. Otherwise:

        - Each class histogram is walked from low to high scores and neighbouring bins are merged
          until a cell has enough patients; the sum stands at the run's weighted median, a remainder
          joins the last run. Totals are kept; ranks within a run are lost.
        - Binary: the two sides of the threshold are walked separately where each class has 0 or
          enough patients on each side; decision metrics are then exact. Otherwise runs may cross
          the threshold, and `decisions` is False: those metrics are undefined, not guessed.
        - Multiclass: small cells of wrong answers are pooled within their true class, at the
          heaviest. Accuracy, recall and balanced accuracy stay exact; precision, specificity and F1
          lose which class was said. Where the right or the wrong answers of a class are too few to
          show, the whole confusion is 0 and `decisions` is False.

        Guarantee: every released cell is 0 or the weight of rows of at least `min_cell` patients;
        a patient with rows in several cells of a class is counted in one only. No differential
        privacy.

        Raises:
            PrivacyError: the patients behind the cells are not known (anymore).
        """
        if self.homes is None:
            raise PrivacyError(
                "counts whose patients are unknown cannot be checked for small cells",
                hint="coarsen at the site, right after counting",
            )
        if self.kind == "regression":
            too_few = 0 < self.homes["sums"][0] < min_cell
            return None if too_few else replace(self, homes=None)
        held = self.homes["hist"].sum(axis=-1)
        if ((held > 0) & (held < min_cell)).any():
            return None
        merge = coarse_binary if self.kind == "binary" else coarse_multiclass
        cells, shown = merge(self.cells, self.homes, min_cell)
        return replace(self, cells=cells, homes=None, decisions=self.decisions and shown)

    def summary(self) -> Summary:
        """What the metrics are computed from: noise repaired, bins at their midpoints."""
        if self.kind == "regression":
            width = self.bounds[1] - self.bounds[0] if self.bounds else 1.0
            return ErrorSums(self.cells["sums"], width)
        hist = repaired_counts(self.cells["hist"])
        middle = (np.arange(hist.shape[-1]) + 0.5) / hist.shape[-1]
        if self.kind == "binary":
            return ScoreBins(middle, hist[0], hist[1], self.decisions)
        classes = tuple(ScoreBins(middle, h[0], h[1]) for h in hist)
        return ClassBins(repaired_counts(self.cells["confusion"]), classes, self.decisions)

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """What may cross the wire; never `homes`.

        The cells, `decisions` `[1]` (0 or 1), and `bounds` `[2]` where there are any.
        """
        arrays = {**self.cells, "decisions": np.array([float(self.decisions)])}
        return arrays if self.bounds is None else {**arrays, "bounds": np.array(self.bounds)}

    @classmethod
    def from_arrays(
        cls,
        kind: Kind,
        arrays: Mapping[str, NDArray[Any]],
        *,
        outputs: int = 1,
        bins: int = 100,
        bounds: Bounds | None = None,
        noised: bool = False,
    ) -> Counts:
        """Counts that came over the wire, checked against what the study demands.

        Args:
            kind: of task.
            arrays: as from `to_arrays`.
            outputs: of the model: classes for multiclass, else 1.
            bins: of the histograms.
            bounds: of a regression target.
            noised: whether cells may be negative (differential privacy).

        Raises:
            RoundError: a name, shape or value is not as it must be.
        """
        limits = bounds if kind == "regression" else None
        expected = {**cell_shapes(kind, outputs, bins), "decisions": (1,)}
        if limits is not None:
            expected["bounds"] = (2,)
        if {n: np.shape(a) for n, a in arrays.items()} != expected:
            raise RoundError("a site's counts have the wrong names or shapes", hint=_REFUSE)
        cells = {name: np.array(array, dtype=np.float64) for name, array in arrays.items()}
        shown = float(cells.pop("decisions")[0])
        if limits is not None and tuple(cells.pop("bounds")) != limits:
            raise RoundError("a site's counts have other bounds than the study", hint=_REFUSE)
        for cell in cells.values():
            if not (np.abs(cell) < _LIMIT).all() or shown not in (0.0, 1.0):
                raise RoundError("a site's counts are not finite", hint=_REFUSE)
            # Centred sums of an unbounded regression may be negative without noise.
            if not noised and kind != "regression" and (cell < 0).any():
                raise RoundError("a site's counts are negative", hint=_REFUSE)
        return cls(kind, cells, limits, decisions=bool(shown))


_REFUSE = "leave the site out of this evaluation and check its version of fedward"


def cell_shapes(kind: Kind, outputs: int, bins: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the cells of a kind of task.

    Raises:
        DataError: `bins` is odd or below 2.
    """
    if bins < 2 or bins % 2:
        raise DataError("score bins must be an even number", hint="set [evaluation] bins, e.g. 100")
    if kind == "regression":
        return {"sums": (len(SUMS),)}
    if kind == "binary":
        return {"hist": (2, bins)}
    return {"hist": (outputs, 2, bins), "confusion": (outputs, outputs)}
