"""A run's state after a round, on disk: one safetensors file, written whole or not at all.

A run that is stopped, for whatever reason, continues from its newest checkpoint to the same final
model as an unbroken run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import RoundError
from fedward.common.files import output_error, write_atomic
from fedward.common.tensors import Weights
from fedward.server import tensor_file

_WEIGHTS = "weights/"
_STRATEGY = "strategy/"
KEEP = 2
"""Newest checkpoints that are kept: the last, and one more should the disk lose it."""


@dataclass(frozen=True)
class Drift:
    """How one site's update compares with the mean update of its round.

    Attributes:
        norm: Euclidean norm of the update.
        cosine: between the update and the mean of all, in [-1, 1].
    """

    norm: float
    cosine: float


@dataclass(frozen=True)
class RoundRecord:
    """What happened in a round, as far as the server knows.

    Attributes:
        round: 1, 2, …
        participants: sites whose update was used, sorted.
        refused: other chosen sites and the reason.
        drift: by participant.
        evaluation: metrics by site and `overall`, empty if the round was not evaluated.
        notes: what an observer wants to find again after a restart; JSON-safe.
    """

    round: int
    participants: tuple[str, ...]
    refused: dict[str, str] = field(default_factory=dict)
    drift: dict[str, Drift] = field(default_factory=dict)
    evaluation: dict[str, dict[str, float | None]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunState:
    """Everything that a run needs to go on.

    Attributes:
        study_hash: of the study that is run.
        round: last completed round; 0 after preparation.
        weights: global weights after that round.
        transform: the frozen preprocessing, as JSON.
        site_weights: aggregation weight of each site.
        history: records of all completed rounds, in order.
        strategy: what the strategy remembers: its own arrays, which the next round changes.
        notes: of the observer, about the preparation.
        absent: sites that could not begin, and why; the record of the next round will say so.
    """

    study_hash: str
    round: int
    weights: Weights
    transform: str
    site_weights: dict[str, float]
    history: tuple[RoundRecord, ...] = ()
    strategy: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


class Checkpoints(Protocol):
    """Where run states are kept."""

    def save(self, state: RunState) -> None:
        """Keep a state durably before the next round begins, which changes `state.strategy`."""
        ...

    def newest(self) -> RunState | None:
        """The state of the last completed round, or None if there is none."""
        ...


class NoCheckpoints:
    """Keeps nothing: for runs too short to be worth continuing."""

    def save(self, state: RunState) -> None:
        """Forget it."""

    def newest(self) -> RunState | None:
        """Nothing to continue from."""
        return None


class CheckpointFolder:
    """Keeps states as `round-000012.safetensors` in a folder.

    Args:
        folder: is made when the first state is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told: list[tuple[RoundRecord, str]] = []

    def save(self, state: RunState) -> None:
        """Write the state atomically, then remove those older than the newest `KEEP`.

        Raises:
            OutputError: the disk is full or not writable; older states are untouched.
        """
        tensors = {_WEIGHTS + key: value for key, value in state.weights.items()}
        tensors |= {_STRATEGY + key: value for key, value in state.strategy.items()}
        tensors = {key: np.asarray(value, order="C") for key, value in tensors.items()}  # no copies
        rest = {
            "study_hash": state.study_hash,
            "round": state.round,
            "transform": state.transform,
            "site_weights": state.site_weights,
            "notes": state.notes,
            "absent": state.absent,
            "order": list(state.weights),
        }
        text = f'{json.dumps(rest)[:-1]}, "history": [{self._history(state)}]}}'
        pieces = tensor_file.pieces(tensors, {"state": text, "digest": _digest(text, tensors)})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self._folder, error) from error
        write_atomic(self._folder / f"round-{state.round:06d}.safetensors", pieces)
        for old in self._files()[:-KEEP]:
            with suppress(OSError):  # one checkpoint too many does no harm
                old.unlink()

    def _history(self, state: RunState) -> str:
        """Records as JSON; each is put into words once, or a long run would do little else."""
        known = self._told[: len(state.history)]
        same = 0
        while same < len(known) and known[same][0] is state.history[same]:
            same += 1
        fresh = state.history[same:]
        self._told = known[:same] + [(record, json.dumps(asdict(record))) for record in fresh]
        return ", ".join(text for _, text in self._told)

    def newest(self) -> RunState | None:
        """Read the newest state that can be read.

        Raises:
            RoundError: there are checkpoints, but none can be read.
        """
        files = self._files()
        for path in reversed(files):
            try:
                return _read(path)
            except (OSError, KeyError, TypeError, ValueError, AttributeError, MemoryError):
                continue  # half of `KEEP`'s purpose: the one before it is whole
        if files:
            raise RoundError(
                f"no checkpoint in {self._folder.name} can be read",
                hint="start again without --resume",
            )
        return None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.safetensors"))


def _read(path: Path) -> RunState:
    metadata, tensors = tensor_file.read(path)
    if _digest(metadata["state"], tensors) != metadata["digest"]:
        raise ValueError("the content is not what was written")
    rest = json.loads(metadata["state"])
    weights = {key: tensors[_WEIGHTS + key] for key in rest["order"]}
    strategy = {
        key.removeprefix(_STRATEGY): value
        for key, value in tensors.items()
        if key.startswith(_STRATEGY)
    }
    return RunState(
        study_hash=rest["study_hash"],
        round=rest["round"],
        weights=weights,
        transform=rest["transform"],
        site_weights=rest["site_weights"],
        history=tuple(_record(record) for record in rest["history"]),
        strategy=strategy,
        notes=rest["notes"],
        absent=rest["absent"],
    )


def _digest(text: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over everything: safetensors itself does not notice a changed value."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = np.asarray(tensors[name], order="C")
        found.update(f"{name} {value.dtype.str} {value.shape}".encode())
        found.update(_bytes(value))
    return found.hexdigest()


def _bytes(value: NDArray[Any]) -> memoryview:
    return value.reshape(-1).view(np.uint8).data


def _record(data: dict[str, Any]) -> RoundRecord:
    drift = {site: Drift(**values) for site, values in data["drift"].items()}
    return RoundRecord(
        **{**data, "participants": tuple(data["participants"]), "drift": drift},
    )
