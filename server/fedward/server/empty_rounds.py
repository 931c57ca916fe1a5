"""Rounds that nobody can do any more: put on record as empty, so that a private run can end.

A site that has paid for a round and was cut off before it answered never does that round again
(`RoundSpentError`). If that happened at so many sites that fewer than the study needs are left, no
waiting helps: the round is counted with no participant, the model stays as it was, and the next
round begins. What the sites paid for it stays paid.

Guarantee:
    No other refusal empties a round. Whoever is away, withdrew, or refuses for another reason may
    still answer, so the round is tried again and the run waits or fails as it always did. A site
    that lies about it can empty a round only where those that were asked are too few without it.
    After `MOST_IN_A_ROW` in a row, or more than `most_in_all` together, the run fails; each time
    that a person resumes it, they are counted anew, and only then: no restart of the server does
    that. Every record names who refused: look at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice

from fedward.common.errors import RoundError
from fedward.common.study import Study
from fedward.server.history import RoundRecord
from fedward.server.replies import Replies

MOST_IN_A_ROW = 3
"""Empty rounds after which a run fails; who resumes it lets it go on."""
_UNUSED = "answered, but too few others can answer this round"


class NothingTrained(RoundError):  # noqa: N818  (what is the case, and trying again changes nothing)
    """Rounds were counted, but nobody took part in them."""


def is_lost(study: Study, replies: Replies, *, expected: int) -> bool:
    """Whether too few sites are left that could ever answer a round of training.

    Args:
        study: the protocol.
        replies: of all sites that were asked.
        expected: sites of the run that could not be asked, but may come.
    """
    if not study.private or not replies.spent:
        return False
    asked = len(replies.accepted) + len(replies.refused)
    return asked - len(replies.spent) + expected < study.aggregation.min_sites


def empty_round(number: int, replies: Replies, absent: Mapping[str, str]) -> RoundRecord:
    """The record of a round that is lost."""
    unused = dict.fromkeys(replies.accepted, _UNUSED)
    return RoundRecord(number, participants=(), refused={**absent, **unused, **replies.reasons})


@dataclass(frozen=True)
class Progress:
    """Empty rounds since a person last let the run go on.

    Attributes:
        in_a_row: the last ones, with none between that was done.
        in_all: those and all before.
        last: number of the last round.
    """

    in_a_row: int = 0
    in_all: int = 0
    last: int = 0

    @classmethod
    def of(cls, history: Sequence[RoundRecord], *, since: int) -> Progress:
        """What a history says.

        Args:
            history: of all rounds.
            since: the last round that was done when a person let the run go on.
        """
        return reduce(cls.then, islice(history, since, None), cls())

    def then(self, record: RoundRecord) -> Progress:
        """With one more round."""
        if record.participants:
            return Progress(0, self.in_all, record.round)
        return Progress(self.in_a_row + 1, self.in_all + 1, record.round)

    def check(self, rounds: int) -> None:
        """Go on only while rounds are done.

        Args:
            rounds: of the study.

        Raises:
            NothingTrained: too many rounds were empty.
        """
        if self.in_a_row >= MOST_IN_A_ROW:
            raise _too_many(f"the last {self.in_a_row} rounds", self.last)
        if self.in_all > most_in_all(rounds):
            raise _too_many(f"{self.in_all} rounds", self.last)


def most_in_all(rounds: int) -> int:
    """Empty rounds that a run puts up with until a person resumes it.

    A tenth of what every site pays for the study is much to lose, and a short study is to survive
    one bad day: so a tenth of its rounds, and never fewer than would end it in a row.

    >>> most_in_all(5), most_in_all(30), most_in_all(100)
    (3, 3, 10)
    """
    return max(MOST_IN_A_ROW, rounds // 10)


def _too_many(which: str, last: int) -> NothingTrained:
    return NothingTrained(
        f"nobody took part in {which}, the last is round {last}",
        hint="see with the sites why they were cut off, then resume the run",
    )


def check_trained(history: Sequence[RoundRecord]) -> None:
    """What comes out of a run is a model only if somebody trained it.

    Raises:
        NothingTrained: nobody took part in any round.
    """
    if not any(record.participants for record in history):
        raise NothingTrained(
            "nobody took part in any round, so there is no model",
            hint="see with the sites why they were cut off, then start the study once more",
        )
