"""Another, slower way to what a ledger costs: straight from the raw rows, patient by patient.

Shares no code with the ledger and none with the accountants: rows are read with plain SQL, people
are enumerated one by one, and ε comes from a numeric convolution written here.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

WIDTH = 30.0
SPACING = 1e-3
SIZE = int(2 * WIDTH / SPACING)
Release = tuple[float, float]
"""Sampling probability and noise multiplier of one step."""


@lru_cache(maxsize=64)
def _spectrum(q: float, sigma: float, adding: bool) -> NDArray[np.complex128]:
    """Fourier transform of the distribution of the privacy loss of one step, on the grid."""
    x = np.linspace(-12.0 * sigma, 12.0 * sigma + 1.0, 400_001)
    cells = np.diff(x)
    middle = x[:-1] + cells / 2
    without = norm.pdf(middle, 0.0, sigma)
    with_one = (1.0 - q) * without + q * norm.pdf(middle, 1.0, sigma)
    # log(1 - q + q·exp((2x - 1) / 2σ²)), without overflow
    loss = np.logaddexp(
        math.log1p(-q) if q < 1.0 else -math.inf,
        math.log(q) + (2.0 * middle - 1.0) / (2.0 * sigma**2),
    )
    mass = (without if adding else with_one) * cells
    loss = -loss if adding else loss
    places = np.round(loss / SPACING).astype(np.int64) % SIZE
    return np.fft.fft(np.bincount(places, weights=mass, minlength=SIZE))


@lru_cache(maxsize=4096)
def epsilon(releases: tuple[tuple[Release, int], ...], delta: float) -> float:
    """ε of `count` steps of each kind together, by convolution of their privacy losses."""
    if not releases:
        return 0.0
    return max(_one_way(releases, delta, adding) for adding in (True, False))


def _one_way(releases: tuple[tuple[Release, int], ...], delta: float, adding: bool) -> float:
    whole = np.ones(SIZE, dtype=np.complex128)
    for (q, sigma), count in releases:
        whole = whole * _spectrum(q, sigma, adding) ** count
    mass = np.maximum(np.fft.ifft(whole).real, 0.0)
    loss = np.arange(SIZE) * SPACING
    loss = np.where(loss >= WIDTH, loss - 2 * WIDTH, loss)

    def delta_at(epsilon: float) -> float:
        above = loss > epsilon
        return float((mass[above] * -np.expm1(epsilon - loss[above])).sum())

    low, high = 0.0, WIDTH
    if delta_at(0.0) <= delta:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def _steps(event: dict[str, Any]) -> tuple[Release, int]:
    if event["kind"] == "gaussian":
        return (1.0, event["noise_multiplier"]), event["count"]
    return (event["sampling_probability"], event["noise_multiplier"]), event["steps"]


class Rows:
    """The raw rows of a ledger file."""

    def __init__(self, path: Path) -> None:
        database = sqlite3.connect(path)
        try:
            self.entries = [
                (number, kind, json.loads(body))
                for number, kind, body in database.execute(
                    "SELECT number, kind, body FROM entries ORDER BY number"
                )
            ]
            self.members = database.execute("SELECT cohort, patient, grp FROM members").fetchall()
        finally:
            database.close()
        self.kinds = {
            body["cohort"]: body["identified_by"] or body["cohort"]
            for _, kind, body in self.entries
            if kind == "cohort"
        }

    def charged(self, *, set_aside: bool) -> dict[tuple[str, str], Counter[Release]]:
        """What each group of each cohort was charged, or could come to be."""
        admitted: dict[tuple[str, str], dict[str, Any]] = {}
        for _, kind, body in self.entries:
            if kind == "admit":
                admitted[body["study"], body["run"]] = body
            elif kind == "close":
                admitted.pop((body["study"], body["run"]))
        still = admitted if set_aside else {}
        found: dict[tuple[str, str], Counter[Release]] = defaultdict(Counter)
        for _, kind, body in self.entries:
            if kind == "reserve" and (body["study"], body["run"]) not in still:
                release, count = _steps(body["event"])
                found[body["cohort"], body["group"]][release] += count
        for body, group in product(still.values(), ("training", "testing")):
            for release, count in map(_steps, body[group]):
                found[body["cohort"], group][release] += count
        return found

    def people(self, cohort: str) -> list[list[tuple[str, str]]]:
        """Everybody who may be in a cohort: for each, all places that person may be in."""
        families: dict[str, dict[bytes, list[tuple[str, str]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for name, patient, group in self.members:
            families[self.kinds[name]][patient].append((name, group))
        own = families.pop(self.kinds[cohort])
        mine = [places for places in own.values() if any(name == cohort for name, _ in places)]
        others = [[[], *family.values()] for family in families.values()]
        return [
            [place for places in choice for place in places] for choice in product(mine, *others)
        ]

    def worst(self, cohort: str, delta: float, *, set_aside: bool = False) -> float:
        """ε of the person of a cohort who lost most."""
        charged = self.charged(set_aside=set_aside)
        worst = 0.0
        for places in self.people(cohort):
            total: Counter[Release] = Counter()
            for place in places:
                total.update(charged.get(place, {}))
            worst = max(worst, epsilon(tuple(sorted(total.items())), delta))
        return worst
