"""A rehearsal from beginning to end, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedward.client.loading import load_cohort
from fedward.client.site_config import load_site_config
from fedward.client.workspace import Workspace
from fedward.common.errors import FedwardError, OutputError, RoundError
from fedward.common.study import load_study
from fedward.common.tensors import Weights
from fedward.server.checkpoints import CheckpointFolder, NoCheckpoints
from fedward.server.flower_app import Unwatched, build_server_app
from fedward.server.rounds import Outcome
from fedward.simulations.arms import make_sites
from fedward.simulations.engines.loop import run_in_loop
from fedward.simulations.rehearsal.chaos import Chaos
from fedward.simulations.rehearsal.federation import Federation, command
from fedward.simulations.rehearsal.hospitals import Hospital, prepare_hospitals

Said = Callable[[str], None]
"""Told what happens, a line at a time."""
_ROUND_S = 60.0
"""A round of a rehearsal may take this long, starting everything anew included."""


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal found.

    Attributes:
        study: hash of the study.
        run: name of the run.
        state: how it ended: released, failed or stopped.
        reason: why, if it did not end well.
        rounds: that were done.
        hospitals: where each one's patients came from.
        epsilon: spent at each hospital, by its ledger; empty without differential privacy.
        difference: largest difference of a weight from the simulation of the same study; None under
            differential privacy, where noise differs, and if the run did not end well.
        verified: logs and releases that verify, and those that do not and why.
        kills: what chaos did.
        seconds: from the first round's offer to the end.
        folder: where everything is.
    """

    study: str
    run: str
    state: str
    reason: str
    rounds: int
    hospitals: Mapping[str, str]
    epsilon: Mapping[str, float]
    difference: float | None
    verified: Mapping[str, str]
    kills: Sequence[str]
    seconds: float
    folder: str
    problems: Sequence[str] = field(default=())

    @property
    def fine(self) -> bool:
        """Whether a real federation may follow."""
        return not self.problems

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.state} after {self.rounds} rounds in {self.seconds:.0f} s ({self.run})"]
        if self.difference is not None:
            lines.append(f"largest difference from the simulation's model: {self.difference:.1g}")
        lines += [f"{site}: spent ε = {spent:.2f}" for site, spent in self.epsilon.items()]
        if self.kills:
            lines.append(f"survived {len(self.kills)} kills")
        lines += [f"{what}: {word}" for what, word in self.verified.items()]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {**asdict(self), "fine": self.fine}


@dataclass(frozen=True)
class Plan:
    """What to rehearse.

    Attributes:
        study_file: the study.
        folder: for everything; must be new or empty.
        sites: how many hospitals; None for as many as the study's simulation has.
        made: make patients, even if the study says where there are some.
        kills: how often something is killed and started again.
        seed: of chaos.
    """

    study_file: Path
    folder: Path
    sites: int | None = None
    made: bool = False
    kills: int = 0
    seed: int = 0


def rehearse(plan: Plan, said: Said) -> Rehearsed:
    """Rehearse a study.

    Raises:
        FedwardError: something could not begin, or stood still. Every process is ended.
    """
    study = load_study(plan.study_file)
    folder = _fresh(plan.folder)
    (folder / "data").mkdir()
    hospitals = prepare_hospitals(
        study, plan.study_file.parent, folder / "data", sites=plan.sites, made=plan.made
    )
    said(f"{len(hospitals)} hospitals, patients {_origins(hospitals)}")
    federation = Federation(plan.study_file, hospitals, folder)
    with ExitStack() as stack:
        stack.callback(federation.stop)
        federation.found()
        said(f"founded a consortium and enrolled them; the service listens on {federation.port}")
        federation.start()
        said("the service and all daemons are up")
        federation.submit()
        for hospital in hospitals:
            federation.approve(hospital.name)
        said("submitted and approved everywhere")
        begun = time.monotonic()
        with _chaos(federation, plan) as chaos:
            ended = _follow(federation, said, plan.kills)
        seconds = time.monotonic() - begun
        federation.settle()
    return _judge(federation, ended, chaos, seconds)


@contextmanager
def _chaos(federation: Federation, plan: Plan) -> Iterator[Chaos]:
    """Kill as many things as planned meanwhile; everything runs again afterwards."""
    chaos = Chaos(federation, seed=plan.seed, kills=plan.kills)
    chaos.start()
    try:
        yield chaos
    finally:
        chaos.stop()


