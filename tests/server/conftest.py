"""A real PostgreSQL for the tests that need one: a private cluster, gone when the tests end."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

NEEDED = "FEDWARD_NEEDS_POSTGRESQL"
"""Set in the continuous integration: without PostgreSQL the tests then fail instead of skipping."""


class Cluster:
    """A PostgreSQL server in a folder of its own, on 127.0.0.1 and a free port."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        # PostgreSQL refuses to run as root.
        user = pwd.getpwnam("postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
        self._owner = {"user": user.pw_uid, "group": user.pw_gid} if os.geteuid() == 0 else {}
        if os.geteuid() == 0:
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._numbers = itertools.count(1)
        self.port = 0
        self._run("initdb", "-D", self._data, "-U", "fedward", "--auth=trust", "--no-sync")

    def start(self) -> None:
        """Start it; another process may take the free port in between, so try a few times."""
        for attempt in range(5):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            options = f"-F -c listen_addresses=127.0.0.1 -p {self.port} -k {self._folder}"
            log = self._folder / "log"
            try:
                self._run("pg_ctl", "start", "-w", "-s", "-D", self._data, "-l", log, "-o", options)
            except subprocess.CalledProcessError:
                if attempt == 4:
                    raise
            else:
                return

    def stop(self) -> None:
        """Stop it at once."""
        self._run("pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", self._data)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"registry_{next(self._numbers)}"
        place = f"postgresql://fedward@127.0.0.1:{self.port}"
        with psycopg.connect(f"{place}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"{place}/{name}"

    def _run(self, program: str, *arguments: object) -> None:
        subprocess.run(
            [self._programs / program, *map(str, arguments)],
            check=True,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._owner,  # type: ignore[call-overload]
        )


def programs() -> Path | None:
    """Where PostgreSQL's programs are; the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    if found:
        return found[-1].parent
    other = shutil.which("initdb")
    return Path(other).resolve().parent if other else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """A running cluster."""
    where = programs()
    if where is None:
        message = "PostgreSQL is not installed here (apt-get install postgresql)"
        if os.environ.get(NEEDED):
            pytest.fail(message)
        pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="fedward-postgresql-"))
    try:
        cluster = Cluster(where, folder)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of a new database of each kind."""
    if request.param == "sqlite":
        numbers = itertools.count(1)
        return lambda: f"sqlite:///{tmp_path / f'registry-{next(numbers)}.sqlite'}"
    cluster: Cluster = request.getfixturevalue("postgresql")
    return cluster.new_database
