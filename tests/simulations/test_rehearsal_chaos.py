"""Chaos keeps its promise: as many kills as it was asked for, however slow the machine is."""

from __future__ import annotations

import itertools
import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedward.common.errors import RoundError
from fedward.simulations.rehearsal import chaos as module
from fedward.simulations.rehearsal.chaos import Chaos, Kind, Moment
from fedward.simulations.rehearsal.federation import Federation

LIMIT_S = 180.0
"""Only so that a test that hangs ends."""


class Played:
    """A service that notes what is done to it; `looks`: how often it trains not yet."""

    def __init__(self, name: str, done: queue.Queue[str], looks: float = 0) -> None:
        self.name, self._done, self.looks = name, done, looks
        self.starts_fail = False
        self.looked = threading.Event()

    def kill(self) -> None:
        pass

    def start(self) -> None:
        if self.starts_fail:
            self._done.put("no start")
            raise RoundError("north did not start", hint="see its output")
        self._done.put(self.name)

    def kill_child(self) -> bool:
        self.looked.set()
        self.looks -= 1
        if self.looks >= 0:
            return False
        self._done.put(f"training at {self.name}")
        return True


class World:
    """A federation of which only the checkpoints are real."""

    def __init__(self, folder: Path, *, rounds: int = 2) -> None:
        self.done: queue.Queue[str] = queue.Queue()
        self.consortium = folder
        self.study = SimpleNamespace(training=SimpleNamespace(rounds=rounds))
        self.server = Played("server", self.done)
        self.daemons = {name: Played(name, self.done) for name in ("north", "south")}
        self._folder = folder / "runs" / "run-1" / "checkpoints"
        self._folder.mkdir(parents=True)

    def chaos(self, *moments: Moment, kills: int = 0) -> Chaos:
        chaos = Chaos(cast("Federation", self), seed=0, kills=kills)
        chaos.moments += moments
        return chaos

    def checkpoint(self, number: int) -> None:
        (self._folder / f"round-{number:07d}.safetensors").touch()

    def next(self) -> str:
        return self.done.get(timeout=LIMIT_S)


def moment(kind: Kind, name: str = "north", *, after: int = 0, wait_s: float = 0.0) -> Moment:
    return Moment(after, wait_s, kind, "server" if kind == "server" else name)


def clock(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    """Time as chaos sees it: it stands still, or runs at every look."""
    times = itertools.count(0.0, step_s)
    fake: Any = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr(module, "time", fake)


def test_all_that_was_promised_happens_before_a_short_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 1000.0)  # as slow a machine as can be
    world = World(tmp_path)
    for daemon in world.daemons.values():
        daemon.looks = 30  # no training process for long
    chaos = world.chaos(kills=9)
    chaos.start()
    for _ in range(9):
        world.next()
    chaos.stop()
    assert [event.after for event in chaos.events] == [0] * 9
    assert {event.kind for event in chaos.events} == {"server", "daemon", "training"}
    assert chaos.problems() == []


def test_what_is_late_happens_at_once_and_what_is_not_due_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 0.0)  # so no wait ever ends
    world = World(tmp_path, rounds=10)
    world.checkpoint(5)
    late = (moment("server", after=3, wait_s=0.3), moment("daemon", after=4, wait_s=0.3))
    chaos = world.chaos(*late, moment("server", after=5, wait_s=0.3))
    chaos.start()
    assert [world.next(), world.next()] == ["server", "north"]
    chaos.stop()
    assert [event.after for event in chaos.events] == [5, 5]
    [problem] = chaos.problems()
    assert problem.startswith("only 2 of 3 kills happened")


def test_a_task_is_not_interrupted_until_its_hospital_gives_it_up(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=10)
    chaos = world.chaos(
        *[moment("training")] * 4, moment("training", "south"), *[moment("training", after=1)] * 2
    )
    chaos.start()
    first = [world.next() for _ in range(5)]
    world.checkpoint(1)
    then = [world.next(), world.next()]
    chaos.stop()
    north, south = "training at north", "training at south"
    assert first == [north, north, "north", north, south]  # a daemon that starts anew counts anew
    assert then == [north, north]


def test_a_hospital_that_takes_no_part_loses_its_daemon_instead(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=10)
    world.daemons["north"].looks = float("inf")
    chaos = world.chaos(moment("training"), moment("server"))
    chaos.start()
    assert world.daemons["north"].looked.wait(LIMIT_S)
    world.checkpoint(1)
    with pytest.raises(queue.Empty):
        world.done.get(timeout=0.2)  # it may still begin to train
    world.checkpoint(2)
    assert [world.next(), world.next()] == ["north", "server"]
    chaos.stop()
    assert [event.kind for event in chaos.events] == ["daemon", "server"]
    assert chaos.problems() == []


def test_what_does_not_start_again_is_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.daemons["north"].starts_fail = True
    chaos = world.chaos(moment("server"), moment("daemon"), moment("server"))
    chaos.start()
    assert [world.next() for _ in range(4)] == ["server", *["no start"] * 3]
    chaos.stop()
    assert len(chaos.events) == 1
    assert chaos.problems() == ["north did not start: see its output"]
