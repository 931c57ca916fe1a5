"""Rounds that nobody can do any more: put on record as empty, so that a private run can end.

A site that has paid for a round and was cut off before it answered never does that round again
(`RoundSpentError`). If that happened at so many sites that fewer than the study needs are left, no
waiting helps: the round is counted with no participant, the model stays as it was, and the next
round begins. What the sites paid for it stays paid.

Guarantee:
    No other refusal empties a round. Whoever is away, withdrew, or refuses for another reason may
    still answer, so the round is tried again and the run waits or fails as it always did. A site
    that lies about it can empty a round only where those that were asked are too few without it,
    and at most `MOST_IN_A_ROW` in a row; if it lets one be done in between, that counts anew. Every
    record names it: look at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def check_progress(history: Sequence[RoundRecord]) -> None:
    """Go on only while rounds are done.

    Raises:
        NothingTrained: the last rounds were empty. It is said once for that many.
    """
    empty = 0
    while empty < len(history) and not history[-1 - empty].participants:
        empty += 1
    if empty and empty % MOST_IN_A_ROW == 0:
        raise NothingTrained(
            f"nobody took part in the last {empty} rounds, the last is round {history[-1].round}",
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
