"""Real processes, killed: what a ledger said is on the disk stays, what it did not never was."""

from __future__ import annotations

import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fedward.client.ledger import Caps, Ledger, Members, Totals, report
from fedward.common.errors import OutputError, PrivacyError, StateError
from fedward.common.privacy.events import SampledGaussian

oracle: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("ledger_oracle.py")))

STUDY, PLAN, CODE, DELTA = "a" * 64, "b" * 64, "test", 1e-5
ROUNDS = 200
ROUND = SampledGaussian(0.05, 1.0, 1)
MEMBERS = Members("mrn", "patient", frozenset({b"1" * 32, b"2" * 32}), frozenset({b"3" * 32}))
CAPS = Caps(8.0, 8.0, DELTA)

CHILD = """
    import sys
    from pathlib import Path
    from fedward.client.ledger import Ledger
    from fedward.common.privacy.events import SampledGaussian

    path, cohort, first, last = sys.argv[1:]
    with Ledger(Path(path)) as ledger:
        for number in range(int(first), int(last) + 1):
            reservation = ledger.reserve(
                "a" * 64, "run", round_number=number, group="training",
                event=SampledGaussian(0.05, 1.0, 1), cohort=cohort, plan="b" * 64, code="test",
            )
            print(f"reserved {number} {reservation}", flush=True)
            ledger.commit(reservation, f"{number:064x}")
            print(f"committed {number} {reservation}", flush=True)
"""


VICTIM = """
    import os, signal, sys
    from pathlib import Path
    from fedward.client.ledger import Ledger
    from fedward.common.privacy.events import SampledGaussian

    path, cohort, moment = sys.argv[1:]
    ledger = Ledger(Path(path))
    store = ledger._store
    append = store.append

    def killed(time, entry):
        if moment != "before":
            append(time, entry)
        if moment == "journal":  # pages go to the file before the transaction ends
            store._database.execute("PRAGMA cache_spill = 1")
            store._database.execute("PRAGMA cache_size = 1")
            for index in range(2000):
                store.add_members("x" * 64, [(index.to_bytes(32, "big"), "training")])
        os.kill(os.getpid(), signal.SIGKILL)

    store.append = killed
    ledger.reserve(
        "a" * 64, "run", round_number=2, group="training",
        event=SampledGaussian(0.05, 1.0, 1), cohort=cohort, plan="b" * 64, code="test",
    )
"""


def prepared(path: Path) -> Ledger:
    """A ledger with a run that is admitted, without the accountants: they are tested elsewhere."""
    ledger = Ledger(path)
    ledger.add_cohort(MEMBERS)
    total = SampledGaussian(0.05, 1.0, ROUNDS)
    ledger.admit(STUDY, "run", MEMBERS.id, plan=PLAN, totals=Totals((total,)), caps=CAPS, code=CODE)
    return ledger


def reserve(ledger: Ledger, number: int) -> int:
    return ledger.reserve(
        STUDY,
        "run",
        round_number=number,
        group="training",
        event=ROUND,
        cohort=MEMBERS.id,
        plan=PLAN,
        code=CODE,
    )


