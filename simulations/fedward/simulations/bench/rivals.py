"""The programs that the product is measured against, and where they lie.

They import nothing of fedward and are run as files, each on a workload's folder. In a checkout they
lie in benchmarks/; the wheel holds copies of the same files in `programs/` beside this module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedward.common.errors import StateError

PRODUCT = "fedward"
"""Stands for the product wherever a rival's name could stand."""


@dataclass(frozen=True)
class Rival:
    """A program that does the same training.

    Attributes:
        name: in JSON and in options.
        label: as people read it.
        file: in `folder()`.
        peer: whether it needs the environment of `make bench-peers`.
        private: whether it can train with differential privacy.
        every_core: whether it is told to use all processors; it decides by itself otherwise.
    """

    name: str
    label: str
    file: str
    peer: bool = True
    private: bool = False
    every_core: bool = False


BARE = Rival("bare", "bare PyTorch loop", "bare_loop.py", peer=False, private=True)
PEERS = (
    Rival("pfl", "pfl-research", "peer_pfl.py"),
    Rival("pfl-cores", "pfl-research, torchrun", "peer_pfl.py", every_core=True),
    Rival("flower", "Flower on Ray", "peer_flower.py"),
)
LABELS = {PRODUCT: "fedward"} | {rival.name: rival.label for rival in (BARE, *PEERS)}


def folder() -> Path:
    """Where the programs lie."""
    packed = Path(__file__).with_name("programs")
    return packed if packed.is_dir() else Path(__file__).resolve().parents[4] / "benchmarks"


def interpreter(rival: Rival, peers: Path | None) -> str:
    """The Python that runs a rival.

    Raises:
        StateError: the environment of the peers has none.
    """
    if not rival.peer:
        return sys.executable
    python = (peers or Path()) / "bin" / "python"
    if peers is None or not python.is_file():
        raise StateError(
            f"there is no Python environment in {peers}", hint="make one with `make bench-peers`"
        )
    return str(python)


def against(*, private: bool, peers: Path | None) -> Sequence[Rival]:
    """The rivals of a workload: the bare loop, and the peers if their environment is there."""
    others = PEERS if peers is not None else ()
    return [rival for rival in (BARE, *others) if rival.private or not private]
