"""What the server's service imports brings in no torch: it adds numbers up and needs none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SERVER = Path(__file__).resolve().parents[2] / "server"
MODULES = sorted(
    ".".join(path.relative_to(SERVER).with_suffix("").parts).removesuffix(".__init__")
    for path in SERVER.rglob("*.py")
    if path.name != "__main__.py"
)


def loads_torch(module: str) -> bool:
    code = f"import sys, {module}; sys.exit(100 if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode in (0, 100), done.stderr.decode()
    return done.returncode == 100


def test_no_module_of_the_server_loads_torch() -> None:
    """All in one process: whichever did it, the next test says which."""
    assert not loads_torch(", ".join(MODULES))


@pytest.mark.parametrize(
    "module", [f"fedward.server.{name}" for name in ("rounds", "evaluation", "aggregation")]
)
def test_what_the_round_loop_is_made_of_does_not_load_torch(module: str) -> None:
    assert not loads_torch(module)


def test_torch_would_be_noticed() -> None:
    assert loads_torch("fedward.client.training")
