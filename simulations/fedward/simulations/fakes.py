"""Hospitals that do not exist, for tests and for trying things out: patients, studies, observers.

Everything is made from seeds, so that a test that fails once fails again.

    >>> study = small_study(training={"rounds": 2})
    >>> sites = make_sites(study, make_cohorts(study, 3))
    >>> [site.name for site in sites]
    ['site-1', 'site-2', 'site-3']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.client.site import Site
from fedward.client.workspace import Workspace
from fedward.common.preprocess import Transform
from fedward.common.study.schema import Study
from fedward.common.table import MISSING, FeatureTable
from fedward.common.tensors import Weights
from fedward.server.checkpoints import RunState
from fedward.server.history import RoundRecord
from fedward.simulations.arms import make_site

BOUND = 4.0
"""Numeric features of fake patients lie within ± this."""
_CATEGORIES = ("never", "former", "current")
_WHOLE = ("algorithm", "model", "simulation")


def small_study(*, numeric: int = 3, categorical: int = 0, **changes: Mapping[str, Any]) -> Study:
    """A small tabular study without privacy: 2 rounds of one epoch of logistic regression.

    Args:
        numeric: number of bounded numeric features, `x0`, `x1`, …
        categorical: number of categorical features with three levels, `c0`, `c1`, …
        changes: by section, keys that differ: `training={"rounds": 5}`. `algorithm`, `model` and
            `simulation` are replaced as a whole.

    Raises:
        pydantic.ValidationError: the changed study contradicts itself.
    """
    features: list[dict[str, Any]] = [
        {"name": f"x{index}", "min": -BOUND, "max": BOUND} for index in range(numeric)
    ]
    features += [
        {"name": f"c{index}", "type": "categorical", "categories": list(_CATEGORIES)}
        for index in range(categorical)
    ]
    table: dict[str, Any] = {
        "study": {"name": "fake", "title": "A fake", "purpose": "To test", "contact": "nobody"},
        "task": {"kind": "binary", "target": "ill", "labels": ["no", "yes"]},
        "data": {"modality": "tabular", "features": features},
        "preprocess": {"standardise": "bounds", "impute": "bounds"},
        "model": {"name": "logistic"},
        "training": {
            "rounds": 2,
            "local_epochs": 1,
            "batch_size": 8,
            "learning_rate": 0.5,
            "seed": 3,
        },
        "algorithm": {"name": "fedavg"},
        "privacy": {"mode": "none"},
        "aggregation": {"weights": "equal"},
        "evaluation": {"min_cell": 3, "bootstrap": 20, "bins": 20},
    }
    for section, change in changes.items():
        kept = {} if section in _WHOLE else table[section]
        table[section] = {**kept, **change}
    return Study.model_validate(table)


def make_cohort(
    study: Study,
    site: str,
    *,
    patients: int = 40,
    rows_per_patient: int = 1,
    holdout: float = 0.25,
    shift: float = 0.0,
    missing: float = 0.0,
    seed: int = 0,
) -> Cohort:
    """Patients with a learnable signal: the outcome depends on the features, with some noise.

    Args:
        study: says which features there are, and the kind of task.
        site: name of the hospital; with `seed` it decides the patients.
        patients: how many.
        rows_per_patient: largest number of rows of one patient; at least 1 each.
        holdout: share of patients kept for testing, spread evenly.
        shift: added to all numeric features here: hospitals differ.
        missing: share of values that are absent.
        seed: of everything.
    """
    rng = np.random.default_rng([seed, *site.encode()])
    patient = np.repeat(np.arange(patients), rng.integers(1, rows_per_patient + 1, patients))
    rows = len(patient)
    numeric = rng.normal(shift, 1.0, (rows, len(study.data.numeric)))
    codes = rng.integers(0, len(_CATEGORIES), (rows, len(study.data.categorical)))
    slopes = np.where(np.arange(numeric.shape[1]) % 2, -2.0, 2.0)
    signal = (numeric - shift) @ slopes + codes.sum(axis=1) - codes.shape[1]
    target = _outcome(study, signal + rng.normal(0.0, 1.5, rows))
    numeric[rng.random(numeric.shape) < missing] = np.nan
    codes[rng.random(codes.shape) < missing] = MISSING
    chosen = (np.arange(patients) * holdout) % 1.0 >= 1.0 - holdout
    return Cohort(
        site=site,
        features=FeatureTable(
            np.clip(numeric, -BOUND, BOUND).astype(np.float32),
            codes.astype(np.int32),
            tuple(_CATEGORIES for _ in study.data.categorical),
        ),
        target=target.astype(np.float32),
        patient=patient,
        test=chosen[patient],
    )


def _outcome(study: Study, signal: NDArray[np.float64]) -> NDArray[np.float64]:
    if study.task.kind == "regression":
        return signal
    # Classes of about the same size: the task's labels cut the normal signal into equal shares.
    cuts = np.quantile(signal, np.linspace(0.0, 1.0, len(study.task.labels) + 1)[1:-1])
    return np.searchsorted(cuts, signal).astype(np.float64)


def make_cohorts(study: Study, sites: int, *, seed: int = 0, **options: Any) -> list[Cohort]:
    """Cohorts `site-1`, `site-2`, … of unlike size and place; `options` as for `make_cohort`."""
    patients = options.pop("patients", 40)
    return [
        make_cohort(
            study,
            f"site-{index + 1}",
            patients=patients + 8 * index,
            shift=0.2 * index,
            seed=seed,
            **options,
        )
        for index in range(sites)
    ]


def make_sites(study: Study, cohorts: Sequence[Cohort]) -> list[Site]:
    """A virtual hospital for each cohort."""
    workspace = Workspace()
    return [make_site(study, cohort.site, [cohort], workspace) for cohort in cohorts]


class Quiet:
    """An observer that watches and says nothing; what it saw is kept for a test to look at.

    Args:
        stop_after: raise `Stopped` when this round is complete, before it is checkpointed.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self.records: list[RoundRecord] = []
        self.resumed: list[RunState] = []
        self._stop_after = stop_after

    def on_prepared(self, transform: Transform, weights: Weights) -> dict[str, Any]:
        """Stop here if told to stop after round 0."""
        del transform, weights
        return self._next(0)

    def on_resumed(self, state: RunState) -> None:
        """Remember where the run was taken up."""
        self.resumed.append(state)

    def on_round(self, record: RoundRecord, weights: Weights) -> dict[str, Any]:
        """Remember the round."""
        del weights
        self.records.append(record)
        return self._next(record.round)

    def on_evaluating(self, number: int) -> None:
        """Nothing to see yet."""

    def _next(self, number: int) -> dict[str, Any]:
        if number == self._stop_after:
            raise Stopped
        return {}


class Stopped(Exception):  # noqa: N818  (an event, not a fault)
    """The power went out, as far as a run can tell."""


class MemoryCheckpoints:
    """Keeps every state of a run in memory."""

    def __init__(self) -> None:
        self.states: list[RunState] = []

    def save(self, state: RunState) -> RunState:
        """Keep it; the next round goes on changing what the strategy remembers."""
        strategy = {key: value.copy() for key, value in state.strategy.items()}
        self.states.append(replace(state, strategy=strategy))
        return state

    def newest(self) -> RunState | None:
        """The last one."""
        return self.states[-1] if self.states else None
