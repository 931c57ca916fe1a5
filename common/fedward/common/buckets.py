"""How often somebody may do something: tokens that are taken, and come back with time.

>>> bucket = Bucket(most=2, per_s=0.5, at=0.0)
>>> [bucket.take(now) for now in (0.0, 0.0, 0.0, 1.0, 2.0)]
[True, True, False, False, True]
"""

from __future__ import annotations

from dataclasses import dataclass, field

HOUR_S = 3600.0


@dataclass
class Bucket:
    """Tokens of one of many who take them.

    Attributes:
        most: tokens that it holds, and begins with.
        per_s: tokens that come back in a second.
        at: when that was last reckoned, seconds of a clock that never goes back.
        tokens: how many there were then.
    """

    most: float
    per_s: float
    at: float
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.most

    @classmethod
    def hourly(cls, most: int, now: float) -> Bucket:
        """So many in an hour, in the long run; as many at once after a pause."""
        return cls(most, most / HOUR_S, now)

    def fill(self, now: float) -> float:
        """How many there are by now."""
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.per_s)
        self.at = now
        return self.tokens

    def take(self, now: float) -> bool:
        """Take one, if there is one."""
        if self.fill(now) < 1:
            return False
        self.tokens -= 1
        return True

    def give_back(self, tokens: float) -> None:
        """Put some back that were taken for nothing."""
        self.tokens = min(self.most, self.tokens + tokens)
