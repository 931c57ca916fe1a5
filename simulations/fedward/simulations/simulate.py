"""`fedward simulate`: a whole study over many virtual hospitals on one machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from fedward.client.cohort import Cohort
from fedward.client.site import Site
from fedward.client.workspace import Workspace
from fedward.common.errors import Interrupted
from fedward.common.study import Study, load_study, simulation_hash
from fedward.server.checkpoints import CheckpointFolder
from fedward.simulations.arms import (
    arms_of,
    make_site,
    make_sites,
    run_arm,
    study_of_arm,
)
from fedward.simulations.assemble import Findings, assemble
from fedward.simulations.cohorts import load_cohorts
from fedward.simulations.engines.choice import RAY, Engine, EngineName
from fedward.simulations.engines.cluster import session
from fedward.simulations.fingerprint import fingerprint
from fedward.simulations.judging import cross_site, judge_arm
from fedward.simulations.outputs import check_output, write_outputs
from fedward.simulations.report.results import Results
from fedward.simulations.run_folder import ENGINE, RunFolder

_TWO_THREADS_FROM = 48 * 48
"""Pixels."""


class Listener(Protocol):
    """Is told how far a simulation is."""

    def on_round(self, arm: str, round_number: int, metric: float | None) -> None:
        """A round of an arm is finished; `metric` is the headline metric over all sites."""
        ...


class Silent:
    """A listener that does not listen."""

    def on_round(self, arm: str, round_number: int, metric: float | None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Simulation:
    """One simulated experiment.

    Attributes:
        study: with a `[simulation]` section.
        folder: that the paths of that section are relative to.
        out: where results go.
        resume: continue what an interrupted run left in `out`.
        engine: what computes the sites.
        ray_address: of the cluster that computes the engine `ray`; see `Engine`.
    """

    study: Study
    folder: Path
    out: Path
    resume: bool = False
    engine: EngineName = "auto"
    ray_address: str | None = None

    @staticmethod
    def of(
        path: Path,
        out: Path,
        *,
        seed: int | None = None,
        resume: bool = False,
        engine: EngineName = "auto",
        ray_address: str | None = None,
    ) -> Simulation:
        """The simulation that a study file describes, with another seed if given."""
        study = load_study(path)
        if seed is not None:
            training = study.training.model_copy(update={"seed": seed})
            study = study.model_copy(update={"training": training})
        return Simulation(study, path.parent, out, resume, engine, ray_address)

    def rounds(self) -> list[tuple[str, int]]:
        """Arms and their number of rounds, in the order in which they run."""
        return [(arm, study_of_arm(self.study, arm).training.rounds) for arm in arms_of(self.study)]

    def run(self, listener: Listener | None = None) -> Results:
        """Run all arms and write the outputs.

        Returns:
            What was written to `results.json`.

        Raises:
            FedwardError: data, privacy, training or output refuse; nothing half-written is left
                behind except the checkpoints of completed rounds. A run that could not begin
                leaves the output folder as it was.
            Interrupted: Ctrl-C; says how to continue.
        """
        started = time.monotonic()
        check_output(self.out)
        if self.engine == RAY:
            session.check(session.address_of(self.ray_address))
        folder = RunFolder(self.out)
        with folder.held():
            if self.resume:
                folder.check_study(simulation_hash(self.study))
            torch.set_num_threads(_threads(self.study))
            cohorts = load_cohorts(self.study, self.folder, cache=folder.cache)
            digests = {cohort.site: fingerprint(cohort) for cohort in cohorts}
            if self.resume:
                folder.check_data(digests)
            workspace = Workspace()
            # The last thing that can be refused: from here on, the run can begin.
            sites = make_sites(self.study, cohorts, workspace)
            folder.begin(simulation_hash(self.study), digests, resume=self.resume)
            try:
                found = self._measure(cohorts, sites, workspace, listener or Silent(), started)
                results = assemble(found)
                write_outputs(self.out, found, results)
            except KeyboardInterrupt as stop:
                raise Interrupted(
                    "stopped by Ctrl-C, every completed round is kept",
                    hint="give the same command again with --resume to continue",
                ) from stop
        return results

    def _measure(
        self,
        cohorts: Sequence[Cohort],
        sites: Mapping[str, Site],
        workspace: Workspace,
        listener: Listener,
        started: float,
    ) -> Findings:
        open_study = study_of_arm(self.study, "federated_no_dp")
        judges = sites  # without privacy nobody is charged for what a simulation looks at
        if self.study.private:
            judges = {c.site: make_site(open_study, c.site, [c], workspace) for c in cohorts}
        kept = RunFolder(self.out).checkpoints
        arms = [
            run_arm(
                self.study,
                arm,
                cohorts,
                sites=sites if arm == "federated" else None,
                judges=judges,
                workspace=workspace,
                checkpoints=CheckpointFolder(kept / arm),
                shown=listener.on_round,
                engine=Engine(self.engine, memo=kept / arm / ENGINE, ray_address=self.ray_address),
            )
            for arm in arms_of(self.study)
        ]
        wants_matrix = self.study.simulation is not None and self.study.simulation.cross_site
        return Findings(
            study=self.study,
            cohorts=cohorts,
            arms=arms,
            judgements={arm.name: judge_arm(arm, judges) for arm in arms},
            cross_site=cross_site(self.study, arms, judges) if wants_matrix else {},
            seconds=time.monotonic() - started,
        )


def _threads(study: Study) -> int:
    """Threads of torch: never more than the environment allows (OMP_NUM_THREADS).

    Two pay from pictures of about 64 × 64 on (1.6 times as fast). Below that they gain nothing, and
    where other processes want the cores they wait for each other: 30 times as slow was seen.
    """
    image = study.preprocess.image
    large = image is not None and image.height * image.width >= _TWO_THREADS_FROM
    return min(2, torch.get_num_threads()) if large else 1
