"""What happened in each round of a run: a line each in a file that only grows, beside the states.

    history.jsonl    {"round": 1, "participants": ["north", "south"], …}

A checkpoint says how far the file belongs to it, and the hash of that much; the file is written
first. So a round costs the same however many there were, and nobody holds them all in memory.

Guarantee:
    What is read is what was written, up to the checkpoint's mark, or it is not read. Lines that no
    checkpoint has (the process ended between the two) are cut off before the next is written. A
    damaged file is made whole only from a copy that gives what was written, to the byte. A file
    that cannot be read at the moment is no damaged one: nothing is concluded from that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

from fedward.common.errors import RoundError, StateError
from fedward.common.files import output_error, write_atomic

_RECENT = 8
"""Records that stay in memory: the last rounds are looked at after each."""
_AGAIN = "try again; if it stays so, move that file away"
_HINTS = {
    errno.EACCES: "permission is denied, let fedward read it",
    errno.EPERM: "permission is denied, let fedward read it",
    errno.EMFILE: "too many files are open, try again",
    errno.ENFILE: "too many files are open, try again",
    errno.ENOMEM: "memory is short, free some and try again",
    errno.EIO: f"the disk reported an error, {_AGAIN}",
}


class HistoryDamaged(RoundError):  # noqa: N818  (what is the case)
    """A history is not what was written."""


class CheckpointUnavailable(StateError):  # noqa: N818  (a state of things, as of the registry)
    """What was kept of a run cannot be read now; nothing says that it is lost."""


def unavailable(path: Path, error: OSError | MemoryError) -> CheckpointUnavailable:
    """Say that something cannot be read at the moment, and what to do."""
    code = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
    return CheckpointUnavailable(f"cannot read {path.name} now", hint=_HINTS.get(code or 0, _AGAIN))


class Spare(Protocol):
    """Another copy of a run's history, kept elsewhere."""

    def lines(self) -> Sequence[bytes]:
        """Line by line, from round 1; empty for a round that it has no copy of."""
        ...

    def on_rebuilding(self, rounds: int) -> None:
        """The history is about to be made whole from this copy, up to that round."""
        ...


