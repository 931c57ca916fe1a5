"""Progress: sparse plain lines in a pipe, a live bar on a terminal."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedward.simulations.progress import RoundListener, RunProgress


class Clock:
    """Seconds that a test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(rounds: int, seconds_per_round: float = 2.0) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with RunProgress(
        Console(file=stream), [("federated", rounds)], metric="AUROC", clock=clock
    ) as p:
        for k in range(1, rounds + 1):
            clock.now += seconds_per_round
            p.on_round("federated", k, 0.9 if k % 2 == 0 else None)
    assert "\x1b" not in stream.getvalue()
    return stream.getvalue().splitlines()


def test_plain_lines_start_end_and_tell_the_time_left() -> None:
    lines = plain(100)
    assert lines[0] == "Federated: round 1 of 100, 198 s left"
    assert "Federated: round 10 of 100, AUROC 0.900, 180 s left" in lines
    assert lines[-1] == "Federated: round 100 of 100, AUROC 0.900, done in 200 s"


@given(st.integers(1, 500))
def test_plain_lines_are_few(rounds: int) -> None:
    lines = plain(rounds)
    assert len(lines) <= 11
    assert f"round {rounds} of {rounds}" in lines[-1]


def test_each_arm_has_its_own_clock() -> None:
    stream, clock = io.StringIO(), Clock()
    with RunProgress(Console(file=stream), [("local", 1), ("pooled", 1)], clock=clock) as progress:
        clock.now += 5
        progress.on_round("local", 1, None)
        clock.now += 3
        progress.round("pooled", 1, None)
    text = stream.getvalue()
    assert "Local only: round 1 of 1, done in 5 s" in text
    assert "Pooled: round 1 of 1, done in 3 s" in text


def test_on_a_terminal_there_is_a_bar_for_each_arm() -> None:
    stream = io.StringIO()
    console = Console(
        file=stream,
        force_terminal=True,
        width=100,
        legacy_windows=False,
        _environ={"TERM": "xterm"},
    )
    with RunProgress(console, [("local", 2), ("federated", 3)], metric="AUROC") as progress:
        for arm, rounds in (("local", 2), ("federated", 3)):
            for k in range(1, rounds + 1):
                progress.on_round(arm, k, 0.75)
        progress.on_round("unknown", 1, None)
    text = stream.getvalue()
    assert "\x1b" in text
    assert "2/2" in text
    assert "3/3" in text
    assert "AUROC 0.750" in text


def test_an_arm_that_was_not_announced_is_ignored_and_errors_pass() -> None:
    stream = io.StringIO()
    progress: RoundListener = RunProgress(Console(file=stream), [])
    progress.on_round("federated", 1, None)
    assert stream.getvalue() == ""
