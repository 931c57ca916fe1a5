"""Whether a study fits under a site's caps, what it would cost, and what would be left. No disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedward.client.ledger.account import Accountant, Caps, Members, Profile, Run, profiles, worst
from fedward.common.errors import PolicyError, PrivacyError
from fedward.common.privacy.accounting import LARGEST_EPSILON, epsilon, spent
from fedward.common.privacy.events import PrivacyEvent

_ROUNDING = 1e-9


def checked_epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """ε by PLD, confirmed by PRV where it is small enough to promise anything; loads torch.

    Raises:
        PrivacyError: the accountants disagree.
    """
    cost = epsilon(events, delta)
    return cost if cost > LARGEST_EPSILON else spent(events, delta).epsilon


@dataclass(frozen=True)
class Forecast:
    """What a study would do to the patient whom it would bring nearest to the caps.

    Attributes:
        before: ε that is spent or set aside without it.
        study: ε of this study alone, all its runs together.
        after: ε with it.
        caps: what the site allows.
    """

    before: float
    study: float
    after: float
    caps: Caps

    @property
    def left(self) -> float:
        """ε that the site's policy leaves now."""
        return max(0.0, self.caps.epsilon_total - self.before)

    @property
    def left_after(self) -> float:
        """ε that would be left."""
        return max(0.0, self.caps.epsilon_total - self.after)

    @property
    def fits(self) -> bool:
        """Whether it stays under both caps."""
        return self.fits_alone and self.after <= self.caps.epsilon_total + _ROUNDING

    @property
    def fits_alone(self) -> bool:
        """Whether it stays under the cap for one study."""
        return self.study <= self.caps.epsilon_per_study + _ROUNDING

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form; what is beyond all use is null."""
        return {
            "before": number(self.before),
            "study": number(self.study),
            "after": number(self.after),
            "left": number(self.left),
            "left_after": number(self.left_after),
            "fits": self.fits,
            "delta": self.caps.delta,
            "epsilon_per_study": self.caps.epsilon_per_study,
            "epsilon_total": self.caps.epsilon_total,
        }


def number(value: float) -> float | None:
    """An ε as JSON has it: null where it is infinite."""
    return value if math.isfinite(value) else None


def words(value: float) -> str:
    """An ε for people.

    >>> words(3.14159), words(float("inf"))
    ('3.14', 'more than 100')
    """
    return f"{value:.2f}" if value <= LARGEST_EPSILON else f"more than {LARGEST_EPSILON:.0f}"


def forecast(
    run: Run,
    runs: Sequence[Run],
    cohorts: Mapping[str, Members],
    caps: Caps,
    accountant: Accountant = checked_epsilon,
) -> Forecast:
    """What admitting a run would come to.

    Args:
        run: as it would be admitted; `runs` may hold it already, closed.
        runs: all runs that were ever admitted.
        cohorts: all cohorts by id, that of `run` among them.
        caps: of the site's policy.
        accountant: computes ε.

    Raises:
        PrivacyError: the accountants disagree.
    """
    others = [r for r in runs if (r.study, r.run) != (run.study, run.run)]
    before = [r for r in runs if r not in others]
    run = replace(run, open=True, reserved=before[0].reserved if before else run.reserved)
    charged = {r.cohort for r in runs if r.totals.training or r.totals.testing} | {run.cohort}
    seen = profiles({c: m for c, m in cohorts.items() if c in charged}, run.cohort)

    def cost(of: Sequence[Run]) -> float:
        return _owed(seen, of, caps.delta, accountant)

    return Forecast(
        before=cost([*others, *before]),
        study=cost([*(r for r in others if r.study == run.study), run]),
        after=cost([*others, run]),
        caps=caps,
    )


def _owed(
    seen: frozenset[Profile], runs: Sequence[Run], delta: float, accountant: Accountant
) -> float:
    return worst(seen, runs, Run.owed, delta=delta, accountant=accountant)


def check_caps(run: Run, runs: Sequence[Run], cohorts: Mapping[str, Members], caps: Caps) -> None:
    """Refuse a run that could not be finished under the caps.

    Raises:
        PrivacyError: see `check_fits`; or the accountants disagree.
    """
    check_fits(forecast(run, runs, cohorts, caps))


def check_runs(before: int, most: int | None) -> None:
    """Refuse one run too many of a study that promises patients nothing.

    Raises:
        PolicyError: the site took part in so many already. It does not say in how many.
    """
    if most is not None and before >= most:
        raise PolicyError(
            "this site takes part in no more runs of this study",
            hint="resume the run that there was, unless another was started; else the site's "
            "stewards can raise max_runs_per_study in policy.toml",
        )


def check_fits(found: Forecast) -> None:
    """Refuse what does not fit.

    Raises:
        PrivacyError: it does not. The message is for the site's own people: it says what is left.
    """
    caps = found.caps
    if not found.fits_alone:
        raise PrivacyError(
            f"the study would cost a patient epsilon = {words(found.study)} at delta = "
            f"{caps.delta:g}, all its runs together; the site's policy allows "
            f"{caps.epsilon_per_study:g} for one study",
            hint="ask for a study that costs less, or change max_epsilon_per_study in policy.toml",
        )
    if not found.fits:
        raise PrivacyError(
            f"the study would bring a patient to epsilon = {words(found.after)} at delta = "
            f"{caps.delta:g}; {words(found.left)} of the site's {caps.epsilon_total:g} is left",
            hint="see `fedward client budget`; ask for a study that costs less, or end runs that "
            "will not go on",
        )
