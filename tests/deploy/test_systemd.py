"""The systemd units are valid, hardened, and start what exists; checked by systemd itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
NAMES = ("fedward-server.service", "fedward-client@.service")
HIGHEST_EXPOSURE = {"fedward-server.service": 12, "fedward-client@.service": 16}
"""Tenths of systemd's figure, from 0, safe, to 100: what was reached; it may only get better."""

systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and "FEDWARD_NEEDS_SYSTEMD" not in os.environ,
    reason="needs systemd-analyze (package systemd)",
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False
    )


def settings(name: str) -> list[tuple[str, str]]:
    text = (UNITS / name).read_text(encoding="utf-8")
    return re.findall(r"^(\w+)=(.*)$", text, flags=re.M)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The units with a program that exists; nothing else is changed."""
    for name in NAMES:
        text = (UNITS / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/fedward/bin/fedward", sys.executable))
    return tmp_path


@systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_takes_it(name: str, copies: Path) -> None:
    done = analyze("verify", "--man=no", str(copies / name))
    assert (done.returncode, done.stderr) == (0, "")


@systemd
def test_a_wrong_unit_would_be_noticed(copies: Path) -> None:
    path = copies / NAMES[0]
    path.write_text(path.read_text().replace("ProtectSystem=strict", "ProtectSystm=strict"))
    assert "ProtectSystm" in analyze("verify", "--man=no", str(path)).stderr


@systemd
@pytest.mark.parametrize("name", NAMES)
def test_it_is_hardened(name: str, copies: Path) -> None:
    path, most = copies / name, HIGHEST_EXPOSURE[name]
    done = analyze("security", "--offline=true", f"--threshold={most}", str(path))
    assert done.returncode == 0, done.stdout
    softer = path.read_text().replace("NoNewPrivileges=yes", "NoNewPrivileges=no")
    path.write_text(softer.replace("ProtectSystem=strict", ""))
    done = analyze("security", "--offline=true", f"--threshold={most}", str(path))
    assert done.returncode != 0


@pytest.mark.parametrize("name", NAMES)
def test_it_is_watched_and_started_again(name: str) -> None:
    found = dict(settings(name))
    assert found["Type"] == "notify"
    assert found["NotifyAccess"] == "main"
    assert int(found["WatchdogSec"]) >= 30
    assert found["Restart"] == "on-failure"
    assert found["User"] == "fedward"
    assert found["UMask"] == "0077"
    assert found["StateDirectoryMode"] == "0700"
    assert found["CapabilityBoundingSet"] == ""


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_a_command_that_exists(name: str) -> None:
    program, group, command, folder = dict(settings(name))["ExecStart"].split()
    assert program == "/opt/fedward/bin/fedward"
    assert folder.startswith("/var/lib/fedward/")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "fedward"), group, command, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_user_has_no_shell() -> None:
    (line,) = (
        line
        for line in (UNITS / "fedward.conf").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    assert line.startswith("u fedward ")
    assert line.endswith("/usr/sbin/nologin")


REFUSE_WRITABLE_CODE = """
import ctypes, mmap
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, Linux 6.3
    raise SystemExit(77)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    pass
else:
    raise SystemExit("writable code was not refused")
"""


def under_mdwe(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where no memory can be written and executed, as MemoryDenyWriteExecute= does."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSE_WRITABLE_CODE + code],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this kernel cannot refuse memory that is written and executed")
    return done


@pytest.mark.slow
def test_the_server_needs_no_memory_that_is_written_and_executed() -> None:
    """Everything that a server loads, with arithmetic like that of its aggregation."""
    done = under_mdwe(
        """
import importlib, pkgutil, fedward.server, numpy, torch, sqlalchemy
for module in pkgutil.walk_packages(fedward.server.__path__, "fedward.server."):
    importlib.import_module(module.name)
from cryptography.hazmat.primitives.asymmetric import ec
ec.generate_private_key(ec.SECP256R1())
layer = torch.nn.Linear(3, 2)
layer(torch.ones(4, 3)).sum().backward()
numpy.ones((50, 50)) @ numpy.ones((50, 50))
"""
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_client_does_need_it() -> None:
    """Why its unit says MemoryDenyWriteExecute=no; when this fails, the unit can be stricter."""
    assert dict(settings(NAMES[1]))["MemoryDenyWriteExecute"] == "no"
    done = under_mdwe("import torch; torch.nn.Conv2d(3, 8, 3)(torch.ones(4, 3, 28, 28))")
    assert done.returncode != 0
