"""A run's state after a round, on disk: one safetensors file, written whole or not at all.

What happened in each round is kept beside the states, see `history`; a state knows its share of it.

A run that is stopped, for whatever reason, continues from its newest checkpoint to the same final
model as an unbroken run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import RoundError
from fedward.common.files import output_error, write_atomic
from fedward.common.tensors import Weights
from fedward.server import tensor_file
from fedward.server.history import History, HistoryFile, Mark, RoundRecord
from fedward.server.model_hash import MODEL, model_hash

_WEIGHTS = "weights/"
_STRATEGY = "strategy/"
HISTORY = "history.jsonl"
"""Name of the file beside the states."""
_NOT_READ = (
    *(OSError, KeyError, TypeError, ValueError, AttributeError, MemoryError),
    RoundError,  # of its history
)
KEEP = 2
"""Newest checkpoints that are kept: the last, and one more should the disk lose it."""


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
    history: Sequence[RoundRecord] = ()
    strategy: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


class Checkpoints(Protocol):
    """Where run states are kept."""

    def save(self, state: RunState) -> RunState:
        """Keep a state durably before the next round begins, which changes `state.strategy`.

        Returns:
            The same state, its history where it is kept.
        """
        ...

    def newest(self) -> RunState | None:
        """The state of the last completed round, or None if there is none."""
        ...


class NoCheckpoints:
    """Keeps nothing: for runs too short to be worth continuing."""

    def save(self, state: RunState) -> RunState:
        """Forget it."""
        return state

    def newest(self) -> RunState | None:
        """Nothing to continue from."""
        return None


class CheckpointFolder:
    """Keeps states as `round-000012.safetensors` in a folder, and `history.jsonl`.

    Args:
        folder: is made when the first state is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._history = HistoryFile(folder / HISTORY)

    def save(self, state: RunState) -> RunState:
        """Write new records, then the state atomically; remove those older than the newest `KEEP`.

        Raises:
            OutputError: the disk is full or not writable; older states are untouched.
            RoundError: somebody shortened the history.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self._folder, error) from error
        history = History.of(state.history).keep(self._history)
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
            "history": asdict(history.kept),
        }
        text = json.dumps(rest)
        digest = _digest(text, _known_hash(state) or model_hash(state.weights), tensors)
        pieces = tensor_file.pieces(tensors, {"state": text, "digest": digest})
        write_atomic(self._folder / f"round-{state.round:06d}.safetensors", pieces)
        for old in self._files()[:-KEEP]:
            with suppress(OSError):  # one checkpoint too many does no harm
                old.unlink()
        return replace(state, history=history)

    def newest(self) -> RunState | None:
        """Read the newest state that can be read.

        Raises:
            RoundError: there are checkpoints, but none can be read.
        """
        files = self._files()
        for path in reversed(files):
            try:
                return _read(path, self._history)
            except _NOT_READ:
                continue  # half of `KEEP`'s purpose: the one before it is whole
        if files:
            raise RoundError(
                f"no checkpoint in {self._folder.name} can be read",
                hint="start again without --resume",
            )
        return None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.safetensors"))


def _known_hash(state: RunState) -> str | None:
    """The hash of the weights, if the observer has noted it: a large model is hashed once."""
    last = state.history[-1] if state.history else None
    if last is None or last.round != state.round:
        notes = {} if state.round else state.notes
    else:
        notes = last.notes
    found = notes.get(MODEL)
    return found if isinstance(found, str) else None


def _read(path: Path, history: HistoryFile) -> RunState:
    metadata, tensors = tensor_file.read(path)
    rest = json.loads(metadata["state"])
    weights = {key: tensors[_WEIGHTS + key] for key in rest["order"]}
    if _digest(metadata["state"], model_hash(weights), tensors) != metadata["digest"]:
        raise ValueError("the content is not what was written")
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
        history=History.load(history, Mark(**rest["history"])),
        strategy=strategy,
        notes=rest["notes"],
        absent=rest["absent"],
    )


def _digest(text: str, model: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over everything: safetensors itself does not notice a changed value.

    Args:
        text: of the state.
        model: hash of the weights, which are float32.
        tensors: of the file.
    """
    found = hashlib.sha256(f"{text}\0{model}".encode())
    for name in sorted(tensors):
        value = np.asarray(tensors[name], order="C")
        found.update(f"{name} {value.dtype.str} {value.shape}".encode())
        if not name.startswith(_WEIGHTS) or value.dtype != np.float32:
            found.update(_bytes(value))
    return found.hexdigest()


def _bytes(value: NDArray[Any]) -> memoryview:
    return value.reshape(-1).view(np.uint8).data
