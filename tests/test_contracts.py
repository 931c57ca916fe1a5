"""The import contracts of pyproject.toml hold, and would not hold if someone broke them."""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

import grimp
import pytest
from importlinter.api import read_configuration
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = read_configuration(str(ROOT / "pyproject.toml"))
CONTRACTS = {options["name"]: options for options in CONFIGURATION["contracts_options"]}
KINDS = {"layers": LayersContract, "forbidden": ForbiddenContract}

LAYERS = "simulations → server | client → common"
NO_SOURCE = "the server has no data source and no per-sample gradients"
NO_FRAMEWORK = "common knows no framework"
TORCH = "in common, only models use torch"
FLWR = "only apps, the round loop, links and engines use flwr"

PUBLIC_FLWR = ("flwr.app", "flwr.serverapp", "flwr.clientapp")


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("fedward", include_external_packages=True, cache_dir=None)


def kept(name: str, graph: grimp.ImportGraph) -> bool:
    options: dict[str, Any] = CONTRACTS[name]
    contract = KINDS[options["type"]](name, CONFIGURATION["session_options"], options)
    return bool(contract.check(graph=copy.deepcopy(graph), verbose=False).kept)


def with_import(graph: grimp.ImportGraph, importer: str, imported: str) -> grimp.ImportGraph:
    changed = copy.deepcopy(graph)
    if imported not in changed.modules:
        changed.add_module(imported, is_squashed=not imported.startswith("fedward"))
    changed.add_import(importer=importer, imported=imported)
    return changed


def test_the_graph_holds_all_four_portions(imports: grimp.ImportGraph) -> None:
    for portion in ("common", "client", "server", "simulations"):
        assert imports.find_descendants(f"fedward.{portion}")


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract_holds(name: str, imports: grimp.ImportGraph) -> None:
    assert kept(name, imports), f"broken: {name}; run .venv/bin/lint-imports to see where"


BREAKS = [
    (LAYERS, "fedward.common.errors", "fedward.client.dataset"),
    (LAYERS, "fedward.server.strategies", "fedward.client.dataset"),
    (LAYERS, "fedward.client.dataset", "fedward.server.strategies"),
    (LAYERS, "fedward.server.strategies", "fedward.simulations.progress"),
    (NO_SOURCE, "fedward.server.strategies", "polars"),
    # Also through something else that the server imports.
    (NO_SOURCE, "fedward.common.errors", "PIL"),
    ("the server does not use opacus", "fedward.server.strategies", "opacus"),
    (NO_FRAMEWORK, "fedward.common.errors", "flwr"),
    (NO_FRAMEWORK, "fedward.common.metrics", "polars"),
    (TORCH, "fedward.common.table", "torch"),
    ("in common, only privacy uses opacus", "fedward.common.metrics", "opacus"),
    (FLWR, "fedward.client.training", "flwr"),
    (FLWR, "fedward.simulations.progress", "flwr"),
]


@pytest.mark.parametrize(("name", "importer", "imported"), BREAKS)
def test_contract_notices(
    name: str, importer: str, imported: str, imports: grimp.ImportGraph
) -> None:
    assert not kept(name, with_import(imports, importer, imported))


def test_every_contract_is_broken_on_purpose_above() -> None:
    assert {case[0] for case in BREAKS} == set(CONTRACTS)


def private_flwr_imports(source: str) -> list[str]:
    """Modules of flwr outside its public ones that some source imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
    return [n for n in found if n.split(".")[0] == "flwr" and not n.startswith(PUBLIC_FLWR)]


def test_private_parts_of_flwr_are_used_in_one_module_on_each_side() -> None:
    users = [
        path.relative_to(ROOT).as_posix()
        for folder in ("server", "client", "common", "simulations")
        for path in (ROOT / folder).rglob("*.py")
        if private_flwr_imports(path.read_text(encoding="utf-8"))
    ]
    assert sorted(users) == [
        "client/fedward/client/worker/flower_internals.py",
        "server/fedward/server/flower_internals.py",
        "simulations/fedward/simulations/engines/cluster/internals.py",
    ]


@pytest.mark.parametrize("line", ["import flwr.proto", "from flwr.supercore import run"])
def test_private_flwr_import_is_noticed(line: str) -> None:
    assert private_flwr_imports(line)
    assert not private_flwr_imports("from flwr.app import Message")
