"""`results.json`: everything that a simulation found, as one frozen value.

The classes below *are* the format: unknown keys are errors, and what is undefined (an AUROC at a
site with one class, a cell below the minimum size) is null, never NaN.

    >>> Estimate(value=0.97, low=0.95, high=float("nan"))
    Estimate(value=0.97, low=0.95, high=None)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedward.common.errors import OutputError
from fedward.common.files import write_atomic
from fedward.common.models.provenance import NOTICE
from fedward.common.study.schema import Study
from fedward.common.validation import explain

OVERALL = "overall"
"""The key that stands for all sites together, wherever a site's name could stand."""

ARMS = ("local", "federated", "federated_no_dp", "pooled")
"""The ways of training that a simulation compares, in the order in which they are shown."""


def _undefined_is_none(value: Any) -> Any:
    try:
        return value if value is None or math.isfinite(value) else None
    except TypeError:
        return value


Number = Annotated[float | None, BeforeValidator(_undefined_is_none)]
"""A finite number, or null where it is undefined (NaN and infinity become null)."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of the results: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StudyInfo(Part):
    """Which study was run.

    `metric` is the headline metric; `epsilon` and `delta` are the budget that the study promises
    (null without differential privacy), `confidence` is the level of all intervals.
    """

    name: str
    title: str
    purpose: str
    hash: str
    simulation_hash: str
    task: Literal["binary", "multiclass", "regression"]
    labels: tuple[str, ...] = ()
    metric: str
    model: str = ""
    algorithm: str = ""
    rounds: Count = 0
    private: bool = False
    epsilon: Number = None
    delta: Number = None
    confidence: Fraction = 0.95
    min_cell: Count = 10

    @classmethod
    def of(cls, study: Study, *, study_hash: str, simulation_hash: str) -> Self:
        """What the report says about a study file."""
        return cls(
            name=study.study.name,
            title=study.study.title,
            purpose=study.study.purpose,
            hash=study_hash,
            simulation_hash=simulation_hash,
            task=study.task.kind,
            labels=study.task.labels,
            metric=study.evaluation.metric,
            model=study.model.name,
            algorithm=study.algorithm.name,
            rounds=study.training.rounds,
            private=study.private,
            epsilon=study.privacy.epsilon if study.private else None,
            delta=study.privacy.delta if study.private else None,
            confidence=study.evaluation.confidence,
            min_cell=study.evaluation.min_cell,
        )


class Engine(Part):
    """What executed the sites, and why it was chosen."""

    name: str
    why: str


class FeatureSummary(Part):
    """A feature over the rows of one site. `missing` is the fraction of rows without a value."""

    mean: Number = None
    sd: Number = None
    missing: Fraction = 0.0


class Site(Part):
    """What a site's data look like. Known in a simulation only, never in a federation."""

    name: str
    train_patients: Count
    test_patients: Count
    train_rows: Count
    test_rows: Count
    classes: dict[str, Count] = {}
    features: dict[str, FeatureSummary] = {}


class Estimate(Part):
    """A metric with its confidence interval."""

    value: Number
    low: Number = None
    high: Number = None


class CurvePoint(Part):
    """The headline metric after a round, by site and overall."""

    round: Count
    metrics: dict[str, Number]


class DriftPoint(Part):
    """A site's update: its Euclidean norm, and its cosine with the mean of all updates."""

    round: Count
    site: str
    norm: Number
    cosine: Number


class SitePrivacy(Part):
    """What was really spent at one site.

    Patients that train and patients kept for testing are different people: `training` and `testing`
    are what each group spent, and `epsilon` is the larger of the two.
    `crosscheck` is the same ε by a second accountant. `events` are the accounted releases, each
    `{round, group, event}`: `group` says whose patients (training or testing), `event` is as
    `privacy.events.event_from_dict` reads it. `per_round[k]` is the total ε of the training
    patients after round k + 1.
    """

    epsilon: Number
    delta: float
    unit: Literal["patient", "record"]
    crosscheck: Number = None
    events: tuple[dict[str, Any], ...] = ()
    per_round: tuple[Number, ...] = ()
    training: Number = None
    testing: Number = None


class Roc(Part):
    """Points of a ROC curve, from (0, 0) to (1, 1); both lists have the same length."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


class CalibrationBin(Part):
    """Patients with a similar predicted risk: their mean score and the share that had the event."""

    score: Number
    observed: Number
    count: Count


class CrossSite(Part):
    """How each model does at each site: `values[i][j]` is model i on the data of site j."""

    metric: str
    models: tuple[str, ...]
    sites: tuple[str, ...]
    values: tuple[tuple[Number, ...], ...]


class FederationView(Part):
    """What a coordinator of a real federation would have seen, by site and overall.

    `resolution` says in words how it differs from the exact figures: minimum cells, noise, bins.
    """

    resolution: str
    metrics: dict[str, dict[str, Number]]


class Timing(Part):
    """Wall time: of everything, and of an arm's rounds, in seconds."""

    seconds: float
    rounds: dict[str, float] = {}


class Results(Part):
    """All results of one simulation.

    `metrics[arm][site or "overall"][metric]` is an `Estimate`; `roc` and `calibration` are by arm,
    then site.
    """

    schema_version: Literal[1] = 1
    study: StudyInfo
    versions: dict[str, str]
    seed: int
    simulated: Literal[True] = True
    notice: str = NOTICE
    engine: Engine
    sites: tuple[Site, ...]
    metrics: dict[str, dict[str, dict[str, Estimate]]]
    curves: dict[str, tuple[CurvePoint, ...]] = {}
    drift: tuple[DriftPoint, ...] = ()
    privacy: dict[str, SitePrivacy] = {}
    roc: dict[str, dict[str, Roc]] = {}
    calibration: dict[str, dict[str, tuple[CalibrationBin, ...]]] = {}
    cross_site: CrossSite | None = None
    federation_view: FederationView | None = None
    warnings: tuple[str, ...] = ()
    timing: Timing

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms that were run, known ones first and in the order of `ARMS`."""
        known = tuple(arm for arm in ARMS if arm in self.metrics)
        return known + tuple(sorted(set(self.metrics) - set(ARMS)))

    def estimate(self, arm: str, place: str, metric: str | None = None) -> Estimate:
        """One figure; all null where it was not measured.

        Args:
            arm: one of `arms`.
            place: a site's name or `OVERALL`.
            metric: the headline metric if absent.
        """
        found = self.metrics.get(arm, {}).get(place, {}).get(metric or self.study.metric)
        return found or Estimate(value=None)

    def save(self, path: Path) -> None:
        """Write `results.json`, whole or not at all.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read `results.json`.

        Raises:
            OutputError: the file is missing, is not JSON or has another format.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise OutputError(f"cannot read {path}", hint="check the path") from error
        except ValidationError as error:
            problem, hint = explain(error, cls)
            raise OutputError(
                f"{path} is not a results file of this version: {problem}", hint=hint
            ) from error
