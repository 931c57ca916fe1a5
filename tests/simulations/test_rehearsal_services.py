"""Services of a rehearsal: ready when they say so, gone when they are to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedward.common.errors import RoundError, StateError
from fedward.simulations.rehearsal.federation import command, placed
from fedward.simulations.rehearsal.services import Service, free_port


@pytest.fixture
def consortium(tmp_path: Path) -> Path:
    folder = tmp_path / "consortium"
    command(
        "server", "init", "--dir", folder, "--name", "Test",
        "--host", "localhost", "--port", str(free_port()),
    )  # fmt: skip
    return folder


def test_a_service_is_ready_killed_and_stopped(consortium: Path, tmp_path: Path) -> None:
    service = Service(["server", "run", str(consortium)], folder=tmp_path, name="server")
    with service:
        service.start()
        first = service.pid
        assert first is not None
        service.kill()
        assert not service.alive
        assert service.pid is None
        service.start()
        assert service.pid not in (None, first)
        assert not service.kill_child()  # it has started nothing
        assert service.stop() == 0
    assert not service.alive
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_what_does_not_start_says_why(tmp_path: Path) -> None:
    service = Service(["server", "run", str(tmp_path / "nowhere")], folder=tmp_path, name="server")
    with pytest.raises(RoundError, match=r"server did not start.*not a consortium's folder"):
        service.start()
    assert not service.alive


def test_a_command_that_refuses_keeps_its_kind(tmp_path: Path) -> None:

    with pytest.raises(StateError, match="server roster"):
        command("server", "roster", tmp_path)


def test_paths_of_given_hospitals_are_found_from_elsewhere(tmp_path: Path) -> None:

    (tmp_path / "site.toml").write_text('[source]\npath = "a.csv"\nlabels = "${X}/b.csv"\n')
    text = placed(tmp_path / "site.toml")
    assert f'path = "{tmp_path / "a.csv"}"' in text
    assert 'labels = "${X}/b.csv"' in text
