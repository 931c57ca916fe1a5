"""A federation whose clock is put forward while it works: the driver of `test_soak`.

    soak.py FOLDER SECONDS HOURS     writes FOLDER/report.json

The time of day of every process, of this one too, is ahead of the machine's (`time_of_day.c`): half
an hour is added every few seconds, as an administrator may. What fedward measures and waits by, the
monotonic clock, runs as always. Certificates are issued for a day, so they come near their ends
again and again; beats are short, so that they are looked at every second or two.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedward.common.errors import FedwardError
from fedward.common.identity import read_certificate
from fedward.common.study import load_study
from fedward.simulations.rehearsal.federation import STEWARD, Federation, command
from fedward.simulations.rehearsal.hospitals import Hospital, prepare_hospitals
from fedward.simulations.rehearsal.services import Service

STEP_H = 0.5
LOOK_S = 0.5
WARM_UP = 100
"""Rounds after the last restart, in which caches fill."""
ROUNDS = 300
"""At least so many are looked at."""
LONGEST = 3.0
"""Times the seconds: a busy machine may take longer."""
REPOSITORY = Path(__file__).parents[2]
NEWER = "99.0.0"
STUDY = """
[study]
name = "NAME"
title = "A long time"
purpose = "See what grows"
contact = "nobody@example.org"

[task]
kind = "binary"
target = "died"
labels = ["no", "yes"]

[data]
modality = "tabular"

[[data.features]]
name = "age"
unit = "years"
min = 0.0
max = 110.0

[preprocess]
standardise = "bounds"

[model]
name = "mlp"
hidden = [16]

[training]
rounds = ROUNDS
local_steps = 1
batch_size = 8
learning_rate = 0.01
seed = 1

[algorithm]
name = "fedavg"

[privacy]
mode = "none"

[aggregation]
min_sites = 2
deadline_s = 60