def start(path: Path, first: int, last: int = ROUNDS) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(path), MEMBERS.id]
    return subprocess.Popen(
        [*command, str(first), str(last)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("lines", [1, 2, 7, 24])
def test_what_a_killed_process_reserved_is_spent_and_what_it_committed_is_kept(
    lines: int, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    prepared(path).close()
    with start(path, 1) as child:
        assert child.stdout is not None
        heard = [child.stdout.readline().split() for _ in range(lines)]
        child.kill()
        heard += [line.split() for line in child.stdout if line.endswith("\n")]
        assert child.wait() == -signal.SIGKILL
    said = {
        word: [int(n) for kind, n, _ in heard if kind == word] for word in ("reserved", "committed")
    }
    with Ledger(path) as ledger:
        kept = ledger.reservations(STUDY, "run")
        numbers = [found.entry.round for found in kept]
        assert numbers[: len(said["reserved"])] == said["reserved"]
        assert len(numbers) <= len(said["reserved"]) + 1, "at most what it had no time to say"
        done = [found.entry.round for found in kept if found.reply]
        assert set(said["committed"]) <= set(done)
        assert [f.reply for f in kept if f.reply] == [f"{n:064x}" for n in done]
        (cohort,) = report(ledger, DELTA).cohorts
        assert cohort.spent == pytest.approx(
            oracle["Rows"](path).worst(MEMBERS.id, DELTA), abs=2e-4
        )
        assert cohort.spent > 0
        for found in kept:
            word = "done before" if found.reply else "interrupted here"
            with pytest.raises(PrivacyError, match=word):
                reserve(ledger, found.entry.round)
        reserve(ledger, numbers[-1] + 1)


@pytest.mark.parametrize("moment", ["before", "inside", "journal"])
def test_a_process_killed_in_the_middle_of_an_entry_leaves_none(
    moment: str, tmp_path: Path
) -> None:
    """Killed with the lock held, before and after the row, and with pages already in the file."""
    path = tmp_path / "ledger.sqlite"
    ledger = prepared(path)
    reserve(ledger, 1)
    head = ledger.head
    ledger.close()
    command = [sys.executable, "-c", textwrap.dedent(VICTIM), str(path), MEMBERS.id, moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    if moment == "journal":
        assert path.with_name(path.name + "-journal").stat().st_size > 0, "there is work to undo"
    with Ledger(path) as after:
        assert after.head == head
        assert [found.entry.round for found in after.reservations(STUDY, "run")] == [1]
        reserve(after, 2)


def test_processes_that_share_a_ledger_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with prepared(path) as ledger:
        with start(path, 1, 60) as one, start(path, 61, 120) as two:
            for number in range(121, 141):  # while both write
                reserve(ledger, number)
            said = [line.split() for child in (one, two) for line in child.stdout or ()]
            assert (one.wait(), two.wait()) == (0, 0)
        rounds = [found.entry.round for found in ledger.reservations(STUDY, "run")]
        assert sorted(rounds) == list(range(1, 141))
        assert sorted(int(n) for kind, n, _ in said if kind == "committed") == list(range(1, 121))
    with Ledger(path) as again:
        assert len(again.reservations(STUDY, "run")) == 140


def test_two_processes_that_want_the_same_round_get_it_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    prepared(path).close()
    children = [start(path, 1, 1) for _ in range(3)]
    heard = []
    for child in children:
        with child:
            heard.append(child.communicate()[0])
    assert sorted(child.returncode for child in children) == [0, 1, 1]
    assert sum("reserved 1" in text for text in heard) == 1
    with Ledger(path) as ledger:
        assert len(ledger.reservations(STUDY, "run")) == 1


def test_nothing_is_judged_before_others_are_locked_out(tmp_path: Path) -> None:
    """Else two processes could both find that a round is free, or that a study fits."""
    with prepared(tmp_path / "ledger.sqlite") as ledger:
        said: list[str] = []
        ledger._store._database.set_trace_callback(said.append)
        reserve(ledger, 1)
        assert said[0] == "BEGIN IMMEDIATE"
        assert said[-1] == "COMMIT"
        assert any(statement.startswith("SELECT") for statement in said[1:-1])
        assert any(statement.startswith("INSERT") for statement in said[1:-1])


def test_every_entry_is_synced_before_it_counts(tmp_path: Path) -> None:
    """A killed process cannot show this, a lost power supply would: SQLite must be told so."""
    path = tmp_path / "ledger.sqlite"
    with prepared(path) as ledger:
        database = ledger._store._database
        assert database.execute("PRAGMA synchronous").fetchone() == (3,), "EXTRA"
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_system_is_asked_to_sync(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    prepared(path).close()
    trace = tmp_path / "trace"
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(path), MEMBERS.id, "200", "200"]
    subprocess.run(
        ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(trace), *command],
        check=True,
        capture_output=True,
    )
    assert trace.read_text().count("sync(") >= 2 * 3, "journal, file and folder, for two entries"


def test_a_ledger_that_another_process_holds_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    prepared(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with Ledger(path, busy_s=0.05) as ledger, pytest.raises(OutputError, match="cannot use"):
            reserve(ledger, 1)
    finally:
        other.close()
    with Ledger(path) as ledger:
        assert ledger.reservations(STUDY, "run") == ()


def refused(ledger: Ledger) -> int:
    """Reserve round after round; the first that the disk refuses."""
    for number in range(1, ROUNDS):
        try:
            reserve(ledger, number)
        except OutputError:
            return number
    pytest.fail("the disk never refused")


def test_a_full_disk_costs_nothing_that_was_not_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with prepared(path) as ledger:
        pages = ledger._store._database.execute("PRAGMA page_count").fetchone()[0]
        ledger._store._database.execute(f"PRAGMA max_page_count = {pages}")
        number = refused(ledger)
        kept = [found.entry.round for found in ledger.reservations(STUDY, "run")]
        assert kept == list(range(1, number))
        ledger._store._database.execute("PRAGMA max_page_count = 100000")
        reserve(ledger, number)
    with Ledger(path) as again:
        assert len(again.reservations(STUDY, "run")) == number


def test_a_ledger_that_was_moved_away_under_a_process_is_not_written_to(tmp_path: Path) -> None:
    """Otherwise what is reserved would be in a file that nobody finds again."""
    path = tmp_path / "ledger.sqlite"
    with prepared(path) as ledger:
        shutil.copy(path, tmp_path / "copy")
        path.unlink()
        (tmp_path / "copy").rename(path)
        with pytest.raises((OutputError, StateError)):
            reserve(ledger, 1)
    with Ledger(path) as other:
        assert other.reservations(STUDY, "run") == ()
