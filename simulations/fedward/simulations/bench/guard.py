"""Whether a machine's figures still hold: ratios are compared with those of an earlier time.

Seconds depend on the machine and on what else it does; a ratio of two programs that took turns
hardly does, except for the number of processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedward.common.errors import StateError
from fedward.simulations.bench.results import Bench, Machine, Measured, Task
from fedward.simulations.bench.rivals import LABELS

TOLERANCE = 0.2
"""Share by which a ratio may lie below the smallest of the baseline."""


@dataclass(frozen=True)
class Fall:
    """A ratio that is too low.

    Attributes:
        workload: its name.
        rival: the program that fedward is compared with.
        ratio: how many times as fast fedward is now, the median of the turns.
        allowed: the least that is allowed.
    """

    workload: str
    rival: str
    ratio: float
    allowed: float

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.workload}: {self.ratio:.2f} times as fast as {LABELS[self.rival]},"
            f" at least {self.allowed:.2f} is wanted"
        )


def check_comparable(baseline: Bench, machine: Machine, tasks: Sequence[Task]) -> None:
    """Refuse, before anything is measured, a baseline that says nothing about what is wanted.

    Raises:
        StateError: it is of a machine with another number of processors, or lacks a workload or has
            it with other sizes.
    """
    if baseline.machine.processors != machine.processors:
        raise StateError(
            f"the baseline is of {baseline.machine.processors} processors, not of"
            f" {machine.processors}",
            hint="ratios depend on them; make a baseline for this machine with --json",
        )
    known = {one.task.name: one.task for one in baseline.measured}
    for task in tasks:
        if known.get(task.name) != task:
            raise StateError(
                f"the baseline does not have {task.name} as it is now",
                hint="choose others with --only, or make a new baseline with --json",
            )


def falls(
    baseline: Bench, measured: Sequence[Measured], tolerance: float = TOLERANCE
) -> list[Fall]:
    """The ratios that lie too far below the baseline.

    A program that only one of the two has is not compared: nobody must install the peers.

    Args:
        baseline: see `check_comparable`.
        measured: now.
        tolerance: share of the baseline's smallest ratio by which the median may lie below it.
    """
    before = {one.task.name: one.ratios for one in baseline.measured}
    found = []
    for one in measured:
        for rival, ratio in one.ratios.items():
            earlier = before[one.task.name].get(rival)
            if earlier is None:
                continue
            allowed = earlier.least * (1.0 - tolerance)
            if ratio.median < allowed:
                found.append(Fall(one.task.name, rival, ratio.median, allowed))
    return found
