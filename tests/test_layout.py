"""The house stands: one namespace of four portions, small modules, short functions."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PORTIONS = ("server", "client", "common", "simulations")
MOST_LINES = 350
MOST_BODY_LINES = 60

MODULES = [
    path
    for portion in PORTIONS
    for path in sorted((ROOT / portion).rglob("*.py"))
    if "_pb2" not in path.name  # generated
]


@pytest.mark.parametrize("portion", PORTIONS)
def test_portion_is_a_namespace(portion: str) -> None:
    """A stray __init__.py in a */fedward/ folder would hide the other three portions."""
    root = ROOT / portion
    assert not (root / "__init__.py").exists()
    assert not (root / "fedward" / "__init__.py").exists()
    assert not (root / "fedward" / portion / "__init__.py").exists()
    assert [path.name for path in (root / "fedward").iterdir() if path.name != "__pycache__"] == [
        portion
    ]


@pytest.mark.parametrize("portion", PORTIONS)
def test_portion_is_typed(portion: str) -> None:
    assert (ROOT / portion / "fedward" / portion / "py.typed").is_file()


@pytest.mark.parametrize("portion", PORTIONS)
def test_folders_with_modules_are_packages(portion: str) -> None:
    base = ROOT / portion / "fedward" / portion
    folders = {path.parent for path in base.rglob("*.py")} - {base}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_wheel_holds_the_four_portions_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    expected = {path.relative_to(ROOT / path.relative_to(ROOT).parts[0]) for path in MODULES}
    assert {path.as_posix() for path in expected} <= set(names)
    assert {name.split("/")[0] for name in names} == {"fedward"}
    assert {name.split("/")[1] for name in names} == set(PORTIONS)
    for portion in PORTIONS:
        assert f"fedward/{portion}/py.typed" in names
    for modality in ("tabular", "image"):
        assert f"fedward/common/study/templates/{modality}.toml" in names
    for program in ("bare_loop", "peer_data", "peer_flower", "peer_pfl"):
        assert f"fedward/simulations/bench/programs/{program}.py" in names
    assert "fedward/simulations/bench/bench.html.j2" in names
    assert licences


def test_no_module_is_too_long() -> None:
    found = {}
    for path in MODULES:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MOST_LINES:
            found[path.relative_to(ROOT).as_posix()] = lines
    assert found == {}, "look for the second purpose in these"


def long_functions(source: str) -> dict[str, int]:
    """Functions whose body, without its docstring, is longer than `MOST_BODY_LINES`."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
        length = (body[-1].end_lineno or 0) - body[0].lineno + 1
        if length > MOST_BODY_LINES:
            found[node.name] = length
    return found


def test_no_function_is_too_long() -> None:
    found = {
        f"{path.relative_to(ROOT).as_posix()}: {name}": length
        for path in MODULES
        for name, length in long_functions(path.read_text(encoding="utf-8")).items()
    }
    assert found == {}, "look for the second purpose in these"


def test_a_long_function_is_noticed() -> None:
    body = "\n".join(f"    x = {n}" for n in range(MOST_BODY_LINES + 1))
    assert long_functions(f"def f():\n    '''Doc.'''\n{body}\n") == {"f": MOST_BODY_LINES + 1}
    assert not long_functions("def f():\n    return 1\n")


def test_no_unfinished_work_is_left() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    found = [
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        if any(word in path.read_text(encoding="utf-8") for word in words)
    ]
    assert found == []


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, pinned = line.partition("==")
            pins[canonicalize_name(name)] = pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for requirement in map(Requirement, wanted):
        if requirement.name != "fedward":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert pins["torch"] == "2.13.0"
    assert f"torch=={pins['torch']}" in (ROOT / "Makefile").read_text(encoding="utf-8")
