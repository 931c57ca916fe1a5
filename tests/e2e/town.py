"""A federation on this machine for tests: real processes, made patients, several studies.

    with Town.founded(folder) as town:
        study = town.offer("first", rounds=3)
        town.approve_at(study, *town.names)
        run = town.ended(study)

Daemons and server are quick to notice absence here; the rest is as it is in a hospital.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.client.ledger import Ledger
from fedward.common.errors import FedwardError, StateError
from fedward.common.files import write_atomic
from fedward.common.study import Study, load_study, study_hash
from fedward.simulations.rehearsal.federation import Federation, command
from fedward.simulations.rehearsal.hospitals import Hospital, prepare_hospitals

NAMES = ("hospital-1", "hospital-2", "hospital-3")
HEARTBEAT_S = 1.0
ABSENCE_S = 5.0
LIMIT_S = 360.0
"""Only so that a test that hangs ends."""
STEWARD = "Dr A"
QUIET = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}

_STUDY = """
[study]
name = "{name}"
title = "A small study"
purpose = "Try fedward out"
contact = "nobody@example.org"
version = "{version}"

[task]
kind = "binary"
target = "died"
labels = ["no", "yes"]

[data]
modality = "tabular"

[[data.features]]
name = "age"
min = 0.0
max = 110.0

[[data.features]]
name = "weight"
min = 0.0
max = 200.0

[preprocess]
standardise = "bounds"
impute = "bounds"

[model]
name = "logistic"

[training]
rounds = {rounds}
local_steps = {local_steps}
batch_size = 20
learning_rate = 0.5
seed = 3

[algorithm]
name = "fedavg"

[privacy]
{privacy}

[aggregation]
weights = "equal"
min_sites = {min_sites}
deadline_s = {deadline_s}
max_update_norm = 50.0

