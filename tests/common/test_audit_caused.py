"""Entries that the other side causes: bounded in number, and what is left out is told."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.audit import AuditLog, verify_log
from fedward.common.audit.caused import LEFT_OUT, MOST, MOST_OF_STRANGERS, Caused
from fedward.common.buckets import HOUR_S, Bucket
from fedward.common.errors import OutputError
from fedward.common.identity import PrivateKey


class Kept:
    """A log in memory, and what was counted."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.counted: list[str] = []
        self.now = 0.0
        self.full = False
        self.caused = Caused(self, on_left_out=self.counted.append, clock=lambda: self.now)

    def append(self, kind: str, **facts: Any) -> None:
        if self.full:
            raise OutputError("cannot write", hint="free some space")
        self.entries.append((kind, facts))


@pytest.mark.parametrize(("by", "most"), [("north", MOST), ("", MOST_OF_STRANGERS)])
def test_a_peer_that_never_tires_fills_no_log(by: str, most: int) -> None:
    kept = Kept()
    hours, per_s = 3, 50
    for number in range(int(hours * HOUR_S) * per_s // 10):  # every tenth is enough
        kept.now = number * 10 / per_s
        kept.caused.append("refusal", by=by, number=number)
    assert most * hours <= len(kept.entries) <= most * (hours + 1)
    tried = number + 1
    assert len(kept.entries) + len(kept.counted) == tried
    # Every one of them is in the log, one by one or in a number.
    kept.caused.close()
    told = sum(int(facts.get("left_out", 0)) for _, facts in kept.entries)
    told += sum(int(facts["times"]) for kind, facts in kept.entries if kind == LEFT_OUT)
    assert told == len(kept.counted)
    before = len(kept.entries)
    kept.caused.close()
    assert len(kept.entries) == before


def test_peers_and_kinds_do_not_silence_each_other() -> None:
    kept = Kept()
    for _ in range(2 * MOST):
        kept.caused.append("refusal", by="north")
    assert kept.caused.append("refusal", by="south")
    assert kept.caused.append("log went back", by="north")
    assert not kept.caused.append("refusal", by="north")


def test_what_stays_the_same_is_entered_once_until_it_is_settled() -> None:
    kept = Kept()

    def went_back(length: int) -> bool:
        return kept.caused.append("log went back", by="north", once=True, length=length)

    assert [went_back(6) for _ in range(1000)].count(True) == 1
    assert went_back(5)
    assert went_back(6)
    assert not went_back(6)
    kept.caused.settled("log went back", by="north")
    kept.caused.settled("log went back", by="south")  # which never caused any
    assert went_back(6)
    assert kept.entries[1][1] == {"length": 5, "left_out": 999}
    assert len(kept.counted) == 1000


def test_a_full_disk_loses_no_number() -> None:
    kept = Kept()
    kept.caused.append("x", by="north", once=True)
    kept.caused.append("x", by="north", once=True)
    kept.full = True
    with pytest.raises(OutputError):
        kept.caused.append("x", by="north", n=1)
    with pytest.raises(OutputError):
        kept.caused.close()
    kept.full = False
    kept.caused.close()
    assert kept.entries[-1] == (LEFT_OUT, {"entries": "x", "by": "north", "times": 1})


def test_threads_share_a_limit_and_the_log_stays_whole(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    with AuditLog.open(tmp_path / "audit.log", key) as log:
        caused = Caused(log, clock=lambda: 0.0)

        def many() -> None:
            for number in range(MOST):
                caused.append("refusal", by="north", number=number)

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        caused.close()
        kinds = [entry.kind for entry in log.entries()]
        last = list(log.entries())[-1]
    assert kinds.count("refusal") == MOST
    assert last.facts == {"entries": "refusal", "by": "north", "times": 3 * MOST}
    assert verify_log(tmp_path / "audit.log", key.public).ok


@settings(max_examples=200, deadline=None)
@given(
    most=st.integers(1, 20),
    steps=st.lists(st.floats(0.0, 2000.0, allow_nan=False), max_size=100),
)
def test_no_hour_has_more_than_a_pause_and_an_hour_allow(most: int, steps: list[float]) -> None:
    now, bucket = 0.0, Bucket.hourly(most, 0.0)
    taken: list[float] = []
    for step in steps:
        now += step
        if bucket.take(now):
            taken.append(now)
    for begin in taken:
        within = sum(begin <= moment < begin + HOUR_S for moment in taken)
        assert within <= 2 * most
