"""A small federation of real processes, and everything that must hold of a run that has ended.

with running(folder, study_text(rounds=40)) as federation:
    federation.submit()
    approve_everywhere(federation)
    run = released(federation, within_s=100.0)
check_run(federation, run)
assert difference(federation, run) == 0.0
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedward.client.loading import load_cohort
from fedward.client.site_config import load_site_config
from fedward.client.workspace import Workspace
from fedward.common.records import TRAIN
from fedward.server.checkpoints import CheckpointFolder, NoCheckpoints, RunState
from fedward.server.flower_app import Unwatched, build_server_app
from fedward.server.registry import Registry
from fedward.server.rounds import Outcome
from fedward.simulations.arms import make_sites
from fedward.simulations.engines.loop import run_in_loop
from fedward.simulations.rehearsal.federation import Federation, command
from fedward.simulations.rehearsal.hospitals import Hospital

from .conftest import QUIET, STUDY, write_site

NAMES = ("east", "north", "south")
PATIENTS = 160
_PRIVATE = 'mode = "dp"\nepsilon = 8.0\ndelta = 1e-3'


def study_text(
    *, rounds: int, steps: int = 5, private: bool = False, min_sites: int = 1, more: str = ""
) -> str:
    """A study of a few hundred parameters, whose rounds take a moment.

    Args:
        rounds: how many.
        steps: of each hospital in a round.
        private: whether with differential privacy.
        min_sites: the quorum.
        more: lines of `[evaluation]`.
    """
    text = STUDY.partition("[simulation]")[0]
    text = text.replace("rounds = 3", f"rounds = {rounds}")
    text = text.replace("local_steps = 5", f"local_steps = {steps}")
    text = text.replace("[evaluation]", f"[evaluation]\n{more}")
    if private:
        text = text.replace('mode = "none"', _PRIVATE)
    return text + f"\n[aggregation]\nmin_sites = {min_sites}\n"


@contextmanager
def running(
    folder: Path,
    text: str,
    *,
    names: tuple[str, ...] = NAMES,
    before: Callable[[Federation], None] = lambda _federation: None,
) -> Iterator[Federation]:
    """A federation that is founded and started; every process ends with the context.

    Args:
        folder: an existing one.
        text: of the study.
        names: of the hospitals.
        before: is called when everything is founded and nothing is started.
    """
    study, data = folder / "study.toml", folder / "data"
    study.write_text(text)
    data.mkdir()
    for seed, name in enumerate(names):
        write_site(data, name, seed, PATIENTS)
    hospitals = [Hospital(name, data / f"{name}.toml", "given") for name in names]
    federation = Federation(study, hospitals, folder, environment=QUIET)
    try:
        federation.found()
        for name in names:
            change(federation.site(name) / "client.toml", "# nice = 10  ", "nice = 0  ")
        before(federation)
        federation.start()
        yield federation
    finally:
        federation.stop()


def change(path: Path, old: str, new: str) -> None:
    """Replace a text in a file, where it must be."""
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new))


def approve_everywhere(federation: Federation) -> None:
    """Approve the study at every hospital."""
    for hospital in federation.hospitals:
        federation.approve(hospital.name)


def reached(federation: Federation, number: int, *, within_s: float = 300.0) -> None:
    """Wait until a round is checkpointed."""

    def there() -> bool:
        files = federation.consortium.glob("runs/*/checkpoints/round-*.safetensors")
        return any(int(path.stem.removeprefix("round-")) >= number for path in files)

    federation.until(there, within_s)


def released(federation: Federation, *, within_s: float) -> str:
    """Wait for the end of the run, which must be a good one; its id."""
    ended = federation.wait(within_s, watch=lambda _run: None)
    assert ended["state"] == "released", ended["reason"]
    federation.settle()
    return str(ended["run"])


def final(federation: Federation, run: str) -> RunState:
    """The last checkpoint."""
    state = CheckpointFolder(federation.consortium / "runs" / run / "checkpoints").newest()
    assert state is not None
    return state


def difference(federation: Federation, run: str) -> float:
    """Largest difference of a weight from the simulation of the very same patients."""
    study, cohorts = federation.study, []
    for hospital in federation.hospitals:
        folder = federation.site(hospital.name)
        key = (folder / "identity" / "patients.key").read_bytes()
        cohorts.append(load_cohort(study, load_site_config(folder / "site.toml"), key=key))
    outcomes: list[Outcome] = []
    app = build_server_app(
        study, checkpoints=NoCheckpoints(), observer=Unwatched(), on_outcome=outcomes.append
    )
    run_in_loop(app, make_sites(study, cohorts, Workspace()).values())
    simulated, weights = outcomes[0].weights, final(federation, run).weights
    assert list(simulated) == list(weights)
    assert all(np.isfinite(values).all() for values in weights.values())
    return max(float(np.abs(weights[name] - simulated[name]).max()) for name in weights)


def check_run(federation: Federation, run: str, *, everybody: bool) -> None:
    """What must hold of every run that was released, whatever happened to it.

    Args:
        federation: whose.
        run: which.
        everybody: whether every hospital must be in every round.
    """
    _check_rounds(federation, run, everybody=everybody)
    root = federation.consortium / "identity" / "root.crt"
    release = command("server", "verify-release", federation.release(run), "--root", root)
    assert release["ok"]
    assert command("server", "log", "verify", federation.consortium)["ok"]
    for hospital in federation.hospitals:
        assert command("client", "log", "verify", federation.site(hospital.name))["ok"]


def _check_rounds(federation: Federation, run: str, *, everybody: bool) -> None:
    numbers = list(range(1, federation.study.training.rounds + 1))
    names = tuple(sorted(hospital.name for hospital in federation.hospitals))
    state = final(federation, run)
    with Registry.open(federation.consortium / "registry.sqlite") as registry:
        rounds, receipts = registry.rounds(run), registry.receipts(run)
    assert [one.round for one in rounds] == numbers
    assert [one.round for one in state.history] == numbers
    for one, kept in zip(rounds, state.history, strict=True):
        assert one.participants == kept.participants
        assert one.model_sha256 == kept.notes["model"]
        assert not everybody or one.participants == names
    # A receipt for every contribution, and for each just one.
    proven = Counter((r.round, r.site) for r in receipts if r.action == TRAIN)
    assert set(proven.values()) == {1}
    wanted = {(one.round, site) for one in rounds for site in one.participants}
    assert wanted <= set(proven)


def entries(path: Path) -> list[dict[str, Any]]:
    """Entries of an audit log, unchecked."""
    return [json.loads(line) for line in path.read_text().splitlines()]
