"""What the coordinating service remembers: sites, studies, answers, runs, rounds, receipts, heads.

    >>> registry = Registry.open("sqlite://")
    >>> registry.enrol("north"), registry.enrol("south"), registry.enrol("north")
    (2, 3, 2)
    >>> registry.close()

Every method is one transaction: durable when it returns, undone when it raises. Methods may be
called from any thread and from several processes.
"""

from fedward.server.registry.database import RegistryUnavailable
from fedward.server.registry.facts import (
    Answer,
    Countersignature,
    Event,
    LogHead,
    Offer,
    Receipt,
    Round,
    Run,
    Site,
    Standing,
)
from fedward.server.registry.heads import HeadRecords
from fedward.server.registry.states import Choice, State

__all__ = [
    "Answer",
    "Choice",
    "Countersignature",
    "Event",
    "LogHead",
    "Offer",
    "Receipt",
    "Registry",
    "RegistryUnavailable",
    "Round",
    "Run",
    "Site",
    "Standing",
    "State",
]


class Registry(HeadRecords):
    """The registry; see this package's first lines."""
