"""A consortium for `benchmarks/link.py`: the server as a process, and sites that do not train."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedward.common.identity import PrivateKey, make_request, read_request
from fedward.common.statements import DECISION, state
from fedward.common.study import parse_study
from fedward.server.authority import Registrar
from fedward.server.founding import Plan, found
from fedward.server.office import Office
from fedward.server.registry import Choice, Registry, State

STUDY = """
[study]
name = "link"
title = "Nothing is trained"
purpose = "To measure"
contact = "nobody@example.org"
[task]
kind = "binary"
target = "ill"
labels = ["no", "yes"]
[data]
modality = "tabular"
[[data.features]]
name = "age"
min = 0.0
max = 120.0
[preprocess]
standardise = "bounds"
impute = "bounds"
[model]
name = "mlp"
hidden = [{width}, {width}]
[training]
rounds = {rounds}
local_epochs = 1
batch_size = 32
learning_rate = 0.1
[algorithm]
name = "fedavg"
[privacy]
mode = "none"
[aggregation]
weights = "equal"
min_sites = {sites}
deadline_s = 300.0
"""
SERVE = "from fedward.common.cli import main; main()"
LONGEST_S = 600.0
LOOK_S = 0.25
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    """A running process, looked at from outside."""

    pid: int

    @property
    def cpu_s(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    @property
    def peak_mb(self) -> float:
        """The most memory that it ever had, in MB (2^20 bytes)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Processor:
    """Processor time of several processes, from one moment on."""

    def __init__(self, processes: Sequence[Measured]) -> None:
        self._processes = processes
        self._before = [one.cpu_s for one in processes]

    def used_s(self) -> list[float]:
        """Since then, of each."""
        now = [one.cpu_s for one in self._processes]
        return [after - before for after, before in zip(now, self._before, strict=True)]


class BenchConsortium:
    """Keys, certificates, roster and study of a measurement.

    Args:
        folder: for everything.
        sites: their names.
        width: of the hidden layers.
        rounds: of the run.
    """

    def __init__(self, folder: Path, sites: Sequence[str], *, width: int, rounds: int) -> None:
        self._sites = sites
        self._study = parse_study(STUDY.format(width=width, rounds=rounds, sites=len(sites)))
        self.place = folder
        now = datetime.now(UTC)
        self.folder = found(folder / "consortium", Plan("Benchmark", "127.0.0.1", _free()), now=now)
        registrar = Registrar.open(self.folder.path)
        self._keys: dict[str, PrivateKey] = {}
        for name in sites:
            key = self._keys[name] = PrivateKey.generate()
            enrolled = registrar.enroll(read_request(make_request(key, name)))
            own = folder / name
            own.mkdir()
            key.save(own / "site.key")
            issuer = self.folder.issuer_certificate.read_text()
            (own / "site.crt").write_text(enrolled.certificate.pem + issuer)

    @contextmanager
    def served(self) -> Iterator[Measured]:
        """The service, as a process."""
        command = [sys.executable, "-c", SERVE, "server", "run", str(self.folder.path)]
        process = subprocess.Popen(
            [*command, "--log-level", "warning"], stdout=subprocess.DEVNULL, env=_environment()
        )
        try:
            yield Measured(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()

    @contextmanager
    def attended(self, groups: Sequence[Sequence[str]]) -> Iterator[list[Measured]]:
        """Sites, each group of them in a process."""
        site = str(Path(__file__).with_name("link_site.py"))
        port, processes = str(self._port()), []
        try:
            for names in groups:
                command = [sys.executable, site, str(self.place), port, *names]
                processes.append(subprocess.Popen(command, env=_environment()))
            yield [Measured(process.pid) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def _port(self) -> int:
        while not (self.folder.status.exists() and self._status().get("state") == "serving"):
            time.sleep(LOOK_S)
        return int(self._status()["port"])

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.folder.status.read_bytes())
        return found

    def connected(self) -> int:
        """How many sites are there, as the service says."""
        sites = self._status().get("sites", {})
        return sum(bool(site["connected"]) for site in sites.values())

    def wait_until_connected(self) -> None:
        """All sites are there."""
        until = time.monotonic() + LONGEST_S
        while time.monotonic() < until:
            if self.connected() == len(self._sites):
                return
            time.sleep(LOOK_S)
        raise TimeoutError("not all sites connected")

    def approve(self) -> None:
        """Offer the study, and have every site approve it: the run begins."""
        with Office.open(self.folder.path) as office:
            offer = office.submit(self._study, None)
            for number, name in enumerate(self._sites, start=1):
                content = {"study": offer.study, "choice": "approve", "at_ms": number}
                evidence = state(DECISION, name, content, self._keys[name])
                office.registry.decide(name, offer.study, Choice.APPROVE, evidence)

    def follow(self, processor: Processor) -> tuple[list[int], list[float]]:
        """Wait for the end; when each round was counted, in Unix milliseconds, and what it cost."""
        until = time.monotonic() + LONGEST_S
        with Registry.open(self.folder.database) as registry:
            while time.monotonic() < until:
                runs = registry.runs()
                if runs and not runs[0].state.active:
                    if runs[0].state is not State.RELEASED:
                        raise RuntimeError(runs[0].reason)
                    used_s = processor.used_s()
                    return [found.at_ms for found in registry.rounds(runs[0].id)], used_s
                time.sleep(LOOK_S)
        raise TimeoutError("the run did not end")

    def model_bytes(self) -> int:
        """Size of the newest checkpoint."""
        newest = max(self.folder.runs.glob("*/checkpoints/round-*.safetensors"))
        return newest.stat().st_size


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _environment() -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return {**os.environ, **own}
