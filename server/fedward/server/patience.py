"""How long a run waits for sites before it fails."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long a run puts up with sites that are away.

    Attributes:
        quorum_s: how long it waits for as many as the study needs.
        attempts: how often a round is tried that too few of the sites that are there answered.
        pause_s: between attempts.
    """

    quorum_s: float = 7 * 24 * 3600.0
    attempts: int = 3
    pause_s: float = 5.0
