"""The committed code of the link's messages is what link.proto says, to the byte."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import grpc_tools
import pytest
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = "fedward/common/wire/link.proto"
GENERATED = ("link_pb2.py", "link_pb2.pyi", "link_pb2_grpc.py")


def generate(source: Path, target: Path) -> dict[str, bytes]:
    """Run the generator of `make proto` on a source root, into another folder."""
    included = importlib.resources.files(grpc_tools) / "_proto"
    arguments = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["", f"-I{source}", f"-I{included}", *arguments, f"{source}/{PROTO}"])
    assert code == 0
    folder = target / Path(PROTO).parent
    return {name: (folder / name).read_bytes() for name in GENERATED}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return generate(ROOT / "common", tmp_path_factory.mktemp("fresh"))


@pytest.mark.parametrize("name", GENERATED)
def test_committed_code_matches_the_proto(fresh: dict[str, bytes], name: str) -> None:
    committed = (ROOT / "common" / PROTO).with_name(name).read_bytes()
    assert committed == fresh[name], "run `make proto` and commit what it wrote"


def test_a_changed_proto_is_noticed(fresh: dict[str, bytes], tmp_path: Path) -> None:
    """The comparison above must be able to fail."""
    changed = tmp_path / "source" / PROTO
    changed.parent.mkdir(parents=True)
    text = (ROOT / "common" / PROTO).read_text(encoding="utf-8")
    changed.write_text(text.replace("uint64 offset = 3;", "uint64 offset = 4;"), encoding="utf-8")
    target = tmp_path / "target"
    target.mkdir()
    assert generate(tmp_path / "source", target)["link_pb2.py"] != fresh["link_pb2.py"]
