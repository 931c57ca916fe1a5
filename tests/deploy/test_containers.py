"""The container files: no rights, no internet, no open port at a hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.containers import FOLDER, ROOT, problems, read

from fedward.common.version import version

SIDES = ("server", "client")


def instruction(side: str, name: str) -> Any:
    (found,) = [each for each in read(FOLDER / f"Containerfile.{side}")[-1] if each.name == name]
    return found


@pytest.mark.parametrize("side", SIDES)
def test_images(side: str) -> None:
    assert problems(FOLDER / f"Containerfile.{side}") == set()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("USER 10001:10001", "USER 0:0", "it runs as root"),
        ("USER 10001:10001\n", "", "it runs as root"),
        ("--no-index", "", "packages come from the internet"),
        ("RUN --network=none --mount", "RUN --mount", "a step of the build may use the network"),
        ("COPY --from=build", "COPY", "something of the source is copied"),
        ("STOPSIGNAL", "ADD https://x.org/x /x\nSTOPSIGNAL", "something comes from the internet"),
        ("slim-bookworm", "latest", "the base image has no version"),
        ("FROM ${BASE}\nLABEL", "FROM alpine\nLABEL", "a stage has a base of its own"),
        ("HEALTHCHECK", "# HEALTHCHECK", "nobody asks whether it is well"),
    ],
)  # fmt: skip
def test_a_worse_image_would_be_noticed(tmp_path: Path, old: str, new: str, problem: str) -> None:
    text = (FOLDER / "Containerfile.client").read_text(encoding="utf-8")
    assert old in text
    worse = tmp_path / "Containerfile"
    worse.write_text(text.replace(old, new), encoding="utf-8")
    assert problem in problems(worse)


@pytest.mark.parametrize("side", SIDES)
def test_what_images_run_exists(side: str) -> None:
    assert instruction(side, "ENTRYPOINT").words == ["/opt/fedward/bin/fedward"]
    assert instruction(side, "CMD").words[:2] == [side, "run"]
    probe = instruction(side, "HEALTHCHECK").rest.partition("CMD ")[2]
    assert "fedward.common.monitoring.probe" in probe
    extras = "server,postgresql" if side == "server" else "client"
    assert f"'fedward[{extras}]'" in (FOLDER / f"Containerfile.{side}").read_text()


def test_only_the_wheelhouse_is_seen_by_a_build() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == ["*", "!wheelhouse"]


def compose() -> dict[str, Any]:
    found = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_every_container_may_do_little() -> None:
    services = compose()["services"]
    assert set(services) == {"server", "north", "south", "east"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "10001:10001"
        assert service["pids_limit"] > 0
        assert service["mem_limit"]
        assert service["image"].endswith(f":{version()}")
        assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ports"} & set(
            service
        )


def test_hospitals_see_the_server_and_nobody_else() -> None:
    found = compose()
    services, networks = found["services"], found["networks"]
    assert all(network["internal"] is True for network in networks.values())
    assert set(services["server"]["networks"]) == set(networks)
    for name in ("north", "south", "east"):
        assert services[name]["networks"] == [f"to-{name}"]


def test_data_are_mounted_read_only_and_folders_are_kept() -> None:
    found = compose()
    for name, service in found["services"].items():
        state, *data = service["volumes"]
        assert state.split(":")[0] in found["volumes"]
        assert state.split(":")[1] == instruction("client", "VOLUME").words[0]
        assert data == ([] if name == "server" else [f"./data/{name}:/data:ro"])


def test_the_probes_port_is_that_of_the_settings() -> None:
    script = (FOLDER / "start.sh").read_text(encoding="utf-8")
    for side in SIDES:
        assert '"9464"' in instruction(side, "HEALTHCHECK").rest
        template = ROOT / side / "fedward" / side / "templates" / f"{side}.toml"
        lines = template.read_text(encoding="utf-8").splitlines()
        assert sum(line.startswith("# port = 0 ") for line in lines) == 1
    assert "s/^# port = 0 .*/port = 9464/" in script