[evaluation]
bootstrap = 50
"""
POLICY = f"""
approvers = ["{STEWARD}"]
require_dp = false
min_sites_at_least = 2
"""


class Clock:
    """The time of day of all processes, put forward step by step in a thread.

    Args:
        file: shared with all of them.
        seconds: real ones, for all of it.
        hours: to be passed in them.
    """

    def __init__(self, file: Path, seconds: float, hours: float) -> None:
        self._file = file
        self._every_s = seconds * STEP_H / hours
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.ahead_s = 0.0
        self.held = False
        """Whether it stands, so that no machine's slowness at starting things costs hours."""

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            if self.held:
                continue
            self.ahead_s += STEP_H * 3600.0
            with self._file.open("r+b") as file:  # in place: all have it mapped
                file.write(struct.pack("q", int(self.ahead_s)))

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Let it stand."""
        self._end.set()
        self._thread.join()


def installed(folder: Path, *, version: str, protocol: int | None = None) -> dict[str, str]:
    """An environment in which another version of fedward is installed; its code is this one's.

    Args:
        folder: to be made.
        version: that it says it has.
        protocol: of the link, that it speaks; as this one's if None.
    """
    about = folder / f"fedward-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fedward\nVersion: {version}\n")
    if protocol is not None:
        copy = folder / "fedward" / "common"
        shutil.copytree(REPOSITORY / "common" / "fedward" / "common", copy,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        kinds = copy / "wire" / "kinds.py"
        text, count = re.subn(
            r"PROTOCOL: Final = \d+", f"PROTOCOL: Final = {protocol}", kinds.read_text()
        )
        if count != 1:
            raise ValueError("kinds.py does not say its protocol as it did")
        kinds.write_text(text)
    return {"PYTHONPATH": str(folder)}


class Soak:
    """The federation, what is done to it, and what is seen of it.

    Args:
        folder: empty, for everything.
        seconds: real ones.
        hours: that pass in them.
    """

    def __init__(self, folder: Path, seconds: float, hours: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.hours = hours
        self.file = self._study("long", 100_000)
        (folder / "data").mkdir()
        hospitals = prepare_hospitals(load_study(self.file), folder, folder / "data", sites=4)
        self.late: Hospital = hospitals[3]
        self.federation = Federation(self.file, hospitals[:3], folder)
        self.clock = Clock(Path(os.environ["FEDWARD_AHEAD"]), seconds, hours)
        self.samples: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.said: dict[str, Any] = {}
        self.shorts: list[str] = []
        self._begun = time.monotonic()
        self._revoked: set[str] = set()

    def _study(self, name: str, rounds: int) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(STUDY.replace("NAME", name).replace("ROUNDS", str(rounds)))
        return path

    # --- what is done -----------------------------------------------------------------------------

    def found(self) -> None:
        """Set the federation up, and begin the long study."""
        federation, names = self.federation, self.federation.hospitals
        command(
            "server", "init", "--dir", federation.consortium, "--name", "Soak",
            "--host", "localhost", "--port", str(federation.port),
        )  # fmt: skip
        _set(
            federation.consortium / "server.toml",
            ("heartbeat_s = 20.0", "heartbeat_s = 0.5"),
            ("absence_s = 90.0", "absence_s = 5.0"),
            ("messages_per_s = 50.0", "messages_per_s = 1000.0"),
            ("leaf_days = 90", "leaf_days = 1"),
        )
        self.rotate()  # its first certificate was for longer
        (self.folder / "sites").mkdir(exist_ok=True)
        for hospital in names:
            self._enrol(hospital)
        federation.start()
        federation.submit()
        for hospital in names:
            federation.approve(hospital.name)

    def _enrol(self, hospital: Hospital) -> None:
        self.federation._enrol(hospital, self._root())
        folder = self.federation.site(hospital.name)
        (folder / "policy.toml").write_text(POLICY)
        _set(
            folder / "client.toml",
            ("runs = 2 ", "runs = 3 "),
        )

    def _root(self) -> str:
        return read_certificate(
            (self.federation.consortium / "identity" / "root.crt").read_bytes()
        ).fingerprint

    def rotate(self) -> None:
        """A new key for the server."""
        command("server", "rotate", self.federation.consortium)

    def enrol(self) -> None:
        """One more hospital."""
        self.federation.hospitals.append(self.late)
        self._enrol(self.late)
        name = self.late.name
        self.federation.daemons[name] = self._daemon(name)
        self.federation.daemons[name].start()

    def revoke(self) -> None:
        """One hospital less; its daemon ends by itself."""
        name = self.federation.hospitals[2].name
        command("server", "revoke", self.federation.consortium, name, "--reason", "soak")
        self._revoked.add(name)
        daemon = self.federation.daemons[name]
        self._until(lambda: not daemon.alive, 120.0)

    def _daemon(self, name: str, environment: dict[str, str] | None = None) -> Service:
        return Service(
            ["client", "run", str(self.federation.site(name))],
            folder=self.folder / "output",
            name=name,
            environment=environment,
        )

    def _server(self, environment: dict[str, str] | None = None) -> Service:
        return Service(
            ["server", "run", str(self.federation.consortium)],
            folder=self.folder / "output",
            name="server",
            environment=environment,
        )

    def upgrade_daemon(self) -> None:
        """A newer version at one hospital."""
        name = self.federation.hospitals[0].name
        environment = installed(self.folder / "newer", version=NEWER)
        self.federation.daemons[name].stop()
        self.federation.daemons[name] = self._daemon(name, environment)
        self.federation.daemons[name].start()
        self._until(lambda: self._site_says(name, "connected"), 120.0)
        self._until(lambda: self._software(name) == NEWER, 120.0)
        self.said["upgraded site"] = self._software(name)

    def _software(self, name: str) -> str:
        """The version that a site says it has, as the coordinator sees it."""
        status = command("server", "status", self.federation.consortium)
        return str(status["service"]["sites"].get(name, {}).get("software", ""))

    def upgrade_server(self) -> None:
        """A newer version of the server."""
        self.federation.server.stop()
        self.federation.server = self._server({"PYTHONPATH": str(self.folder / "newer")})
        self.federation.server.start()

    def strange_daemon(self) -> None:
        """A hospital that speaks another version of the link is told so."""
        name = self.late.name
        environment = installed(self.folder / "strange", version="100.0.0", protocol=2)
        self.federation.daemons[name].stop()
        strange = self._daemon(name, environment)
        with strange:
            strange.start()
            self._until(lambda: self._site_says(name, "version"), 120.0)
            self.said["strange daemon, at the site"] = self._link(name)
        log = (self.federation.consortium / "audit.log").read_text().splitlines()
        self.said["strange daemon, at the server"] = [
            line for line in log[-4000:] if "speaks version" in line
        ][-1:]
        self.federation.daemons[name].start()

    def strange_server(self) -> None:
        """A server that speaks another version of the link: the hospitals know why."""
        self.federation.server.stop()
        strange = self._server({"PYTHONPATH": str(self.folder / "strange")})
        with strange:
            strange.start()
            for name in self._there():
                self._until(lambda name=name: self._site_says(name, "version"), 120.0)
                self.said[f"strange server, at {name}"] = self._link(name)
        log = (self.federation.consortium / "audit.log").read_text().splitlines()
        self.said["strange server, at the server"] = [
            line for line in log[-4000:] if "speaks version" in line
        ][-1:]
        self.federation.server.start()

    def short(self) -> None:
        """A study of three rounds, from its offer to its release, beside the long one.

        One after another: on a busy machine, processes that train take long to start.
        """
        if not self._all_released():
            return
        name = f"short-{len(self.shorts) + 1}"
        self.shorts.append(name)
        command("server", "submit", self.federation.consortium, self._study(name, 3))
        for site in self._there():
            folder = self.federation.site(site)
            self._until(lambda folder=folder: self._offered(folder, name), 120.0)
            command("client", "approve", folder, name, "--by", STEWARD, "--reason", "soak")

    def _offered(self, folder: Path, name: str) -> bool:
        return any(one["name"] == name for one in command("client", "studies", folder)["studies"])

    def _there(self) -> list[str]:
        return [h.name for h in self.federation.hospitals if h.name not in self._revoked]

    def _link(self, name: str) -> str:
        with suppress(OSError, ValueError):
            status = json.loads((self.federation.site(name) / "state" / "status.json").read_text())
            return str(status["link"])
        return ""

    def _site_says(self, name: str, word: str) -> bool:
        return (
            self._link(name).startswith("connected")
            if word == "connected"
            else (word in self._link(name))
        )

    def _until(self, condition: Callable[[], bool], within_s: float) -> None:
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError("what should happen does not")
            self.look()
            time.sleep(0.1)

    # --- what is seen -----------------------------------------------------------------------------

    def look(self) -> None:
        """Take a sample, if it is time."""
        now = time.monotonic() - self._begun
        if self.samples and now < self.samples[-1]["at_s"] + LOOK_S:
            return
        try:
            runs = command("server", "runs", self.federation.consortium)
        except FedwardError:
            return
        sample: dict[str, Any] = {
            "at_s": now,
            "ahead_h": self.clock.ahead_s / 3600.0,
            "round": next((run["round"] for run in runs if run["name"] == "long"), 0),
            "released": sum(run["state"] == "released" for run in runs),
            "processes": {},
            "files": self._files(),
            "sizes": self._sizes(),
        }
        services = {"server": self.federation.server, **self.federation.daemons}
        for name, service in services.items():
            pid = service.pid
            if pid is not None:
                sample["processes"][f"{name} {pid}"] = _process(pid)
                for child in _children(pid):
                    sample["processes"][f"worker of {name} {child}"] = _process(child)
        self.samples.append(sample)

    def _files(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for run in (self.federation.consortium / "runs").glob("*"):
            for part in ("spool", "tasks", "checkpoints"):
                found[part] = max(found.get(part, 0), _count(run / part))
        for name in self.federation.daemons:
            state = self.federation.site(name) / "state"
            for part in ("inbox", "outbox"):
                found[part] = max(found.get(part, 0), _count(state / part))
        return found

    def _sizes(self) -> dict[str, int]:
        consortium = self.federation.consortium
        paths = {
            "server's log": consortium / "audit.log",
            "registry": consortium / "registry.sqlite",
        }
        for history in consortium.glob("runs/long-*/checkpoints/history.jsonl"):
            paths["history of the run"] = history
        for name in self.federation.daemons:
            state = self.federation.site(name) / "state"
            paths[f"log of {name}"] = state / "audit.log"
            paths[f"ledger of {name}"] = state / "ledger.sqlite"
        return {what: _size(path) for what, path in paths.items()}

    # --- all of it --------------------------------------------------------------------------------

    def run(self) -> None:
        """Change everything once; then only studies come and go, and it is looked what grows."""
        steps = (
            self.short,
            self.enrol,
            self.upgrade_daemon,
            self.upgrade_server,
            self.rotate,
            self.strange_daemon,
            self.strange_server,
            self.revoke,
        )
        self.clock.start()
        for number, step in enumerate(steps):
            self._wait(lambda share=0.06 * (number + 1): self._share() >= share)
            if step == self.revoke:  # a study that has just begun may need who is revoked
                self._wait(self._all_released)
            self._do(step)
        warm = self._round() + WARM_UP
        self._wait(lambda: self._round() >= warm)
        self.said["quiet from"] = len(self.samples)
        enough = self._round() + ROUNDS
        while (
            self._share() < 1.0 or self._round() < enough or self.clock.ahead_s < self.hours * 3600
        ):
            self._do(self.short)
            until = time.monotonic() + 0.12 * self.seconds
            self._wait(lambda until=until: time.monotonic() >= until)
        self.clock.stop()
        self._until(self._all_released, 180.0)
        long = next(r for r in command("server", "runs", self.federation.consortium)
                    if r["name"] == "long")  # fmt: skip
        command("server", "stop", self.federation.consortium, long["run"])
        self._until(self._stopped, 120.0)

    def _all_released(self) -> bool:
        runs = command("server", "runs", self.federation.consortium)
        return sum(run["state"] == "released" for run in runs) == len(self.shorts)

    def _stopped(self) -> bool:
        runs = command("server", "runs", self.federation.consortium)
        return any(run["name"] == "long" and run["state"] == "stopped" for run in runs)

    def _do(self, step: Callable[[], None]) -> None:
        begun = time.monotonic() - self._begun
        self.clock.held = True
        step()
        self.clock.held = False
        ended = time.monotonic() - self._begun
        self.events.append({"what": step.__name__, "from_s": begun, "to_s": ended})

    def _share(self) -> float:
        return (time.monotonic() - self._begun) / self.seconds

    def _round(self) -> int:
        return int(self.samples[-1]["round"]) if self.samples else 0

    def _wait(self, so: Callable[[], bool]) -> None:
        while not so():
            if self._share() > LONGEST:
                raise TimeoutError("the rounds are too slow")
            self.look()
            time.sleep(0.1)

    def report(self) -> dict[str, Any]:
        """What came of it."""
        checks: dict[str, str] = {}
        consortium = self.federation.consortium
        for what, arguments in {
            "server's log": ("server", "log", "verify", consortium),
            **{
                f"log of {name}": ("client", "log", "verify", self.federation.site(name))
                for name in self.federation.daemons
            },
        }.items():
            try:
                command(*arguments)
                checks[what] = "ok"
            except FedwardError as error:
                checks[what] = error.hint
        renewed = {"server": 0}
        for line in (consortium / "audit.log").read_text().splitlines():
            entry = json.loads(line)
            if entry["kind"] == "renew":
                name = str(entry["facts"]["name"])
                renewed[name] = renewed.get(name, 0) + 1
        return {
            "samples": self.samples,
            "events": self.events,
            "said": self.said,
            "shorts": self.shorts,
            "verified": checks,
            "renewed": renewed,
            "runs": command("server", "runs", consortium),
            "revoked": sorted(self._revoked),
            "output": {
                path.stem: path.read_text()[-4000:] for path in (self.folder / "output").iterdir()
            },
        }


def _set(path: Path, *changes: tuple[str, str]) -> None:
    """Change settings that stand in a file as comments."""
    text = path.read_text()
    for old, new in changes:
        if f"# {old}" not in text:
            raise ValueError(f"{path.name} has no {old}")
        text = text.replace(f"# {old}", new)
    path.write_text(text)


def _process(pid: int) -> dict[str, int]:
    """Resident bytes, open files and threads; zeros if it is gone."""
    folder = Path(f"/proc/{pid}")
    with suppress(OSError, IndexError):
        pages = int((folder / "statm").read_text().split()[1])
        files = _entries(folder / "fd")
        threads = _entries(folder / "task")
        return {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "files": files, "threads": threads}
    return {"rss": 0, "files": 0, "threads": 0}


def _entries(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def main(folder: Path, seconds: float, hours: float) -> None:
    """Run it, and write what was seen."""
    soak = Soak(folder, seconds, hours)
    try:
        soak.found()
        soak.run()
    finally:
        soak.clock._end.set()
        soak.federation.stop()
        (folder / "report.json").write_text(json.dumps(soak.report()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
