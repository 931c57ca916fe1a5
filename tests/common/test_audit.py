"""The audit log: durable, shared between processes, and no change to it goes unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.audit import (
    AuditLog,
    Head,
    current_key,
    empty,
    extend,
    read_entries,
    verify_log,
)
from fedward.common.errors import OutputError, StateError
from fedward.common.identity import PrivateKey

KEY, OTHER = PrivateKey.generate(), PrivateKey.generate()


def written(path: Path, count: int = 4) -> Head:
    with AuditLog.open(path, KEY) as log:
        for number in range(count):
            log.append("noted", number=number, text="ä “quoted”")
        return log.head


with tempfile.TemporaryDirectory() as _folder:
    HEAD = written(Path(_folder) / "audit.log")
    GOOD = (Path(_folder) / "audit.log").read_bytes()
LINES = GOOD.splitlines(keepends=True)


def ok(data: bytes, expected: Head | None = None, key: PrivateKey = KEY) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.log"
        path.write_bytes(data)
        report = verify_log(path, key.public, expected=expected)
        assert report.ok == (report.problem == "")
        return report.ok


def test_a_whole_log_is_good() -> None:
    assert ok(GOOD)
    assert ok(GOOD, HEAD)
    assert HEAD.length == len(LINES) == 5


@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_any_changed_byte_is_noticed(position: int, value: int) -> None:
    changed = bytearray(GOOD)
    changed[position] = value
    assert ok(bytes(changed)) == (bytes(changed) == GOOD)


@given(st.lists(st.sampled_from(range(len(LINES))), max_size=6))
def test_only_the_lines_as_they_were_are_good(order: list[int]) -> None:
    """Removed, moved, doubled: with a witnessed end, nothing but the whole log passes."""
    data = b"".join(LINES[number] for number in order)
    whole = order == list(range(len(LINES)))
    assert ok(data, HEAD) == whole
    # Without one, a log that ends too early looks good: the documented limit.
    beginning = bool(order) and order == list(range(len(order)))
    assert ok(data) == beginning


@given(cut=st.integers(1, len(GOOD) - 1))
def test_a_log_cut_at_any_byte_is_noticed(cut: int) -> None:
    assert not ok(GOOD[:cut], HEAD)
    assert ok(GOOD[:cut]) == GOOD[:cut].endswith(b"\n")


def test_a_log_made_anew_with_another_key_is_noticed(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "audit.log", OTHER) as log:
        log.append("noted", number=0)
    assert not verify_log(tmp_path / "audit.log", KEY.public).ok
    assert verify_log(tmp_path / "audit.log", OTHER.public).ok


def test_entries_appended_with_another_key_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path)
    entry = {"time": "2026-01-01T00:00:00.000+00:00", "kind": "forged", "facts": {}}
    after = extend(head, entry)
    line = entry | {"seq": after.length, "prev": head.hash, "hash": after.hash}
    line["signature"] = OTHER.sign(b"fedward audit entry v1\0" + after.digest).hex()
    data = json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(path.read_bytes() + data)
    report = verify_log(path, KEY.public)
    assert report.problem == "entry 6 is not signed by the log's key"
    assert report.head == head


def test_another_entry_than_was_witnessed_is_noticed(tmp_path: Path) -> None:
    """An old disk was restored, and the log went on differently."""
    path = tmp_path / "audit.log"
    written(path, 2)
    old = path.read_bytes()
    with AuditLog.open(path, KEY) as log:
        seen = log.append("first story")
        assert log.holds(seen)
    path.write_bytes(old)
    with AuditLog.open(path, KEY) as log:
        log.append("second story")
        assert not log.holds(seen)
        assert log.holds(empty("audit log"))
        assert not log.holds(Head(99, seen.hash))
    assert verify_log(path, KEY.public).ok
    report = verify_log(path, KEY.public, expected=seen)
    assert report.problem == "entry 4 is not what was witnessed"
    longer = Head(9, seen.hash)
    assert "5 entries are missing" in verify_log(path, KEY.public, expected=longer).problem


def test_what_is_in_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    with AuditLog.open(path, KEY, lambda: moment) as log:
        head = log.append("approve", study="ab", by="Dr Example")
        first, second = log.entries()
    assert first.kind == "log-begun"
    assert (second.kind, second.facts) == ("approve", {"study": "ab", "by": "Dr Example"})
    assert (second.seq, second.hash, second.prev) == (2, head.hash, first.hash)
    assert second.time == "2026-03-01T12:00:00.000+00:00"
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 1)
    with AuditLog.open(path, KEY) as log:
        assert log.append("again").length == 3
    assert verify_log(path, KEY.public).ok


@pytest.mark.parametrize("torn", [b"{", LINES[-1][:-1], b"\0" * 100])
def test_a_torn_entry_is_cut_off_and_said_so(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 2)
    path.write_bytes(path.read_bytes() + torn)
    assert "cut off" in verify_log(path, KEY.public).problem
    with AuditLog.open(path, KEY) as log:
        log.append("after")
        assert log.holds(head)
        kinds = [entry.kind for entry in log.entries()]
    assert kinds[-2:] == ["log-torn-entry-removed", "after"]
    assert verify_log(path, KEY.public, expected=head).ok


def test_a_torn_beginning_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(LINES[0][:50])
    with AuditLog.open(path, KEY) as log:
        log.append("noted")
    assert verify_log(path, KEY.public).ok


def test_a_broken_chain_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for data in (
        b"".join(LINES[:2] + LINES[3:]),
        GOOD.replace(b'"number":1', b'"number":7'),
        b"x\n" + GOOD,
        GOOD + b"{}\n",
    ):
        path.write_bytes(data)
        with pytest.raises(StateError, match="evidence"):
            AuditLog.open(path, KEY)
        assert path.read_bytes() == data


def test_a_log_that_became_shorter_is_noticed_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path)
    with AuditLog.open(path, KEY) as log:
        os.truncate(path, len(b"".join(LINES[:3])))
        with pytest.raises(StateError, match="shorter"):
            log.append("noted")


def test_a_log_of_another_key_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path)
    with pytest.raises(StateError, match="another key"):
        AuditLog.open(path, OTHER)


def test_a_key_vouches_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 1)
    with AuditLog.open(path, KEY) as log:
        log.change_key(OTHER)
        log.append("after")
    assert current_key(path) == OTHER.public.fingerprint
    for key in (KEY, OTHER):
        report = verify_log(path, key.public)
        assert report.ok
        assert report.keys == (KEY.public.fingerprint, OTHER.public.fingerprint)
    assert not verify_log(path, PrivateKey.generate().public).ok
    with pytest.raises(StateError, match="another key"):
        AuditLog.open(path, KEY)


def test_naming_a_key_does_not_make_a_log_its_own(tmp_path: Path) -> None:
    """A forger can write "the next key is KEY", but not sign with it."""
    path = tmp_path / "audit.log"

    class Forger:
        public = KEY.public

        def sign(self, data: bytes) -> bytes:
            return OTHER.sign(data)

    with AuditLog.open(path, OTHER) as log:
        log.append("forged")
        log.change_key(Forger())
    lines = path.read_bytes().splitlines(keepends=True)
    assert not verify_log(path, KEY.public).ok
    path.write_bytes(b"".join(lines[:-1]))  # up to the entry that names KEY
    assert verify_log(path, KEY.public).problem == "the log was not signed by this key"


def test_another_process_changed_the_key(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    keys = {key.public.fingerprint: key for key in (KEY, OTHER)}
    with (
        AuditLog.open(path, KEY) as stuck,
        AuditLog.open(path, KEY, successor=keys.__getitem__) as follows,
        AuditLog.open(path, KEY) as told,
        AuditLog.open(path, KEY) as changes,
    ):
        changes.change_key(OTHER)
        with pytest.raises(StateError, match="another key"):
            stuck.append("noted")
        follows.append("noted")
        before = told.refresh()
        assert told.change_key(OTHER) == before
        told.append("noted")
    assert verify_log(path, OTHER.public).ok


def test_threads_share_a_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with AuditLog.open(path, KEY) as log:
        threads = [
            threading.Thread(target=lambda: [log.append("noted") for _ in range(10)])
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.head.length == 61
    assert verify_log(path, KEY.public).ok


def test_processes_share_a_log(tmp_path: Path) -> None:
    path, key = tmp_path / "audit.log", tmp_path / "key"
    KEY.save(key)
    code = (
        "import sys; from pathlib import Path\n"
        "from fedward.common.audit import AuditLog\n"
        "from fedward.common.identity.keys import PrivateKey\n"
        "log = AuditLog.open(Path(sys.argv[1]), PrivateKey.load(Path(sys.argv[2])))\n"
        "for number in range(20): log.append('noted', number=number)\n"
        "log.close()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, path, key]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert verify_log(path, KEY.public).head.length == 61


def test_a_full_disk_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    with AuditLog.open(path, KEY) as log:
        head, before, write = log.append("before"), path.read_bytes(), os.write
        # Half of the entry fits.
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        with pytest.raises(OutputError, match="full"):
            log.append("too much")
        monkeypatch.undo()
        assert (log.head, path.read_bytes()) == (head, before)
        log.append("after")
    assert [entry.kind for entry in read_entries(path)] == ["log-begun", "before", "after"]
    assert verify_log(path, KEY.public).ok


def test_an_entry_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.log"
    with AuditLog.open(path, KEY) as log:
        synced = []
        monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
        log.append("noted")
        assert synced == [path.stat().st_size]


@pytest.mark.parametrize("facts", [{"x": float("nan")}, {"x": object()}])
def test_what_is_no_json_is_no_fact(tmp_path: Path, facts: dict[str, object]) -> None:
    with AuditLog.open(tmp_path / "audit.log", KEY) as log:
        with pytest.raises((ValueError, TypeError)):
            log.append("noted", **facts)
        log.append("noted")
    assert verify_log(tmp_path / "audit.log", KEY.public).ok


def test_unreadable_logs(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot read"):
        verify_log(tmp_path / "none", KEY.public)
    with pytest.raises(StateError, match="cannot read"):
        list(read_entries(tmp_path / "none"))
    with pytest.raises(OutputError):
        AuditLog.open(tmp_path / "no" / "folder", KEY)
    (tmp_path / "empty").touch()
    assert verify_log(tmp_path / "empty", KEY.public).problem == "the log is empty"


def test_heads_travel() -> None:
    assert Head.of(HEAD.length, HEAD.digest) == HEAD == Head.read(HEAD.to_dict())
    bad: list[object] = [None, {}, {"length": 1}, {"length": True, "hash": "0" * 64}]
    bad += [{"length": -1, "hash": "0" * 64}, {"length": 1, "hash": "0" * 63}]
    for value in bad:
        with pytest.raises(StateError):
            Head.read(value)


def test_chains_of_two_purposes_are_two() -> None:
    assert empty("audit log") != empty("ledger")
    one, two = (extend(empty(kind), {"x": 1}) for kind in ("audit log", "ledger"))
    assert one.hash != two.hash
