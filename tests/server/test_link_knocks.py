"""Connections that come to nothing are counted, those of well-behaved sites are not."""

from __future__ import annotations

from fedward.server.link.knocks import TELLING, Knocks
from fedward.server.link.refusals import Facts, Refusals


def test_many_that_never_call_are_noted_once_their_time_is_over() -> None:
    noted: list[Facts] = []
    knocks = Knocks(Refusals(noted.append))
    for _ in range(TELLING + 5):
        knocks.begun()
    for port in range(5):
        knocks.called(f"ipv4:10.0.0.1:{port}")
        knocks.called(f"ipv4:10.0.0.1:{port}")
    knocks.look()
    assert noted == []
    knocks.look()
    assert [facts["reason"] for facts in noted] == [
        f"{TELLING} connections came and never said who they are"
    ]
    knocks.look()
    assert len(noted) == 1


def test_sites_that_connect_and_call_are_no_news() -> None:
    noted: list[Facts] = []
    knocks = Knocks(Refusals(noted.append))
    for window in range(5):
        for port in range(100):
            knocks.begun()
            knocks.called(f"ipv4:10.0.0.1:{window}{port}")
        knocks.look()
    assert noted == []


def test_the_same_refusal_is_written_once_and_then_counted() -> None:
    now, noted = [0.0], list[Facts]()
    refusals = Refusals(noted.append, clock=lambda: now[0])
    for port in range(1000):
        refusals.note("bad", peer=f"ipv4:10.0.0.1:{port}", name="north", error="LinkError")
    refusals.note("bad", peer="ipv4:10.0.0.2:1", name="north", error="LinkError")
    assert [facts["peer"] for facts in noted] == ["ipv4:10.0.0.1:0", "ipv4:10.0.0.2:1"]
    now[0] += 11
    refusals.note("other", peer="ipv4:10.0.0.3:1", name="", error="LinkError")
    assert noted[2]["times"] == 999
    assert noted[2]["reason"] == "bad"
    assert noted[3]["reason"] == "other"
    refusals.flush()
    assert len(noted) == 4


def test_who_is_refused_for_ever_new_reasons_fills_no_disk() -> None:
    """A site chooses the name of a run that it says it answers: it stands in the reason."""
    noted: list[Facts] = []
    refusals = Refusals(noted.append, clock=lambda: 0.0)
    for number in range(500):
        refusals.note(f"run {number} is closed" + "x" * 8000, peer="ipv4:1.2.3.4:5", name="north")
    refusals.note("something", peer="ipv4:1.2.3.5:5", name="south")
    refusals.flush()
    assert len(noted) < 25
    assert max(len(facts["reason"]) for facts in noted) <= 300
    assert sum(facts.get("times", 1) for facts in noted) == 501
    assert [facts["reason"] for facts in noted if facts["name"] == "south"] == ["something"]
