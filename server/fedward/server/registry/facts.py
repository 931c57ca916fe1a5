"""What the registry tells: frozen values, free of the database they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedward.server.registry.states import Choice, State


@dataclass(frozen=True)
class Site:
    """An enrolled site.

    Attributes:
        name: in the roster.
        node: its number for carriers; never changes and is never given to another.
        since_ms: when it was first seen, Unix time.
    """

    name: str
    node: int
    since_ms: int


@dataclass(frozen=True)
class Answer:
    """What an invited site said to a study.

    Attributes:
        site: which.
        choice: None if it has not answered.
        evidence: the site's signed words.
        at_ms: when it came in.
    """

    site: str
    choice: Choice | None = None
    evidence: bytes = b""
    at_ms: int = 0


@dataclass(frozen=True)
class Offer:
    """A study that was offered.

    Attributes:
        study: its hash.
        name: its short name.
        document: its canonical JSON.
        evidence: the coordinator's signed words.
        state: of its newest run, or of the offer while there is none.
        min_sites: how many it needs.
        offered_ms: when.
        answers: by invited site.
        runs: ids, oldest first.
    """

    study: str
    name: str
    document: str
    evidence: bytes
    state: State
    min_sites: int
    offered_ms: int
    answers: Mapping[str, Answer]
    runs: tuple[str, ...] = ()

    @property
    def approved(self) -> tuple[str, ...]:
        """Sites that approve now, sorted."""
        return tuple(s for s, a in sorted(self.answers.items()) if a.choice is Choice.APPROVE)


@dataclass(frozen=True)
class Standing:
    """Where a study stands, without what it says.

    Attributes:
        study: its hash.
        state: of its newest run, or of the offer while there is none.
        min_sites: how many it needs.
        choices: by invited site, what it says now; None if it has not answered.
        run: id of its newest run, or empty.
    """

    study: str
    state: State
    min_sites: int
    choices: Mapping[str, Choice | None]
    run: str = ""


@dataclass(frozen=True)
class Run:
    """One execution of a study.

    Attributes:
        id: safe as the name of a folder.
        study: hash.
        name: of the study.
        number: 1 for the first run of the study, and so on.
        state: where it stands.
        reason: why it failed or was stopped; else empty.
        round: last recorded round.
        rounds: that the study asks for.
        sites: that it was started with, sorted.
        started_ms: when, Unix time.
        ended_ms: when it last stopped, failed or was released; 0 while it is active.
        stop: whether the coordinator asked for it to be stopped.
    """

    id: str
    study: str
    name: str
    number: int
    state: State
    reason: str
    round: int
    rounds: int
    sites: tuple[str, ...]
    started_ms: int
    ended_ms: int
    stop: bool


@dataclass(frozen=True)
class Round:
    """A completed round, as the server knows it.

    Attributes:
        round: 1, 2, …
        participants: sites whose update is in the model.
        refused: other sites and the reason.
        evaluation: metrics by site and `overall`.
        model_sha256: names the weights after it.
        heads: ends of logs that were on record then.
        at_ms: when it was recorded; 0 before.
        line: all of its record, as the run's history has it; empty if an older fedward counted it.
    """

    round: int
    participants: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    model_sha256: str = ""
    heads: Mapping[str, Any] = field(default_factory=dict)
    at_ms: int = 0
    line: str = ""


@dataclass(frozen=True)
class Receipt:
    """Proof that a site answered a task.

    Attributes:
        run: which run.
        round: which round; 0 before the first.
        action: of the task.
        site: who answered.
        body_sha256: of the reply, hexadecimal.
        evidence: the reply's signed header, serialised.
    """

    run: str
    round: int
    action: str
    site: str
    body_sha256: str
    evidence: bytes


@dataclass(frozen=True)
class LogHead:
    """End of a site's ledger or audit log, as it was seen.

    Attributes:
        site: whose.
        log: `ledger` or `audit`.
        length: entries.
        hash: of the last one, hexadecimal.
        evidence: what the site signed to say so.
        at_ms: when it was seen.
    """

    site: str
    log: str
    length: int
    hash: str
    evidence: bytes = b""
    at_ms: int = 0


@dataclass(frozen=True)
class Countersignature:
    """Another site's signature under the end of a ledger.

    Attributes:
        site: whose ledger.
        length: entries.
        hash: of the last one, hexadecimal.
        witness: who signed.
        evidence: what it signed.
    """

    site: str
    length: int
    hash: str
    witness: str
    evidence: bytes


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        id: increases.
        at_ms: when, Unix time.
        kind: a constant phrase.
        facts: JSON-safe, nothing private.
    """

    id: int
    at_ms: int
    kind: str
    facts: Mapping[str, Any]
