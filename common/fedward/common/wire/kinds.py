"""What a message of the link can be about: the values of `Header.kind`, and how large each may be.

A message of any other kind is refused.
"""

from __future__ import annotations

from typing import Final

PROTOCOL: Final = 1
"""Version of the conversation. Both sides say in `Greet` which ones they speak."""

GREET: Final = "greet"
"""First message of a session, either way."""
TASK: Final = "task"
"""Server to site: do this (`Header.action`)."""
REPLY: Final = "reply"
"""Site to server: what came of a task."""
RECEIPT: Final = "receipt"
"""Server to site: a reply arrived, whole and verified."""
OFFSET: Final = "offset"
"""How much of a reply's body the server has; the answer tells where to go on."""
STUDIES: Final = "studies"
"""Which studies are offered to this site; the answer lists them, each signed by the server."""
DECIDE: Final = "decide"
"""A site approves, refuses or withdraws from a study."""
ROSTER: Final = "roster"
"""The newest roster."""
RENEW: Final = "renew"
"""A new certificate for the same key."""
WITNESS: Final = "witness"
"""Ends of ledgers: a site shows its own, signs those of others, and asks what they signed."""
PROBE: Final = "probe"
"""An empty question, to see whether everything works."""
REFUSAL: Final = "refusal"
"""The answer to a question that is refused; its body says why and with which exit code."""

SMALL: Final = frozenset(
    {GREET, OFFSET, STUDIES, DECIDE, ROSTER, RENEW, WITNESS, PROBE, RECEIPT, REFUSAL}
)
"""Kinds whose body travels inside the message, as JSON."""
LARGEST_SMALL_BODY: Final = 1 << 20
"""Bytes that a small message's body may have."""
ROOM_FOR_OFFERS: Final = LARGEST_SMALL_BODY * 3 // 4
"""Bytes of JSON that the offers in an answer may take; the rest is for what is over."""
LARGEST_OFFER: Final = ROOM_FOR_OFFERS // 2
"""Bytes of JSON that a signed study may take."""
LARGEST_BODY: Final = 2 << 30
"""Bytes that a task's or a reply's body may have, at most; a study's own limit is far lower."""
CHUNK: Final = 512 << 10
"""Bytes of a body sent at a time (measured best between 256 kB and 1 MB)."""
LARGEST_MESSAGE: Final = LARGEST_SMALL_BODY + (64 << 10)
"""Bytes of one gRPC message: what both ends set as their limit."""
