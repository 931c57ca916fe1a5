"""A run's state after a round, on disk: one safetensors file, written whole or not at all.

What happened in each round is kept beside the states, see `history`; a state knows its share of it.

A run that is stopped, for whatever reason, continues from its newest checkpoint to the same final
model as an unbroken run. What is damaged is told from what cannot be read at the moment: only a
damaged checkpoint is passed over for the one before it.
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

from fedward.common import tensor_file
from fedward.common.errors import RoundError
from fedward.common.files import output_error, write_atomic
from fedward.common.tensors import Weights
from fedward.server.history import (
    CheckpointUnavailable,
    History,
    HistoryDamaged,
    HistoryFile,
    Mark,
    RoundRecord,
    Spare,
    unavailable,
)
from fedward.server.model_hash import MODEL, model_hash

_WEIGHTS = "weights/"
_STRATEGY = "strategy/"
HISTORY = "history.jsonl"
"""Name of the file beside the states."""
_DAMAGED = (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError)
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
        spare: another copy of the history, that a damaged one is made whole from.
    """

    def __init__(self, folder: Path, spare: Spare | None = None) -> None:
        self._folder = folder
        self._spare = spare
        self._history = HistoryFile(folder / HISTORY)

    def save(self, state: RunState) -> RunState:
        """Write new records, then the state atomically; remove those older than the newest `KEEP`.

        Raises:
            OutputError: the disk is full or not writable; older states are untouched.
            HistoryDamaged: somebody shortened the history.
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
        with suppress(OSError, CheckpointUnavailable):  # one checkpoint too many does no harm
            for old in self._files()[:-KEEP]:
                old.unlink()
        return replace(state, history=history)

    def newest(self) -> RunState | None:
        """Read the newest state that is whole.

        Raises:
            RoundError: there are checkpoints, but none is whole.
            CheckpointUnavailable: one that may be whole cannot be read now.
            FedwardError: what a damaged history is made whole from refuses.
        """
        files, also = self._files(), ""
        for path in reversed(files):
            try:
                state, mark = _read(path)
                return replace(state, history=self._whole_history(mark))
            except _DAMAGED:
                continue  # half of `KEEP`'s purpose: the one before it is whole
            except HistoryDamaged as error:
                also = f", {error.problem}"
            except (OSError, MemoryError) as error:
                raise unavailable(path, error) from error
        if files:
            raise self._lost(also)
        return None

    def _whole_history(self, mark: Mark) -> History:
        try:
            return History.load(self._history, mark)
        except HistoryDamaged:
            if self._spare is None:
                raise
            self._history.rebuild(mark, self._spare)
        return History.load(self._history, mark)

    def _lost(self, also: str) -> RoundError:
        what = f"no checkpoint in {self._folder.name} can be read{also}"
        if self._spare is None:
            return RoundError(what, hint="start again without --resume")
        return RoundError(
            f"{what}{' and the registry has no whole copy' if also else ''}",
            hint=f"put back a copy of {self._folder.name}, or offer a new version of the study",
        )

    def _files(self) -> list[Path]:
        try:
            return sorted(p for p in self._folder.iterdir() if p.match("round-*.safetensors"))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unavailable(self._folder, error) from error


def _known_hash(state: RunState) -> str | None:
    """The hash of the weights, if the observer has noted it: a large model is hashed once."""
    last = state.history[-1] if state.history else None
    if last is None or last.round != state.round:
        notes = {} if state.round else state.notes
    else:
        notes = last.notes
    found = notes.get(MODEL)
    return found if isinstance(found, str) else None


def _read(path: Path) -> tuple[RunState, Mark]:
    """A state without its history, and how far that belongs to it."""
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
    state = RunState(
        study_hash=rest["study_hash"],
        round=rest["round"],
        weights=weights,
        transform=rest["transform"],
        site_weights=rest["site_weights"],
        strategy=strategy,
        notes=rest["notes"],
        absent=rest["absent"],
    )
    return state, Mark(**rest["history"])


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
