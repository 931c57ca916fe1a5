"""A whole federation in a folder of this machine, run by the commands that people would give.

    found → enrol every hospital → start the service and the daemons → submit → approve → released

Nothing is a stand-in: real keys and certificates, a real port, a process per daemon. Only people
are played: who compare fingerprints, and who approve.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.common.cli import main
from fedward.common.errors import RoundError, error_for_exit_code
from fedward.common.files import write_atomic
from fedward.common.study import Study, load_study, study_hash
from fedward.simulations.rehearsal.hospitals import Hospital
from fedward.simulations.rehearsal.services import Service, free_port

STEWARD = "Rehearsal steward"
_LOOK_S = 0.1
_ENDED = ("released", "failed", "stopped")


def command(*arguments: str | Path) -> Any:
    """Give a `fedward` command in this process; what it printed with `--json`.

    Raises:
        FedwardError: it refused; of the class that its exit code names.
    """
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main([*map(str, arguments), "--json"])
    if code != 0:
        kind = error_for_exit_code(code) or RoundError
        words = complained.getvalue().strip().splitlines()
        name = " ".join(map(str, arguments[:2]))
        raise kind(f"`fedward {name}` failed", hint=words[-1] if words else f"exit code {code}")
    return json.loads(said.getvalue() or "null")


@dataclass(frozen=True)
class Machines:
    """Where the parts of a federation run.

    Attributes:
        host: name or address of the server's machine.
        server: a command that runs another there, as `ip netns exec far-away`; none for here.
        hospital: the same for the daemons' machine.
    """

    host: str = "localhost"
    server: tuple[str, ...] = ()
    hospital: tuple[str, ...] = ()


class Federation:
    """One consortium, its service and its hospitals.

    Args:
        study_file: the study that is rehearsed.
        hospitals: data of each.
        folder: an existing folder; everything is made in it.
        environment: of the processes, added to this one's.
        machines: where the processes run.
    """

    def __init__(
        self,
        study_file: Path,
        hospitals: Sequence[Hospital],
        folder: Path,
        *,
        environment: dict[str, str] | None = None,
        machines: Machines | None = None,
    ) -> None:
        self._machines = machines = machines or Machines()
        self.study_file = study_file
        self.study: Study = load_study(study_file)
        self.hospitals = list(hospitals)
        self.folder = folder
        self.port = free_port()
        self.consortium = folder / "consortium"
        output = folder / "output"
        output.mkdir(exist_ok=True)
        self.server = Service(
            ["server", "run", str(self.consortium)],
            folder=output,
            name="server",
            environment=environment,
            within=machines.server,
        )
        self.daemons = {
            hospital.name: Service(
                ["client", "run", str(self.site(hospital.name))],
                folder=output,
                name=hospital.name,
                environment=environment,
                within=machines.hospital,
            )
            for hospital in hospitals
        }

    def site(self, name: str) -> Path:
        """Folder of one hospital's daemon."""
        return self.folder / "sites" / name

    def found(self, *, patients_key: bytes | None = None) -> None:
        """Make the consortium, and enrol every hospital.

        Args:
            patients_key: the same secret for all hospitals, so that patients are divided into
                training and testing as a simulation divides them; their own if None.
        """
        root = command(
            "server", "init", "--dir", self.consortium, "--name", "Rehearsal",
            "--host", self._machines.host, "--port", str(self.port),
        )["root_fingerprint"]  # fmt: skip
        (self.folder / "sites").mkdir()
        for hospital in self.hospitals:
            self._enrol(hospital, root)
            if patients_key is not None:
                path = self.site(hospital.name) / "identity" / "patients.key"
                write_atomic(path, patients_key)
                path.chmod(0o600)

    def _enrol(self, hospital: Hospital, root: str) -> None:
        folder = self.site(hospital.name)
        made = command("client", "init", "--dir", folder, "--site", hospital.name)
        bundle = folder.parent / f"{hospital.name}.crt"
        command(
            "server", "enroll", self.consortium, made["request"],
            "--fingerprint", made["fingerprint"], "--out", bundle,
        )  # fmt: skip
        command("client", "install", folder, bundle, "--ca-fingerprint", root)
        write_atomic(folder / "site.toml", placed(hospital.site_file))
        write_atomic(folder / "policy.toml", _policy(self.study))
        settings = folder / "client.toml"
        # Whoever rehearses kills the server over and over, and does not want to wait a minute.
        text = settings.read_text(encoding="utf-8")
        write_atomic(settings, text.replace("# longest_retry_s = 60.0", "longest_retry_s = 2.0"))

    def start(self) -> None:
        """Start the service, then every daemon."""
        self.server.start()
        for daemon in self.daemons.values():
            daemon.start()

    def submit(self) -> None:
        """Offer the study to everybody."""
        command("server", "submit", self.consortium, self.study_file)

    def approve(self, name: str, *, within_s: float = 300.0) -> None:
        """Wait until the offer is at a hospital, and approve it there."""
        folder = self.site(name)
        self.until(lambda: bool(command("client", "studies", folder)["studies"]), within_s)
        command(
            "client", "approve", folder, self.study.study.name,
            "--by", STEWARD, "--reason", "rehearsal",
        )  # fmt: skip

    def run(self) -> dict[str, Any] | None:
        """The newest run, as `fedward server runs` lists it."""
        runs: list[dict[str, Any]] = command("server", "runs", self.consortium)
        return runs[-1] if runs else None

    def wait(self, within_s: float, *, watch: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Wait until the run has ended; `watch` is shown it now and then."""
        last: dict[str, Any] = {}

        def ended() -> bool:
            found = self.run()
            if found is not None:
                last.update(found)
                watch(found)
            return last.get("state") in _ENDED

        self.until(ended, within_s)
        return last

    def until(self, condition: Callable[[], bool], within_s: float) -> None:
        """Look until something is so.

        Raises:
            RoundError: it is not so in time.
        """
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end:
                raise RoundError(
                    "the rehearsal stands still", hint=self.server.last_line() or "see its output"
                )
            time.sleep(_LOOK_S)

    def settle(self, within_s: float = 15.0) -> None:
        """Wait until every hospital has closed its ledger for the runs that ended."""

        def closed() -> bool:
            found = [command("client", "budget", self.site(h.name)) for h in self.hospitals]
            runs = [run for b in found for cohort in b["cohorts"] for run in cohort["runs"]]
            return all(run["state"] != "open" for run in runs)

        with contextlib.suppress(RoundError):  # a daemon that is gone closes it when it is back
            self.until(closed, within_s)

    def stop(self) -> None:
        """End every process."""
        for service in (*self.daemons.values(), self.server):
            service.stop()

    def release(self, run: str) -> Path:
        """Folder of the released model."""
        return self.consortium / "runs" / run / "release"

    @property
    def hash(self) -> str:
        """Of the study."""
        return study_hash(self.study)


def placed(site_file: Path) -> str:
    """A `site.toml` for another folder: relative paths become absolute."""

    def absolute(match: re.Match[str]) -> str:
        path = match[3]
        if path.startswith(("/", "~", "$")):
            return match[0]
        return f"{match[1]}{match[2]}{site_file.parent / path}{match[2]}"

    text = site_file.read_text(encoding="utf-8")
    return re.sub(r"(?m)^(\s*(?:path|labels)\s*=\s*)([\"'])(.*?)\2", absolute, text)


def _policy(study: Study) -> str:
    """What a hospital that takes part in just this study would write."""
    lines = [f"approvers = [{json.dumps(STEWARD)}]", f'studies = ["{study_hash(study)}"]']
    lines += [f"min_sites_at_least = {study.aggregation.min_sites}"]
    lines += [f"min_cell_at_least = {study.evaluation.min_cell}"]
    if study.private:
        lines += [
            f"max_epsilon_per_study = {study.privacy.epsilon}",
            f"max_epsilon_total = {study.privacy.epsilon}",
            f"delta = {study.privacy.delta}",
        ]
    else:
        lines += ["require_dp = false"]
    return "\n".join(lines) + "\n"
