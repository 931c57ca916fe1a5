"""Looks over a run's shoulder: exact test metrics after each round, as only a simulation may.

What it finds, and what the sites were charged, goes into the run's checkpoint as notes, so that a
resumed simulation reports the same as an unbroken one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedward.client.site import Site
from fedward.client.spending import Charge, MemorySpending
from fedward.common.errors import TrainingError
from fedward.common.metrics import exact_counts, one_metric
from fedward.common.preprocess import Transform
from fedward.common.study.schema import Study
from fedward.common.tensors import Weights
from fedward.server.checkpoints import RunState
from fedward.server.history import RoundRecord
from fedward.simulations.scoring import Scoring

OVERALL = "overall"
MOST_SITES = 50
"""With more sites than this, curves are over all sites only."""


@dataclass(frozen=True)
class CurvePoint:
    """The headline metric after a round, by site and `overall`; None where undefined."""

    round: int
    metrics: dict[str, float | None]


class Watcher:
    """Observer of one run (see `server.rounds.Observer`).

    Args:
        study: says which metric.
        judges: sites whose test patients are scored.
        sites: sites that train and spend.
        shown: is told each round's number and overall metric.
    """

    def __init__(
        self,
        study: Study,
        judges: Mapping[str, Site],
        sites: Mapping[str, Site],
        *,
        shown: Callable[[int, float | None], None],
    ) -> None:
        self._study = study
        self._judges = judges
        self._sites = sites
        self._shown = shown
        self._transform: Transform | None = None
        self._tests: Scoring | None = None
        self._curve: list[CurvePoint] = []
        self._noted = dict.fromkeys(sites, 0)

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """One point per completed round, also those before a restart."""
        return tuple(self._curve)

    def on_prepared(self, transform: Transform, weights: Weights) -> dict[str, Any]:
        """Remember how to preprocess; note what the statistics cost."""
        del weights
        self._transform = transform
        return {"charges": self._new_charges()}

    def on_resumed(self, state: RunState) -> None:
        """Take back the curve and the charges of the completed rounds."""
        self._transform = Transform.from_json(state.transform)
        charges: dict[str, list[Charge]] = {site: [] for site in self._sites}
        for notes in (state.notes, *(record.notes for record in state.history)):
            for site, noted in notes.get("charges", {}).items():
                charges[site] += [Charge.from_dict(charge) for charge in noted]
        for name, site in self._sites.items():
            site.spending = MemorySpending(site.plan, tuple(charges[name]))
            self._noted[name] = len(charges[name])
        self._curve = [
            CurvePoint(record.round, record.notes["metrics"]) for record in state.history
        ]

    def on_evaluating(self, number: int) -> None:
        """Nothing to show: a simulation's sites count at once."""

    def on_round(self, record: RoundRecord, weights: Weights) -> dict[str, Any]:
        """Score the new weights on everybody's test patients."""
        point = CurvePoint(record.round, self._metrics(weights))
        self._curve.append(point)
        self._shown(record.round, point.metrics[OVERALL])
        return {"metrics": point.metrics, "charges": self._new_charges()}

    def _metrics(self, weights: Weights) -> dict[str, float | None]:
        if self._transform is None:
            raise TrainingError("a round came before preparation", hint="report this defect")
        if self._tests is None:
            self._tests = Scoring(list(self._judges.values()), self._transform)
        tests = self._tests
        kind, metric = self._study.task.kind, self._study.evaluation.metric
        scores, truth = tests.scores(weights), tests.joined.target.numpy()
        metrics = {}
        if len(self._judges) <= MOST_SITES:
            parts = zip(self._judges, tests.split(truth), tests.split(scores), strict=True)
            metrics = {name: one_metric(exact_counts(kind, *own), metric) for name, *own in parts}
        return {**metrics, OVERALL: one_metric(exact_counts(kind, truth, scores), metric)}

    def _new_charges(self) -> dict[str, list[dict[str, Any]]]:
        fresh: dict[str, list[dict[str, Any]]] = {}
        if not self._study.private:
            return fresh
        for name, site in self._sites.items():
            charges = site.spending.charges
            if len(charges) > self._noted[name]:
                fresh[name] = [charge.to_dict() for charge in charges[self._noted[name] :]]
                self._noted[name] = len(charges)
        return fresh