class Drift(NamedTuple):
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form. Copies nothing that is such already, as `dataclasses.asdict` would."""
        return {**vars(self), "drift": {k: d._asdict() for k, d in self.drift.items()}}

    def line(self) -> bytes:
        """As it stands in the file."""
        return json.dumps(self.to_dict()).encode() + b"\n"


@dataclass(frozen=True)
class Mark:
    """How much of a file belongs to a checkpoint.

    Attributes:
        rounds: lines.
        size: bytes.
        sha256: of the last line behind the hash of those before it, hexadecimal.
    """

    rounds: int = 0
    size: int = 0
    sha256: str = ""

    def then(self, line: bytes) -> Mark:
        """With one more line."""
        sha256 = hashlib.sha256(self.sha256.encode() + line).hexdigest()
        return Mark(self.rounds + 1, self.size + len(line), sha256)


@dataclass(frozen=True)
class HistoryFile:
    """The file of a run.

    Attributes:
        path: where; it need not exist.
    """

    path: Path

    def append(self, mark: Mark, records: Iterable[RoundRecord]) -> Mark:
        """Write records durably behind a mark; what stood there is cut off.

        Raises:
            OutputError: the disk refuses.
            HistoryDamaged: the file is shorter than the mark says.
        """
        lines = [record.line() for record in records]
        if not lines:
            return mark
        try:
            with self.path.open("ab") as file:
                if file.tell() < mark.size:
                    raise _damaged(self.path)
                file.truncate(mark.size)
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise output_error(self.path, error) from error
        return reduce(Mark.then, lines, mark)

    def read(self, mark: Mark) -> Iterator[RoundRecord]:
        """Records up to a mark, one after the other.

        Raises:
            HistoryDamaged: the file is not what the mark says; known at the last record only.
            CheckpointUnavailable: it cannot be read now.
        """
        found = Mark()
        try:
            if mark.rounds:
                with self.path.open("rb") as file:
                    for line in islice(file, mark.rounds):
                        found = found.then(line)
                        yield _record(json.loads(line))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.path) from error
        except (OSError, MemoryError) as error:
            raise unavailable(self.path, error) from error
        if found != mark:
            raise _damaged(self.path)

    def rebuild(self, mark: Mark, spare: Spare) -> None:
        """Write the file anew up to a mark, from a copy; rounds without one are taken from here.

        Raises:
            HistoryDamaged: that is not what was written; the file stays as it is.
            CheckpointUnavailable: the file cannot be read now.
            OutputError: the disk refuses.
        """
        copies, ours = spare.lines(), self._lines()
        pairs = islice(zip_longest(copies, ours, fillvalue=b""), mark.rounds)
        lines = [copy or own for copy, own in pairs]
        if reduce(Mark.then, lines, Mark()) != mark:
            raise _damaged(self.path)
        spare.on_rebuilding(mark.rounds)
        write_atomic(self.path, lines)

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except (OSError, MemoryError) as error:
            raise unavailable(self.path, error) from error


@dataclass(frozen=True, eq=False)
class History(Sequence[RoundRecord]):
    """Records of a run's rounds: the last few in memory, the others where they are kept.

    Attributes:
        file: where they are kept.
        kept: how many of them.
        recent: the last of those that are kept.
        fresh: those that are not kept yet.
    """

    file: HistoryFile | None = None
    kept: Mark = Mark()
    recent: tuple[RoundRecord, ...] = ()
    fresh: tuple[RoundRecord, ...] = ()

    @classmethod
    def of(cls, records: Sequence[RoundRecord]) -> History:
        """The same records."""
        return records if isinstance(records, History) else cls(fresh=tuple(records))

    @classmethod
    def load(cls, file: HistoryFile, kept: Mark) -> History:
        """All records up to a mark, after they were looked at.

        Raises:
            HistoryDamaged: the file is not what the mark says.
            CheckpointUnavailable: it cannot be read now.
        """
        return cls(file, kept, tuple(deque(file.read(kept), _RECENT)))

    def then(self, record: RoundRecord) -> History:
        """With one more."""
        return replace(self, fresh=(*self.fresh, record))

    def keep(self, file: HistoryFile) -> History:
        """The same records, all of them in a file.

        Raises:
            OutputError: the disk refuses.
            HistoryDamaged: the file is shorter than it was.
        """
        kept, fresh = (self.kept, self.fresh) if self.file == file else (Mark(), tuple(self))
        recent = (*self.recent, *self.fresh)[-_RECENT:]
        return History(file, file.append(kept, fresh), recent)

    def __len__(self) -> int:
        return self.kept.rounds + len(self.fresh)

    def __iter__(self) -> Iterator[RoundRecord]:
        if self.file is not None:
            yield from self.file.read(self.kept)
        yield from self.fresh

    @overload
    def __getitem__(self, index: int) -> RoundRecord: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[RoundRecord, ...]: ...

    def __getitem__(self, index: int | slice) -> RoundRecord | tuple[RoundRecord, ...]:
        if isinstance(index, slice):
            return tuple(islice(self, *index.indices(len(self))))
        place = range(len(self))[index]
        near = (*self.recent, *self.fresh)
        at = place - (len(self) - len(near))
        return near[at] if at >= 0 else next(islice(self, place, None))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def _record(data: dict[str, Any]) -> RoundRecord:
    drift = {site: Drift(**values) for site, values in data["drift"].items()}
    return RoundRecord(
        **{**data, "participants": tuple(data["participants"]), "drift": drift},
    )


def _damaged(path: Path) -> HistoryDamaged:
    return HistoryDamaged(
        f"{path.name} is not what was written", hint="start again without --resume"
    )
