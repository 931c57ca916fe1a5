"""How the link of a hospital behaves, and how it is going."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedward.client.link.backoff import FIRST_S, LONGEST_S
from fedward.client.link.connection import Endpoint
from fedward.common.wire import kinds


@dataclass(frozen=True)
class LinkSettings:
    """How the link behaves.

    Attributes:
        endpoint: where the server is.
        inbox: folder for the bodies of tasks.
        most_bytes: of the largest task that is accepted.
        heartbeat_s: how often each side says that it is there, if the server does not say.
        patience_s: how long a call may take for its next word.
        offer_wait_s: how long a reply waits to be asked for again on a new connection.
        first_wait_s: shortest wait before connecting again.
        longest_wait_s: longest wait.
    """

    endpoint: Endpoint
    inbox: Path
    most_bytes: int = kinds.LARGEST_BODY
    heartbeat_s: float = 20.0
    patience_s: float = 60.0
    offer_wait_s: float = 5.0
    first_wait_s: float = FIRST_S
    longest_wait_s: float = LONGEST_S


@dataclass(frozen=True)
class LinkStatus:
    """How it is going.

    Attributes:
        connected: whether both sides have greeted and hear each other.
        since: when that began or ended, Unix time in seconds.
        last_heard: when the server was last heard, Unix time in seconds; 0 if never.
        problem: why there is no connection; empty if there is.
        skew_s: how far the server's clock is ahead of ours.
        in_hand: tasks that are being fetched, done or answered.
        received: bytes of tasks that were fetched since the daemon began.
        sent: bytes of replies that were sent.
    """

    connected: bool
    since: float
    last_heard: float
    problem: str
    skew_s: float
    in_hand: int
    received: int = 0
    sent: int = 0
