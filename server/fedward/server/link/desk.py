"""The desk: who answers the small questions of sites. The link asks it and knows no registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fedward.common.errors import LinkError
from fedward.common.wire.link_pb2 import Header
from fedward.common.wire.session import Heads


@dataclass(frozen=True)
class Question:
    """A small message of a site, verified: it is from that site, whole, and new.

    Attributes:
        site: name in the roster, as in its certificate.
        kind: see `common.wire.kinds`.
        body: what it says.
        header: as the site signed it; its heads are those of the site's logs.
        evidence: the serialised `Signed`, which proves to anybody that the site said so.
    """

    site: str
    kind: str
    body: Mapping[str, Any]
    header: Header
    evidence: bytes


def words(value: object) -> bytes:
    """A text in a question, or in what it brings along, as bytes.

    Raises:
        LinkError: it is none.
    """
    try:
        if isinstance(value, str):
            return value.encode()
    except UnicodeEncodeError:
        pass
    raise malformed()


def malformed() -> LinkError:
    """The refusal of a question that does not say what it must."""
    return LinkError(
        "a question does not say what it must",
        hint="check that both sides run the same version of fedward",
    )


class Desk(Protocol):
    """Answers questions; each method is called in a thread of its own, several at a time.

    Raises:
        FedwardError: the question is refused; the site is told its code and words.
    """

    def greeted(self, question: Question) -> dict[str, Any]:
        """A site connects; what is returned goes along with the answer to its greeting.

        Under `ledger` stands the end of the site's ledger as it was last witnessed here.
        """
        ...

    def studies(self, question: Question) -> dict[str, Any]:
        """Which studies are offered to the site."""
        ...

    def decide(self, question: Question) -> dict[str, Any]:
        """The site approves, refuses or withdraws."""
        ...

    def renew(self, question: Question) -> dict[str, Any]:
        """The site asks for a new certificate for its key."""
        ...

    def roster(self, question: Question) -> dict[str, Any]:
        """The newest roster."""
        ...

    def witness(self, question: Question) -> dict[str, Any]:
        """The site shows the end of its ledger, or signs those of others."""
        ...

    def heads(self, site: str) -> Heads:
        """Ends of our logs that go along with a message to a site. Called often: from memory."""
        ...

    def studies_version(self, site: str) -> int:
        """Changes with what is offered to a site. Called often: from memory."""
        ...