[evaluation]
bootstrap = 50
"""
_DEFAULTS = {"version": 1, "rounds": 3, "local_steps": 3, "min_sites": 2, "deadline_s": 90.0}
_PRIVATE = 'mode = "dp"\nunit = "patient"\nepsilon = {epsilon}\ndelta = 1e-3\nmax_grad_norm = 1.0'


def study_text(name: str, *, epsilon: float | None = None, **values: Any) -> str:
    """A study file; see `_DEFAULTS` for what can be given."""
    privacy = 'mode = "none"' if epsilon is None else _PRIVATE.format(epsilon=epsilon)
    return _STUDY.format(name=name, privacy=privacy, **{**_DEFAULTS, **values})


@dataclass(frozen=True)
class Offered:
    """A study that was submitted."""

    study: Study
    hash: str
    file: Path

    @property
    def name(self) -> str:
        return self.study.study.name


class Town(Federation):
    """Three hospitals and their server."""

    @classmethod
    @contextmanager
    def founded(cls, folder: Path, *, start: bool = True) -> Iterator[Town]:
        """Everything enrolled, and running if wished; ends with the context."""
        folder.mkdir(exist_ok=True)
        file = folder / "base.toml"
        file.write_text(study_text("base"))
        data = folder / "data"
        data.mkdir()
        hospitals = prepare_hospitals(load_study(file), folder, data, sites=len(NAMES), made=True)
        town = cls(file, hospitals, folder, environment=QUIET)
        town.found()
        town._hasten()
        for name in NAMES:
            town.policy(name)
        try:
            if start:
                town.start()
            yield town
        finally:
            for service in (*town.daemons.values(), town.server):
                if service.pid is not None:  # a stopped process ignores all but SIGKILL
                    os.kill(service.pid, signal.SIGCONT)
            town.stop()

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES

    def hospital(self, name: str) -> Hospital:
        return next(h for h in self.hospitals if h.name == name)

    def _hasten(self) -> None:
        """Absence is noticed within seconds, and who was away is back within one."""
        beat = f"heartbeat_s = {HEARTBEAT_S}"
        _put(self.consortium / "server.toml", beat, f"absence_s = {ABSENCE_S}")
        for name in NAMES:
            settings = self.site(name) / "client.toml"
            _put(settings, beat, "retry_s = 0.2", "longest_retry_s = 0.5")

    # --- people -----------------------------------------------------------------------------------

    def policy(self, site: str, **rules: Any) -> None:
        """Write a hospital's policy anew: it allows what these tests do, but for `rules`."""
        values = {
            "approvers": [STEWARD, "Dr B"],
            "require_dp": False,
            "delta": 1e-3,
            "max_epsilon_per_study": 8.0,
            "max_epsilon_total": 8.0,
            **rules,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        write_atomic(self.site(site) / "policy.toml", "\n".join(lines) + "\n")

    def offer(self, name: str, *, sites: Iterable[str] | None = None, **values: Any) -> Offered:
        """Submit a study."""
        file = self.folder / f"{name}-{values.get('version', 1)}.toml"
        file.write_text(study_text(name, **values))
        invited = [] if sites is None else ["--sites", ",".join(sites)]
        command("server", "submit", self.consortium, file, *invited)
        study = load_study(file)
        return Offered(study, study_hash(study), file)

    def approve_at(self, offered: Offered, *sites: str, by: str = STEWARD) -> None:
        """Wait until the offer is there, and approve it."""
        for site in sites:
            self.decide(offered, site, "approve", by=by)

    def decide(
        self, offered: Offered, site: str, what: str, *, by: str = STEWARD, reason: str = "test"
    ) -> Any:
        """Give a steward's command at a hospital."""
        folder = self.site(site)
        self.until(lambda: (folder / "state/studies" / f"{offered.hash}.json").exists(), LIMIT_S)
        return command("client", what, folder, offered.hash, "--by", by, "--reason", reason)

    # --- what is seen -----------------------------------------------------------------------------

    def runs_of(self, offered: Offered) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = command("server", "runs", self.consortium)
        return [run for run in found if run["study"] == offered.hash]

    def begun(self, offered: Offered, *, rounds: int = 0) -> dict[str, Any]:
        """The newest run, as soon as it has counted so many rounds."""
        return self.seen(offered, lambda run: run["round"] >= rounds)

    def ended(self, offered: Offered, state: str = "released") -> dict[str, Any]:
        """The newest run, when it has ended, with its history; it must have ended so."""
        over = ("released", "failed", "stopped")
        run = self.seen(offered, lambda run: run["state"] in over)
        shown = self.shown(run["run"])
        assert shown["state"] == state, shown
        return shown

    def seen(self, offered: Offered, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The newest run of a study, when something is so of it."""
        last: list[dict[str, Any]] = []

        def so() -> bool:
            last[:] = self.runs_of(offered)
            return bool(last) and condition(last[-1])

        self.until(so, LIMIT_S)
        return last[-1]

    def shown(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = command("server", "run-show", self.consortium, run)
        return found

    def answers(self, offered: Offered) -> dict[str, str | None]:
        """Each hospital's answer, as the server has it."""
        studies = command("server", "status", self.consortium)["studies"]
        found = next(study for study in studies if study["study"] == offered.hash)
        answers: dict[str, str | None] = found["answers"]
        return answers

    def waits_for(self, run: str) -> str:
        """What a run waits for, in words."""
        service = command("server", "status", self.consortium)["service"]
        return str(service.get("runs", {}).get(run, {}).get("waiting", ""))

    def status(self, site: str) -> dict[str, Any]:
        """What a daemon says of itself, running or not."""
        try:
            found: dict[str, Any] = json.loads((self.site(site) / "state/status.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def refusals(self, site: str, offered: Offered) -> list[str]:
        """Why a daemon refused tasks of a study, in its own words."""
        found = self.status(site).get("refusals", [])
        return [refusal["reason"] for refusal in found if refusal["study"] == offered.hash]

    def budget(self, site: str) -> dict[str, Any]:
        found: dict[str, Any] = command("client", "budget", self.site(site))
        return found

    def ledger_runs(self, site: str) -> dict[str, bool]:
        """Runs in a hospital's ledger, by name: whether something is still set aside."""
        with Ledger(self.site(site) / "state/ledger.sqlite") as ledger:
            return {run.run: run.open for run in ledger.book.runs.values()}

    def output(self, name: str) -> str:
        """All that a process printed."""
        return (self.folder / "output" / f"{name}.out").read_text()

    def audit(self, folder: Path) -> list[dict[str, Any]]:
        """Entries of an audit log, unchecked."""
        return [json.loads(line) for line in folder.read_text().splitlines()]

    def stop_runs(self) -> None:
        """Stop every run that goes on, and wait until none does."""

        def going() -> list[str]:
            runs = command("server", "runs", self.consortium)
            return [r["run"] for r in runs if r["state"] in ("running", "evaluating")]

        for run in going():
            with suppress(StateError):  # it ended meanwhile
                command("server", "stop", self.consortium, run)
        self.until(lambda: not going(), LIMIT_S)

    # --- processes --------------------------------------------------------------------------------

    def workers(self, site: str) -> list[int]:
        """Process ids of a daemon's training processes."""
        pid = self.daemons[site].pid
        found: list[int] = []
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(word) for word in task.read_text().split()]
        return found

    def pause(self, site: str) -> None:
        """The hospital's machine stands still."""
        pid = self.daemons[site].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)

    def go_on(self, site: str) -> None:
        pid = self.daemons[site].pid
        if pid is not None:
            os.kill(pid, signal.SIGCONT)

    def connected(self, site: str) -> bool:
        service = command("server", "status", self.consortium)["service"]
        return bool(service.get("sites", {}).get(site, {}).get("connected"))


def refused(*arguments: str | Path) -> FedwardError:
    """The refusal of a command that must refuse."""
    try:
        answer = command(*arguments)
    except FedwardError as error:
        return error
    raise AssertionError(f"it was not refused: {answer}")


def _put(path: Path, *settings: str) -> None:
    """Set keys of `[link]`, whatever they are set to."""
    keys = {setting.split()[0] for setting in settings}
    lines = [line for line in path.read_text().splitlines() if line.split(" ")[0] not in keys]
    where = lines.index("[link]") + 1
    path.write_text("\n".join([*lines[:where], *settings, *lines[where:]]) + "\n")
