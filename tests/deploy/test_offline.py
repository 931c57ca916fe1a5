"""What `make wheelhouse` collects is enough, without a network: docs/install-offline.md, literally.

Then the steps of deploy/container/start.sh are made with what was installed: where it would start a
container, a program of the bare environment runs instead, in a folder for each service.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedward.client.diagnosis import SiteDiagnosis
from fedward.client.home import SiteFolder
from fedward.common.diagnosis import diagnose
from fedward.common.version import version

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "install-offline.md"
pytestmark = pytest.mark.slow


def commands() -> list[str]:
    """The blocks of the page that are followed: on the machine with internet, and without."""
    return re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


def bare_environment(home: Path) -> dict[str, str]:
    """No package index, no configuration of pip, no modules of ours."""
    return {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def cut_off() -> list[str]:
    """Runs a command without any network, where the system lets us."""
    cut = ["unshare", "--net", "--map-root-user"]
    done = subprocess.run([*cut, "true"], capture_output=True, check=False)
    return cut if done.returncode == 0 else []


def follow(script: str, folder: Path, environment: Mapping[str, str], *before: str) -> str:
    done = subprocess.run(
        [*before, "bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the machine without internet, with the file that was carried over."""
    folder = tmp_path_factory.mktemp("offline")
    first, _ = commands()
    # The wheelhouse of the repository is left alone.
    script = first.replace("make wheelhouse", f"make wheelhouse WHEELHOUSE={folder}/wheelhouse")
    tar = "tar -cf fedward-offline.tar"
    assert tar in script
    script = script.replace(tar, f"tar -C {folder} -cf {folder}/fedward-offline.tar")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    follow(script, ROOT, os.environ)
    shutil.rmtree(folder / "wheelhouse")
    shutil.rmtree(folder / "deploy")
    return folder


@pytest.fixture(scope="module")
def installed(carried: Path) -> Path:
    """The bare environment, installed as the page says; both sides in one."""
    _, second = commands()
    target = carried / "installed"
    assert second.count("'fedward[client]'") == 1
    script = second.replace("'fedward[client]'", "'fedward[client,server,postgresql]'")
    script = script.replace("/opt/fedward", str(target))
    said = follow(script, carried, bare_environment(carried), *cut_off())
    assert f"fedward {version()}" in said
    assert "Usage: fedward client" in said
    return target


def test_both_sides_are_there_and_nothing_of_ours_beside(installed: Path, carried: Path) -> None:
    environment = bare_environment(carried)
    for words in ("server", "server run", "client run", "client doctor", "server doctor"):
        said = follow(f"{installed}/bin/fedward {words} --help", carried, environment)
        assert "Usage: fedward" in said
    where = "import fedward.common.version as m; print(m.__file__)"
    found = follow(f'{installed}/bin/python -c "{where}"', carried, environment).strip()
    assert found.startswith(str(installed))
    listed = json.loads(follow(f"{installed}/bin/pip list --format=json", carried, environment))
    names = {package["name"].lower() for package in listed}
    assert not names & {"pytest", "ruff", "mypy", "hatchling", "ray"}
    assert not {name for name in names if name.startswith("nvidia")}
    assert {package["version"] for package in listed if package["name"] == "torch"} <= {
        "2.13.0",
        "2.13.0+cpu",
    }


SHIM = '''
"""Stands for `docker compose`: runs what a container would, in a folder for each service."""
import pathlib, subprocess, sys
world, binaries = pathlib.Path({world!r}), pathlib.Path({binaries!r})
given = sys.argv[1:]
if given[0] == "up":
    (world / "up").write_text(" ".join(given))
    sys.exit(0)
assert given[:4] == ["run", "--rm", "--no-deps", "-T"], given
given, program = given[4:], str(binaries / "fedward")
if given[0] == "--entrypoint":
    program, given = given[1], given[2:]
service, arguments = given[0], given[1:]
home = world / service
home.mkdir(exist_ok=True)
arguments = [each.replace("/var/lib/fedward", str(home)) for each in arguments]
sys.exit(subprocess.run([program, *arguments], cwd=home).returncode)
'''


def test_the_consortium_of_the_containers(installed: Path, carried: Path) -> None:
    world = carried / "world"
    world.mkdir()
    shim = carried / "compose.py"
    shim.write_text(SHIM.format(world=str(world), binaries=str(installed / "bin")))
    container = carried / "deploy" / "container"  # as it was carried over
    environment = bare_environment(carried) | {"COMPOSE": f"{sys.executable} {shim}"}
    follow(f"{container}/start.sh", carried, environment)
    assert (world / "up").read_text() == "up --detach --wait"
    for name in ("north", "south", "east"):
        site = SiteFolder.open(world / name / "site")
        assert site.settings.monitoring.port == 9464
        found = {finding.check: finding for finding in diagnose(SiteDiagnosis(site).checks()[:4])}
        assert {finding.state for finding in found.values()} == {"ok"}
        assert site.server().host == "server"
        assert (container / "data" / name).is_dir()
    # What is founded already is not founded again.
    again = subprocess.run(
        [container / "start.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode != 0
    assert "no consortium was founded" in again.stderr


def test_a_damaged_copy_is_noticed(carried: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", carried / "fedward-offline.tar"], cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "wheelhouse").glob("fedward-*.whl")
    data = bytearray(wheel.read_bytes())
    data[100] ^= 1
    wheel.write_bytes(data)
    (check,) = [line for line in commands()[1].splitlines() if "sha256sum" in line]
    done = subprocess.run(["bash", "-c", check], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode != 0


def test_the_page_names_files_that_exist() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path in re.findall(r"deploy/[\w@./-]+[\w]", page):
        assert (ROOT / path).exists(), path