def _fresh(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty", hint="choose a new folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _origins(hospitals: Sequence[Hospital]) -> str:
    words = {
        "given": "as the study's simulation has them",
        "divided": "divided as in the study's simulation",
        "made": "made from the schema",
    }
    return words[hospitals[0].origin]


def _follow(federation: Federation, said: Said, kills: int) -> dict[str, Any]:
    shown: list[tuple[str, int]] = []

    def watch(run: dict[str, Any]) -> None:
        now = (str(run["state"]), int(run["round"]))
        if not shown or shown[-1] != now:
            shown.append(now)
            said(f"{now[0]}: round {now[1]} of {run['rounds']}")

    rounds = federation.study.training.rounds
    return federation.wait(_ROUND_S * (rounds + kills + 5), watch=watch)


def _judge(
    federation: Federation, ended: dict[str, Any], chaos: Chaos, seconds: float
) -> Rehearsed:
    run = str(ended["run"])
    released = ended["state"] == "released"
    epsilon = _spent(federation, run) if federation.study.private else {}
    difference = _difference(federation, run) if released and not epsilon else None
    verified = _verify(federation, run, released=released)
    problems = [f"{what}: {word}" for what, word in verified.items() if word != "ok"]
    problems += chaos.problems()
    if not released:
        problems.append(f"the run {ended['state']}: {ended['reason']}")
    if difference is not None and not difference <= 1e-6:
        problems.append(f"the model differs from the simulation's by {difference:.2g}")
    budget = federation.study.privacy.epsilon
    if budget is not None:
        over = [site for site, spent in epsilon.items() if spent > budget]
        problems += [f"{site} spent more than the study promises" for site in over]
    return Rehearsed(
        study=federation.hash,
        run=run,
        state=str(ended["state"]),
        reason=str(ended["reason"]),
        rounds=int(ended["round"]),
        hospitals={hospital.name: hospital.origin for hospital in federation.hospitals},
        epsilon=epsilon,
        difference=difference,
        verified=verified,
        kills=[str(event) for event in chaos.events],
        seconds=seconds,
        folder=str(federation.folder),
        problems=problems,
    )


def _spent(federation: Federation, run: str) -> dict[str, float]:
    """ε of the run at each hospital, by its ledger."""
    found: dict[str, float] = {}
    for hospital in federation.hospitals:
        budget = command("client", "budget", federation.site(hospital.name))
        spent = [
            entry["spent"]
            for cohort in budget["cohorts"]
            for entry in cohort["runs"]
            if entry["run"] == run
        ]
        found[hospital.name] = max(spent, default=0.0)
    return found


def _verify(federation: Federation, run: str, *, released: bool) -> dict[str, str]:
    checks: dict[str, list[str | Path]] = {
        "server's log": ["server", "log", "verify", federation.consortium],
    }
    for hospital in federation.hospitals:
        folder = federation.site(hospital.name)
        checks[f"log of {hospital.name}"] = ["client", "log", "verify", folder]
    if released:
        root = federation.consortium / "identity" / "root.crt"
        release = federation.release(run)
        checks["release"] = ["server", "verify-release", release, "--root", root]
    return {what: _outcome(arguments) for what, arguments in checks.items()}


def _outcome(arguments: Sequence[str | Path]) -> str:
    try:
        command(*arguments)
    except FedwardError as error:
        return error.hint
    return "ok"


def _difference(federation: Federation, run: str) -> float:
    """How far the federation's model is from that of the same hospitals in this process."""
    state = CheckpointFolder(federation.consortium / "runs" / run / "checkpoints").newest()
    if state is None:
        raise RoundError("the run has no checkpoint", hint="see the server's output")
    simulated = _simulate(federation)
    return max(
        (float(np.abs(values - simulated[name]).max()) for name, values in state.weights.items()),
        default=0.0,
    )


def _simulate(federation: Federation) -> Weights:
    study = federation.study
    cohorts = []
    for hospital in federation.hospitals:
        folder = federation.site(hospital.name)
        key = (folder / "identity" / "patients.key").read_bytes()
        cohorts.append(load_cohort(study, load_site_config(folder / "site.toml"), key=key))
    outcomes: list[Outcome] = []
    app = build_server_app(
        study, checkpoints=NoCheckpoints(), observer=Unwatched(), on_outcome=outcomes.append
    )
    run_in_loop(app, make_sites(study, cohorts, Workspace()).values())
    return outcomes[0].weights
