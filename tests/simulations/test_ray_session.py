"""Ray: refused in one line where it cannot be, reached by no one else, and gone when it is left."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.simulations.ray_extra import needs_ray
from tests.simulations.test_simulation_repeats import Stops, a_study, run, write_site
from typer.testing import CliRunner

from fedward.common.cli import main
from fedward.common.errors import Interrupted, LinkError, MissingExtraError
from fedward.simulations.bench.cli import app as bench
from fedward.simulations.cli import app as command
from fedward.simulations.engines.cluster import session
from fedward.simulations.fakes import make_cohorts, small_study
from fedward.simulations.simulate import Simulation

STUDY = Path(__file__).resolve().parents[2] / "examples" / "breast-cancer" / "study.toml"
WAIT_S = 300.0
quiet = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves files to the system


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    for cohort in make_cohorts(small_study(), 3, patients=60):
        write_site(folder, small_study(), cohort)
    return folder


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(session.ADDRESS, raising=False)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Bound, so that nobody else gets it, and nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# --- refusals -----------------------------------------------------------------------------------


def test_without_ray_it_says_what_to_install(
    study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "find_spec", lambda name: None)
    out = tmp_path / "out"
    with pytest.raises(MissingExtraError, match=r"pip install 'fedward\[ray\]'"):
        Simulation(a_study(), study_folder, out, engine="ray").run()
    assert not out.exists()


@needs_ray
@pytest.mark.parametrize("address", ["here", "ray://127.0.0.1:10001", "127.0.0.1:0", ":1", "a:x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(LinkError, match="is HOST:PORT"):
        session.check(address)


@needs_ray
def test_an_address_where_nobody_answers_is_refused_before_anything_is_begun(
    tmp_path: Path, closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out, address = tmp_path / "out", f"127.0.0.1:{closed_port}"
    words = ["simulate", str(STUDY), "--out", str(out), "--engine", "ray", "--ray-address", address]
    assert main([*words, "--quiet"]) == LinkError.exit_code == 13
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: no Ray cluster answers at {address}: ")
    assert not out.exists()


@needs_ray
def test_what_is_not_ray_at_an_address_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself asks it for more than five minutes."""
    monkeypatch.setattr(session, "_ANSWERS_S", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(LinkError, match="no Ray cluster answers"),
    ):
        session.check(f"127.0.0.1:{other.getsockname()[1]}")


@needs_ray
def test_the_environments_address_is_used_where_none_is_given(
    study_folder: Path, tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(session.ADDRESS, f"127.0.0.1:{closed_port}")
    assert session.address_of("other:1") == "other:1"
    with pytest.raises(LinkError, match=str(closed_port)):
        Simulation(a_study(), study_folder, tmp_path / "out", engine="ray").run()


def test_an_address_without_the_engine_is_a_wrong_command_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(tmp_path / "s.toml"), "--ray-address", "a:1"])
    assert done.exit_code == 2
    assert "--engine ray" in done.output


def test_a_sweep_takes_another_engine(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(tmp_path / "s.toml"), "--engine=ray", "--seeds=2"])
    assert done.exit_code == 2
    assert "a sweep takes another engine" in done.output


def test_a_bench_takes_another_engine() -> None:
    done = CliRunner().invoke(bench, ["--engine=ray"])
    assert done.exit_code == 2
    assert "workloads are for one machine" in done.output


# --- runs ---------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.slow
@quiet
def test_interrupted_and_resumed_is_what_loop_gives(study_folder: Path, tmp_path: Path) -> None:
    study = a_study(
        privacy={"mode": "dp", "epsilon": 6.0, "delta": 1e-3},
        preprocess={"standardise": "federated"},
    )
    expected = run(study_folder, tmp_path / "loop", study, engine="loop")
    out = tmp_path / "ray"
    with pytest.raises(Interrupted, match="--resume"):
        Simulation(study, study_folder, out, engine="ray").run(Stops("federated", 2))
    found = run(study_folder, out, study, engine="ray", resume=True)
    engine = found.pop("engine")
    assert engine["name"] == "ray"
    assert "Ray workers of this machine" in engine["why"]
    expected.pop("engine")
    assert found == expected


# --- nothing is left ----------------------------------------------------------------------------


ELSEWHERE = """
import sys
from fedward.simulations.engines.cluster.session import connected
with connected(None, processors=2):
    from fedward.simulations.engines.cluster.grid import RayGrid
    from fedward.simulations.fakes import make_cohorts, make_sites, small_study
    grid = RayGrid(make_sites(small_study(), make_cohorts(small_study(), 2)))
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def ray_elsewhere() -> Iterator[subprocess.Popen[str]]:
    """A process that has Ray and workers."""
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def members(leader: int) -> list[int]:
    """Processes of a session of the system, but for its leader."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != leader:
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def listening(processes: list[int]) -> set[str]:
    """Addresses, as the kernel writes them, at which these processes listen."""
    inodes = set()
    for process in processes:
        for entry in Path(f"/proc/{process}/fd").iterdir():
            try:
                target = str(entry.readlink())
            except OSError:
                continue
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    return found


def ended(handle: int) -> bool:
    """Whether the process behind a handle ends: it is waited for."""
    try:
        return bool(select.select([handle], [], [], WAIT_S)[0])
    finally:
        os.close(handle)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_no_one_else_reaches_it_and_no_process_is_left(how: signal.Signals | None) -> None:
    before = set(Path(session._FOLDER).glob("fedward-ray-*"))
    with ray_elsewhere() as process:
        inside = members(process.pid)
        assert len(inside) >= 4  # of Ray's own two, and our workers
        assert listening(inside) <= {"0100007F", "0000000000000000FFFF00000100007F"}
        handles = [os.pidfd_open(pid) for pid in inside]
        if how is None:
            assert process.stdin is not None
            process.stdin.close()
        elif how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.send_signal(how)
        process.wait(WAIT_S)
        assert all(ended(handle) for handle in handles)
        assert process.returncode == (0 if how is None else -how)
        assert members(process.pid) == []
        left = set(Path(session._FOLDER).glob("fedward-ray-*")) - before
        if how in (None, signal.SIGINT):
            assert left == set()
