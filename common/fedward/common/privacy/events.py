"""What was released about the patients of one site, as values that can be stored and added up.

Events are what a ledger keeps; ε is always computed from all of them together, never summed.
In every event `noise_multiplier` is σ/C: the standard deviation of the Gaussian noise divided by
how far one patient can move the released vector (L2, adding or removing that patient).

    >>> event = SampledGaussian(sampling_probability=0.1, noise_multiplier=2.0, steps=100)
    >>> event_from_dict(event_to_dict(event)) == event
    True
    >>> compress([event, event])[0].steps
    200
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fedward.common.errors import PrivacyError

Purpose = Literal["statistics", "evaluation"]
"""What an unsampled release was for. Another purpose costs the same; the name is for people."""


@dataclass(frozen=True)
class GaussianRelease:
    """`count` vectors computed from all patients, each released once with Gaussian noise.

    Attributes:
        noise_multiplier: σ/C, > 0.
        count: how many such vectors, ≥ 1.
        purpose: what they were for.
    """

    noise_multiplier: float
    count: int = 1
    purpose: Purpose = "statistics"

    def __post_init__(self) -> None:
        _check_multiplier(self.noise_multiplier)
        _check_count(self.count, "count")
        if self.purpose not in get_args(Purpose):
            raise PrivacyError(
                "a release has a purpose that is not known",
                hint=f"use one of {', '.join(get_args(Purpose))}",
            )


@dataclass(frozen=True)
class SampledGaussian:
    """`steps` steps of DP-SGD (Abadi et al. 2016, algorithm 1) with Poisson sampling.

    Attributes:
        sampling_probability: q in (0, 1]: each patient is in a step's batch, independently.
        noise_multiplier: σ/C, > 0.
        steps: how many, ≥ 1.
    """

    sampling_probability: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _check_multiplier(self.noise_multiplier)
        _check_count(self.steps, "steps")
        if not (_is_number(self.sampling_probability) and 0.0 < self.sampling_probability <= 1.0):
            raise PrivacyError(
                "a sampling probability is out of range", hint="it must be above 0 and at most 1"
            )


PrivacyEvent = GaussianRelease | SampledGaussian

_KINDS: dict[str, type[GaussianRelease] | type[SampledGaussian]] = {
    "gaussian": GaussianRelease,
    "sampled_gaussian": SampledGaussian,
}


def event_to_dict(event: PrivacyEvent) -> dict[str, Any]:
    """The event as a JSON-safe dictionary with a `kind`; floats survive exactly."""
    kind = "gaussian" if isinstance(event, GaussianRelease) else "sampled_gaussian"
    return {"kind": kind, **vars(event)}


def event_from_dict(content: Mapping[str, Any]) -> PrivacyEvent:
    """The reverse of `event_to_dict`.

    Raises:
        PrivacyError: unknown kind, missing or unknown key, or a value out of range. Nothing is
            skipped: an event that is not understood may have cost anything.
    """
    fields = dict(content)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PrivacyError(
            "a privacy event is of a kind that is not known",
            hint="use the version of fedward that wrote it, or a later one",
        )
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise PrivacyError(
            f"a privacy event of kind '{kind}' has missing or unknown keys",
            hint="use the version of fedward that wrote it, or a later one",
        ) from error


def compress(events: Iterable[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """Equal releases counted together, in a fixed order: same cost, far cheaper to account.

    Composition does not depend on order, so this changes no ε; it makes 1,500 one-step events one
    event of 1,500 steps, and gives equal spending an equal (hashable) value.
    """
    releases: Counter[tuple[float, Purpose]] = Counter()
    sampled: Counter[tuple[float, float]] = Counter()
    for event in events:
        if isinstance(event, GaussianRelease):
            releases[event.noise_multiplier, event.purpose] += event.count
        else:
            sampled[event.sampling_probability, event.noise_multiplier] += event.steps
    return (
        *(GaussianRelease(s, n, purpose) for (s, purpose), n in sorted(releases.items())),
        *(SampledGaussian(q, s, n) for (q, s), n in sorted(sampled.items())),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_multiplier(value: object) -> None:
    if not (_is_number(value) and value > 0):  # type: ignore[operator]
        raise PrivacyError(
            "a noise multiplier is not a positive, finite number", hint="without noise no privacy"
        )


def _check_count(value: object, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PrivacyError(f"{name} of a privacy event is no whole number", hint="give 1 or more")
