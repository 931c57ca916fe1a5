"""The same study over Flower's own SuperLink and SuperNodes gives the same model.

The real ones of flwr 1.41, as separate processes on loopback; without TLS, which is Flower's own
affair and would prove nothing about us.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.flower_world import STUDY, make_hospital

from fedward.client.home import SiteFolder
from fedward.client.loading import load_cohort
from fedward.client.site import Site
from fedward.client.site_config import load_site_config
from fedward.client.worker.opening import randomness_for
from fedward.client.workspace import Workspace
from fedward.common.study import Study, load_study
from fedward.common.tensors import from_safetensors
from fedward.server.checkpoints import NoCheckpoints
from fedward.server.flower_app import Unwatched, build_server_app
from fedward.server.rounds import Outcome
from fedward.simulations.engines.loop import run_in_loop

BIN = Path(sys.executable).parent
BUNDLE = Path(__file__).resolve().parents[2] / "deploy" / "flower-app"
LIMIT_S = 480.0
NAMES = ("east", "north", "west")


def in_loop(study: Study, homes: list[SiteFolder]) -> Outcome:
    """The reference: the same data, the same randomness, one process."""
    outcomes: list[Outcome] = []
    app = build_server_app(
        study, checkpoints=NoCheckpoints(), observer=Unwatched(), on_outcome=outcomes.append
    )
    sites = []
    for home in homes:
        config = load_site_config(home.site_file)
        cohort = load_cohort(study, config, key=home.load_patients_key(), identify=True)
        randomness = randomness_for(study, config.name)
        sites.append(
            Site(config.name, study, (cohort,), randomness=randomness, workspace=Workspace())
        )
    run_in_loop(app, sites)
    return outcomes[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Flower:
    """Flower's processes, all marked, so that none is left behind whoever started it."""

    folder: Path
    port: int = field(default_factory=free_port)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "FEDWARD_TEST_MARK": self.mark,
        }

    def start(self, log: str, *command: str) -> None:
        with (self.folder / f"{log}.log").open("wb") as output:
            self.started.append(
                subprocess.Popen(
                    [BIN / command[0], *command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=self.environment,
                )
            )

    def flwr(self, *arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [BIN / "flwr", *arguments, "--format", "json"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, object] = json.loads(done.stdout[done.stdout.index("{") :])
        return found

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def marked(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if self.mark.encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + 10.0
            for pid in self.marked():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            while time.monotonic() < until and any(p.poll() is None for p in self.started):
                time.sleep(0.05)
        for pid in self.marked():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait(timeout=10)


@contextmanager
def flower(folder: Path, homes: list[SiteFolder]) -> Iterator[Flower]:
    carrier = Flower(folder)
    try:
        home = folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n[superlink.here]\n'
            f'address = "127.0.0.1:{carrier.port}"\ninsecure = true\n'
        )
        carrier.start(
            "superlink",
            "flower-superlink",
            "--insecure",
            "--port",
            str(carrier.port),
            "--disable-runtime-dependency-installation",
        )
        until = time.monotonic() + 60.0
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", carrier.port), 1.0):
                break
            assert time.monotonic() < until, carrier.logs()
            time.sleep(0.1)
        for site in homes:
            carrier.start(
                site.path.name,
                "flower-supernode",
                "--insecure",
                "--superlink",
                f"127.0.0.1:{carrier.port}",
                "--port",
                str(free_port()),
                "--node-config",
                f'site="{site.path}"',
            )
        yield carrier
    finally:
        carrier.stop()
    assert carrier.marked() == []


def run_to_the_end(carrier: Flower, study: Path, sites: int) -> tuple[str, Path]:
    bundle, folder = carrier.folder / "fedward-app", carrier.folder / "run"
    shutil.copytree(BUNDLE, bundle)
    folder.mkdir()
    config = f'study="{study}" folder="{folder}" sites={sites}'
    started = carrier.flwr("run", str(bundle), "here", "--run-config", config)
    until = time.monotonic() + LIMIT_S
    while True:
        listed = carrier.flwr("list", "--run-id", str(started["run-id"]))
        (run,) = listed["runs"]  # type: ignore[misc]
        status = str(run["status"])
        if status.startswith("finished"):
            return status, folder
        assert time.monotonic() < until, carrier.logs()
        time.sleep(1.0)


@pytest.mark.slow
def test_flowers_own_carrier_gives_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    study = load_study(tmp_path / "study.toml")
    homes = [make_hospital(tmp_path, name, study) for name in NAMES]
    stranger = make_hospital(tmp_path, "south", study, approved=False)
    expected = in_loop(study, homes)
    with flower(tmp_path, [*homes, stranger]) as carrier:
        status, folder = run_to_the_end(carrier, tmp_path / "study.toml", sites=4)
        assert status == "finished:completed", carrier.logs()
    found = from_safetensors((folder / "weights.safetensors").read_bytes())
    assert list(found) == list(expected.weights)
    for name, value in expected.weights.items():
        assert np.abs(found[name] - value).max() <= 1e-6
    assert (folder / "preprocessing.json").read_text() == expected.transform.to_json()
    history = json.loads((folder / "history.json").read_text())
    assert [record["participants"] for record in history] == [list(NAMES)] * 2
    # Who has not approved the study answers nothing, on this carrier either.
    (reason,) = history[0]["refused"].values()
    assert "this site has not approved the study" in reason
    assert (
        not (stranger.path / "state" / "ledger.sqlite").exists()
        or list(stranger.outbox.glob("*/*.reply")) == []
    )
    for home in homes:
        assert list(home.outbox.glob("*/*.reply"))
