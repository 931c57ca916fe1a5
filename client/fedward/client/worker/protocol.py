"""What daemon and worker say to each other: one JSON object per line, each way.

    {"load": {...}}  →  {"ready": {...}}    or  {"refused": {...}}  or  {"broken": "..."}
    {"do": {...}}    →  {"done": {...}}     or  {"refused": {...}}  or  {"broken": "..."}

A refusal crosses with its own words: they stay at the site. What the server is told of it is
decided by the daemon (`telling`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from fedward.common.errors import FedwardError, TrainingError, error_for_exit_code

LONGEST_LINE = 1 << 16
"""Bytes of a request or an answer."""
REFUSED = "refused"
BROKEN = "broken"


@dataclass(frozen=True)
class Load:
    """Get ready for a run: read the study, the data and the ledger.

    Attributes:
        folder: of the site, see `SiteFolder`.
        study: hash.
        run: name of the run.
        threads: that may compute at once.
        patients_key: hexadecimal; empty if the site's file of it is not encrypted and can be read.
    """

    folder: str
    study: str
    run: str
    threads: int = 1
    patients_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Do:
    """Answer one task.

    Attributes:
        key: of the task, see `Assignment`.
        body: the task's file.
        action: see `records`.
        round: of the run.
        out: file that the answer becomes, whole or not at all.
    """

    key: str
    body: str
    action: str
    round: int
    out: str


@dataclass(frozen=True)
class Ready:
    """Everything is loaded and admitted.

    Attributes:
        plan: hash of the privacy plan, empty in a study without a promise.
    """

    plan: str = ""


@dataclass(frozen=True)
class Done:
    """The answer is on the disk, and what it cost is on record.

    Attributes:
        sha256: of the file, hexadecimal.
        size: in bytes.
    """

    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not Path(self.sha256).name == self.sha256 or len(self.sha256) != 64:
            raise ValueError("no digest")


def encode(name: str, value: Any) -> bytes:
    """A message as a line."""
    content = value if isinstance(value, str) else asdict(value)
    return json.dumps({name: content}, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class Refused:
    """A refusal in its own words.

    Attributes:
        code: exit code of its kind.
        problem: what is wrong.
        hint: what to do.
    """

    code: int
    problem: str
    hint: str

    @classmethod
    def of(cls, error: FedwardError) -> Self:
        """From the error."""
        return cls(error.exit_code, error.problem, error.hint)

    def error(self) -> FedwardError:
        """Back to the error."""
        kind = error_for_exit_code(self.code) or TrainingError
        return kind(self.problem, hint=self.hint)


def decode(line: bytes) -> tuple[str, Any]:
    """A line as its name and its content.

    Raises:
        ValueError: it is none.
    """
    message = json.loads(line)
    if not isinstance(message, dict) or len(message) != 1:
        raise ValueError("no message")
    [(name, content)] = message.items()
    return str(name), content
