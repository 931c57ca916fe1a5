"""The ways of training that a simulation compares: all of them federations.

    federated        the study as it stands
    federated_no_dp  the same without differential privacy
    pooled           a federation of one site that has everybody's patients
    local            for each site, a federation of itself alone

So a baseline runs the very code that it is compared with, and differs only in who takes part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedward.client.cohort import Cohort
from fedward.client.site import RandomnessFor, Site
from fedward.client.workspace import Workspace
from fedward.common.errors import FedwardError, Interrupted, OutputError, PrivacyError
from fedward.common.privacy.randomness import SeededRandomness
from fedward.common.study.schema import (
    AggregationSection,
    Baselines,
    FedAvg,
    PrivacySection,
    Study,
    TrainingSection,
)
from fedward.server.checkpoints import Checkpoints, NoCheckpoints
from fedward.server.flower_app import build_server_app
from fedward.server.rounds import Outcome
from fedward.simulations.engines.choice import Engine, Used
from fedward.simulations.pacing import Paced
from fedward.simulations.watcher import CurvePoint, Watcher

ArmName = Literal["local", "federated", "federated_no_dp", "pooled"]
RoundShown = Callable[[ArmName, int, float | None], None]
"""Told after every round: arm, round, headline metric over all sites."""
MOST_NAMES = 5
"""Sites that a message names."""
_ENDS_ALL = (Interrupted, OutputError)
"""What ends the simulation in whatever arm it happens: going on would fail or ignore the user."""


@dataclass(frozen=True)
class ArmResult:
    """What one way of training gave.

    Attributes:
        name: which arm.
        outcomes: by site for `local`, else one under `""`.
        failed: trainings that could not finish, and why, under the same keys.
        curve: headline metric after each round.
        sites: the sites that trained, by name, with what they spent.
        seconds: wall time of its rounds.
        engine: what computed it.
    """

    name: ArmName
    outcomes: Mapping[str, Outcome]
    failed: Mapping[str, str]
    curve: tuple[CurvePoint, ...]
    sites: Mapping[str, Site]
    seconds: float
    engine: Used

    def models(self, sites: Iterable[str]) -> Iterator[tuple[Outcome, list[str]]]:
        """The models of this arm and to which of some sites each is offered."""
        if self.name == "local":
            yield from ((self.outcomes[site], [site]) for site in sites if site in self.outcomes)
        elif "" in self.outcomes:
            yield self.outcomes[""], list(sites)


def arms_of(study: Study) -> tuple[ArmName, ...]:
    """Arms that a study asks for, in the order in which they run."""
    wanted = study.simulation.compare if study.simulation else ()
    arms: list[ArmName] = ["federated"]
    if study.private and "federated_no_dp" in wanted:
        arms.append("federated_no_dp")
    return (*arms, *(arm for arm in ("pooled", "local") if arm in wanted))


def study_of_arm(study: Study, arm: ArmName) -> Study:
    """The study that an arm runs."""
    if arm == "federated":
        return study
    open_study = study.model_copy(update={"privacy": PrivacySection(mode="none")})
    if arm == "federated_no_dp":
        return open_study
    simulation = study.simulation
    changes = {
        "algorithm": FedAvg(name="fedavg"),
        "aggregation": AggregationSection(weights="equal"),
        # Nothing leaves a site here, so no cell is too small.
        "evaluation": study.evaluation.model_copy(update={"min_cell": 1, "every": 0}),
        "training": _baseline_training(
            study.training, simulation.baselines if simulation else Baselines()
        ),
    }
    return open_study.model_copy(update=changes)


def _baseline_training(training: TrainingSection, baselines: Baselines) -> TrainingSection:
    changes = baselines.model_dump(exclude_none=True, exclude={"epochs"})
    if baselines.epochs is not None:
        # One round, so that the optimiser keeps its state throughout.
        changes |= {"rounds": 1, "local_epochs": baselines.epochs, "local_steps": None}
    if changes.get("optimiser") == "adam":
        changes["momentum"] = 0.0
    return training.model_copy(update=changes)


def seeded(seed: int, site: str) -> RandomnessFor:
    """Reproducible randomness for a virtual site: its own stream per purpose and round."""
    return lambda purpose, number: SeededRandomness(seed, site, purpose, number)


def make_site(study: Study, name: str, cohorts: Sequence[Cohort], workspace: Workspace) -> Site:
    """A virtual hospital.

    Raises:
        PrivacyError: the study's promise cannot be kept there; the message names the site.
    """
    try:
        return Site(
            name,
            study,
            tuple(cohorts),
            randomness=seeded(study.training.seed, name),
            workspace=workspace,
        )
    except PrivacyError as error:
        raise PrivacyError(f"site {name}: {error.problem}", hint=error.hint) from error


def make_sites(study: Study, cohorts: Sequence[Cohort], workspace: Workspace) -> dict[str, Site]:
    """A virtual hospital per cohort, by name.

    Raises:
        PrivacyError: the study's promise cannot be kept at one or several of them; the message
            names up to `MOST_NAMES`.
    """
    sites: dict[str, Site] = {}
    refused: dict[str, PrivacyError] = {}
    for cohort in cohorts:
        try:
            sites[cohort.site] = make_site(study, cohort.site, [cohort], workspace)
        except PrivacyError as error:
            refused[cohort.site] = error
    if refused:
        raise _refusal(refused, len(cohorts))
    return sites


def _refusal(refused: Mapping[str, PrivacyError], of: int) -> PrivacyError:
    """One error for all sites that refuse."""
    first = next(iter(refused.values()))
    if len(refused) == 1:
        return first
    names = ", ".join(list(refused)[:MOST_NAMES])
    if len(refused) > MOST_NAMES:
        names += f" and {len(refused) - MOST_NAMES} more"
    return PrivacyError(
        f"{len(refused)} of {of} sites cannot keep the privacy promise ({names}); {first.problem}",
        hint=first.hint,
    )


def run_arm(
    study: Study,
    arm: ArmName,
    cohorts: Sequence[Cohort],
    *,
    judges: Mapping[str, Site],
    workspace: Workspace,
    checkpoints: Checkpoints,
    shown: RoundShown,
    sites: Mapping[str, Site] | None = None,
    engine: Engine | None = None,
) -> ArmResult:
    """Train one arm.

    Args:
        study: of the whole simulation; `study_of_arm` says what this arm makes of it.
        arm: which.
        cohorts: of all sites.
        judges: a site per cohort that scores models on its test patients.
        workspace: modules to compute with.
        checkpoints: of the run; local runs are short and start again instead.
        shown: is told about every round.
        sites: of `federated`, if they are made already.
        engine: what computes the sites; of this arm alone.

    Raises:
        FedwardError: `federated` could not be trained; another arm says so in its result.
        Interrupted: of any arm.
        OutputError: of any arm: a full disk would cost the results too.
    """
    own = study_of_arm(study, arm)
    started, chosen = time.monotonic(), engine or Engine()
    if arm == "local":
        result = _run_local(own, cohorts, judges, workspace, shown, chosen)
    else:
        made = dict(sites) if sites is not None else None
        result = _run_together(
            own, arm, cohorts, made, judges, workspace, checkpoints, shown, chosen
        )
    outcomes, failed, curve, trained = result
    seconds = time.monotonic() - started
    return ArmResult(arm, outcomes, failed, curve, trained, seconds, chosen.used)


_Parts = tuple[dict[str, Outcome], dict[str, str], tuple[CurvePoint, ...], dict[str, Site]]


def _run_together(
    study: Study,
    arm: ArmName,
    cohorts: Sequence[Cohort],
    sites: dict[str, Site] | None,
    judges: Mapping[str, Site],
    workspace: Workspace,
    checkpoints: Checkpoints,
    shown: RoundShown,
    engine: Engine,
) -> _Parts:
    curve: tuple[CurvePoint, ...] = ()
    try:
        if sites is None and arm == "pooled":
            sites = {"pooled": make_site(study, "pooled", cohorts, workspace)}
        elif sites is None:
            sites = make_sites(study, cohorts, workspace)
        watcher = Watcher(
            study, judges, sites, shown=lambda number, metric: shown(arm, number, metric)
        )
        try:
            outcome = _federate(study, sites, watcher, checkpoints, engine)
        finally:
            curve = watcher.curve
    except _ENDS_ALL:
        raise
    except FedwardError as error:
        if arm == "federated":
            raise
        # A baseline that fails is a finding; it must not cost the result that it is beside.
        return {}, {"": str(error)}, curve, sites or {}
    return {"": outcome}, {}, curve, sites


def _run_local(
    study: Study,
    cohorts: Sequence[Cohort],
    judges: Mapping[str, Site],
    workspace: Workspace,
    shown: RoundShown,
    engine: Engine,
) -> _Parts:
    outcomes: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    curves: dict[str, tuple[CurvePoint, ...]] = {}
    sites: dict[str, Site] = {}
    for done, cohort in enumerate(cohorts, start=1):
        name = cohort.site
        watcher = Watcher(study, {name: judges[name]}, {}, shown=lambda _number, _metric: None)
        try:
            sites[name] = make_site(study, name, [cohort], workspace)
            outcomes[name] = _federate(study, {name: sites[name]}, watcher, NoCheckpoints(), engine)
            curves[name] = watcher.curve
        except _ENDS_ALL:
            raise
        except FedwardError as error:
            # One hospital that cannot train alone is a finding, not the end of the comparison.
            failed[name] = str(error)
        # Progress is counted in rounds; with more sites than rounds, most sites complete none.
        before, now = ((n * study.training.rounds) // len(cohorts) for n in (done - 1, done))
        if now > before:
            shown("local", now, None)
    return outcomes, failed, _merge(curves), sites


def _federate(
    study: Study,
    sites: Mapping[str, Site],
    watcher: Watcher,
    checkpoints: Checkpoints,
    engine: Engine,
) -> Outcome:
    outcomes: list[Outcome] = []
    paced = Paced(checkpoints, last=study.training.rounds)
    app = build_server_app(study, checkpoints=paced, observer=watcher, on_outcome=outcomes.append)
    try:
        engine.run(app, sites.values())
    finally:
        paced.flush()
    return outcomes[0]


def _merge(curves: Mapping[str, tuple[CurvePoint, ...]]) -> tuple[CurvePoint, ...]:
    """Curves of single sites as one; a mean over sites is not the metric over all patients."""
    by_round: dict[int, dict[str, float | None]] = {}
    for site, curve in curves.items():
        for point in curve:
            by_round.setdefault(point.round, {})[site] = point.metrics.get(site)
    return tuple(CurvePoint(number, metrics) for number, metrics in sorted(by_round.items()))
