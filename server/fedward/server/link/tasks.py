"""What a run asks a site, and what comes back: plain values that both the run and the link hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedward.common.wire.body import Written
from fedward.common.wire.encoding import PLAIN
from fedward.common.wire.message import task_key


@dataclass(frozen=True)
class Task:
    """One piece of work for one site.

    Attributes:
        study: hash of the study.
        run: name of the run.
        round: number of the round, 0 before the first.
        action: the Flower message type.
        site: who is asked.
        body: as it travels; one file for all sites that are asked the same.
        most_bytes: of the largest reply that is accepted.
        encoding: of the body.
        plain_size: bytes after decoding; 0 if it is not encoded.
    """

    study: str
    run: str
    round: int
    action: str
    site: str
    body: Written
    most_bytes: int
    encoding: str = PLAIN
    plain_size: int = 0

    @cached_property
    def key(self) -> str:
        """The same for the same work, also after a restart."""
        return task_key(
            run=self.run,
            round_number=self.round,
            action=self.action,
            site=self.site,
            body_sha256=self.body.sha256,
        )

    @property
    def work(self) -> str:
        """In words, for refusals."""
        return f"{self.action} in round {self.round} of run {self.run}"


@dataclass(frozen=True)
class Answer:
    """What came of a task.

    Attributes:
        site: who was asked.
        key: of the task.
        body: verified and decoded; None if there is none.
        refusal: exit code and reason, if there is no body.
        evidence: the serialised `Signed` of the reply: proof of who answered what; else empty.
    """

    site: str
    key: str
    body: Path | None
    refusal: tuple[int, str] | None
    evidence: bytes = b""
