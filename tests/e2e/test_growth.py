"""What judges memory sees what leaks, and nothing else."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from .growth import BOUND_MB, LEAK_KB, growth, with_leak

ROUNDS = [float(number) for number in range(0, 600, 3)]
MB = 1e6


def noisy(seed: int) -> list[float]:
    """A process that stands still, but for 0.3 MB up and down, and a moment of 5 MB at times."""
    drawn = random.Random(seed)
    return [
        100 * MB + drawn.uniform(-0.3, 0.3) * MB + 5 * MB * (drawn.random() < 0.1) for _ in ROUNDS
    ]


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_leak_and_hides_none(seed: int) -> None:
    assert not growth(ROUNDS, noisy(seed)).leaks
    assert with_leak(ROUNDS, noisy(seed)).leaks


@pytest.mark.parametrize("places", [[5], [150], [300], [590], [100, 300, 500]])
def test_steps_are_no_leak_and_hide_none(places: list[int]) -> None:
    resident = [
        value + sum(2 * MB * (at >= place) for place in places)
        for value, at in zip(noisy(1), ROUNDS, strict=True)
    ]
    found = growth(ROUNDS, resident)
    assert not found.leaks, found
    assert with_leak(ROUNDS, resident).leaks
    most = [value + 0.7 * at * 1000 * LEAK_KB for value, at in zip(resident, ROUNDS, strict=True)]
    assert growth(ROUNDS, most).leaks


def test_up_and_down_is_no_leak_and_hides_none() -> None:
    """As a cache does that is emptied when it is full."""
    resident = [value + 5000.0 * (at % 300) for value, at in zip(noisy(4), ROUNDS, strict=True)]
    found = growth(ROUNDS, resident)
    assert not found.leaks, found
    assert with_leak(ROUNDS, resident).leaks


def test_a_large_step_is_a_leak_of_another_kind() -> None:
    resident = [
        value + (BOUND_MB + 2) * MB * (at > 300) for value, at in zip(noisy(2), ROUNDS, strict=True)
    ]
    assert growth(ROUNDS, resident).leaks


def test_less_at_the_end_is_no_leak() -> None:
    resident = [value - 20 * MB * (at > 300) for value, at in zip(noisy(3), ROUNDS, strict=True)]
    assert not growth(ROUNDS, resident).leaks


def test_a_real_leak_is_seen() -> None:
    """A process that keeps 10 kB of every round; and one that does not."""
    program = """
import os, sys
kept = []
for number in range(400):
    kept[int(sys.argv[1]):] = [os.urandom(10_000)]
    if number % 4 == 0:
        pages = int(open("/proc/self/statm").read().split()[1])
        print(number, pages * os.sysconf("SC_PAGE_SIZE"))
"""
    for keeps, leaks in (("1000", True), ("0", False)):
        done = subprocess.run(
            [sys.executable, "-c", program, keeps], capture_output=True, text=True, check=True
        )
        pairs = [list(map(float, line.split())) for line in done.stdout.splitlines()]
        found = growth([number for number, _ in pairs], [rss for _, rss in pairs])
        assert found.leaks == leaks, found
