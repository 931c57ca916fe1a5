"""The unchanged server side over the mailbox: what a strategy sends arrives, what comes is lazy."""

from __future__ import annotations

import gc
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedward.common import records
from fedward.common.errors import LinkError, RoundError, StateError
from fedward.common.wire.body import Body, Content, Written, write_body
from fedward.common.wire.encoding import DEFLATE, inflate
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.server.arrays import Blocks, array_record
from fedward.server.flower_internals import identify
from fedward.server.link.grid import GrpcGrid, Hooks
from fedward.server.link.mailbox import LATE, Mailbox
from fedward.server.link.presence import Presence
from fedward.server.link.records import LazyArray, content_of, record_of
from fedward.server.link.tasks import Answer, Task

NODES = {2: "north", 3: "south"}
MakeGrid = Callable[..., GrpcGrid]


class Sites:
    """Sites without a network: answer what the mailbox holds for them, in a thread."""

    def __init__(self, mailbox: Mailbox, folder: Path) -> None:
        self.mailbox = mailbox
        self.folder = folder
        self.bodies: list[Path] = []

    def read(self, task: Task) -> Content:
        """What a task says."""
        self.bodies.append(task.body.path)
        path = task.body.path
        if task.encoding == DEFLATE:
            path = self.folder / "unpacked"
            inflate(task.body.path, path, plain_size=task.plain_size)
        with Body.open(path) as body:
            return body.content()

    def answer(self, task: Task, content: Content) -> Written:
        """Hand in a reply."""
        written = write_body(self.folder / f"answer-{task.site}", content)
        self.hand_in(task, written)
        return written

    def hand_in(self, task: Task, written: Written) -> None:
        """Hand in a reply that is on disk."""
        header = Header(
            round=task.round,
            body_sha256=written.sha256,
            body_size=written.size,
            plain_size=written.size,
        )
        incoming = self.mailbox.begin_reply(task.key, header)
        if incoming is None:
            return
        incoming.write(0, written.path.read_bytes())
        incoming.finish()
        evidence = Signed(header=header.SerializeToString()).SerializeToString()
        self.mailbox.accept(task.key, header, evidence)

    def wait_for(self, site: str) -> Task:
        """The task of a site, as soon as there is one."""
        posted = threading.Event()
        end = self.mailbox.subscribe(lambda _site: posted.set())
        try:
            while not (tasks := self.mailbox.waiting(site)):
                posted.wait(5)
            return tasks[0]
        finally:
            end()


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    return Mailbox(lambda run: tmp_path / run)


@pytest.fixture
def sites(mailbox: Mailbox, tmp_path: Path) -> Sites:
    return Sites(mailbox, tmp_path)


@pytest.fixture
def presence() -> Presence:
    here = Presence()
    for site in NODES.values():
        here.arrived(site)
    return here


@pytest.fixture
def make(mailbox: Mailbox, presence: Presence, tmp_path: Path) -> MakeGrid:
    def grid(**options: Any) -> GrpcGrid:
        values: dict[str, Any] = {
            "study": "ab" * 32,
            "run": "run-1",
            "folder": tmp_path / "out",
            "nodes": lambda: NODES,
            "absence_s": 60.0,
        }
        return GrpcGrid(mailbox, presence, **{**values, **options})

    return grid


def question(number: int = 3) -> RecordDict:
    values = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    return RecordDict(
        {
            records.ARRAYS: array_record({"w": values}),
            records.CONFIG: ConfigRecord({records.ROUND: number, records.TRANSFORM: "{}"}),
        }
    )


def messages(content: RecordDict, *nodes: int) -> list[Message]:
    return [Message(content, node, "train") for node in nodes or tuple(NODES)]


def result(value: float) -> Content:
    return Content({}, {"weight": 1.0}, {"w": np.full((2, 3), value, np.float32)})


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_what_is_sent_arrives_and_what_comes_back_is_lazy(
    make: MakeGrid, sites: Sites, tmp_path: Path
) -> None:
    seen: list[Content] = []

    def work() -> None:
        for value, site in ((1.0, "south"), (2.0, "north")):
            task = sites.wait_for(site)
            seen.append(sites.read(task))
            sites.answer(task, result(value))

    evidence: list[bytes] = []
    grid = make(hooks=Hooks(answered=lambda _task, answer: evidence.append(answer.evidence)))
    content = question()
    thread = in_thread(work)
    answers = list(grid.send_and_receive(messages(content), timeout=20))
    thread.join()
    sent = content.array_records[records.ARRAYS]["w"].numpy()
    assert all((one.arrays["w"] == sent).all() for one in seen)
    assert all(one.config == {records.ROUND: 3, records.TRANSFORM: "{}"} for one in seen)
    assert sites.bodies[0] == sites.bodies[1], "one body for all sites"
    assert list((tmp_path / "out").iterdir()) == []
    assert {answer.metadata.src_node_id for answer in answers} == {2, 3}
    assert all(evidence)
    for answer in answers:
        array = answer.content.array_records[records.ARRAYS]["w"]
        assert isinstance(array, Array)
        assert isinstance(array, Blocks)
        assert (array.dtype, array.shape) == ("float32", (2, 3))
        assert array.block(1, 4).shape == (3,)
        assert answer.content.metric_records[records.METRICS]["weight"] == 1.0
        assert answer.metadata.message_type == "train"


def test_the_first_answer_is_given_while_others_are_awaited(make: MakeGrid, sites: Sites) -> None:
    answers = make().send_and_receive(messages(question()), timeout=20)
    thread = in_thread(lambda: sites.answer(sites.wait_for("south"), result(1.0)))
    assert next(iter(answers)).metadata.src_node_id == 3
    thread.join()
    assert [task.site for task in sites.mailbox.waiting("north")] == ["north"]
    answers.close()  # type: ignore[attr-defined]
    assert sites.mailbox.waiting("north") == []


def test_a_site_that_is_not_connected_is_not_waited_for(
    make: MakeGrid, presence: Presence, sites: Sites
) -> None:
    presence.left("north", presence.arrived("north"), "went")
    thread = in_thread(lambda: sites.answer(sites.wait_for("south"), result(1.0)))
    found = {
        answer.metadata.src_node_id: answer
        for answer in make(absence_s=0.01).send_and_receive(messages(question()), timeout=60)
    }
    thread.join()
    assert found[2].error.code == LinkError.exit_code
    assert found[2].error.reason == "not connected for 0 s"
    assert found[3].has_content()


def test_a_site_that_is_silent_is_named_at_the_deadline(make: MakeGrid) -> None:
    found = list(make().send_and_receive(messages(question(), 2), timeout=0.05))
    assert [answer.error.reason for answer in found] == [LATE]


def test_a_refusal_of_a_site_is_an_error_with_its_code(make: MakeGrid, sites: Sites) -> None:
    refusal = Content({records.ERROR_CODE: 14, records.ERROR_REASON: "not approved"})
    thread = in_thread(lambda: sites.answer(sites.wait_for("north"), refusal))
    (answer,) = make().send_and_receive(messages(question(), 2), timeout=20)
    thread.join()
    assert (answer.error.code, answer.error.reason) == (14, "not approved")


def test_a_reply_that_is_no_body_is_an_error(make: MakeGrid, sites: Sites, tmp_path: Path) -> None:
    import hashlib

    def work() -> None:
        data = b"no body at all"
        path = tmp_path / "garbage"
        path.write_bytes(data)
        written = Written(path, hashlib.sha256(data).digest(), len(data))
        sites.hand_in(sites.wait_for("north"), written)

    thread = in_thread(work)
    (answer,) = make().send_and_receive(messages(question(), 2), timeout=20)
    thread.join()
    assert answer.error.code == LinkError.exit_code
    assert "body" in answer.error.reason


def test_two_answers_that_differ_are_both_given(make: MakeGrid, sites: Sites) -> None:
    """The second as a refusal: the round loop then uses neither."""
    answers = iter(make().send_and_receive(messages(question()), timeout=20))

    def work() -> None:
        task = sites.wait_for("south")
        sites.answer(task, result(1.0))
        with pytest.raises(StateError, match="answered twice, and not the same"):
            sites.answer(task, result(2.0))
        sites.answer(sites.wait_for("north"), result(1.0))

    thread = in_thread(work)
    found = list(answers)
    thread.join()
    of_south = [answer for answer in found if answer.metadata.src_node_id == 3]
    assert of_south[-1].error.reason == "answered twice, and not the same"
    assert [a.has_content() for a in found if a.metadata.src_node_id == 2] == [True]


def test_a_site_that_never_finishes_fills_no_disk(
    make: MakeGrid, sites: Sites, tmp_path: Path
) -> None:
    grid = make()
    list(grid.push_messages(messages(question(), 2)))
    task = sites.wait_for(NODES[2])
    for number in range(5):
        header = Header(
            round=task.round,
            body_sha256=hashlib.sha256(bytes([number])).digest(),
            body_size=1000,
            plain_size=1000,
        )
        incoming = sites.mailbox.begin_reply(task.key, header)
        assert incoming is not None
        incoming.write(0, bytes(999))
        incoming.close()
    assert len(list((tmp_path / "run-1").glob("*.part"))) == 1
    assert sites.mailbox.offset(task.key, sha256=header.body_sha256, size=1000) == 999


def test_after_a_restart_nobody_is_asked_twice(
    make: MakeGrid, sites: Sites, presence: Presence, tmp_path: Path
) -> None:
    answers = iter(make().send_and_receive(messages(question()), timeout=20))
    thread = in_thread(lambda: sites.answer(sites.wait_for("south"), result(7.0)))
    next(answers)
    thread.join()
    # The process dies here: nothing is closed. Another one begins, over the same folder.
    again = Mailbox(lambda run: tmp_path / run)
    grid = GrpcGrid(
        again,
        presence,
        study="ab" * 32,
        run="run-1",
        folder=tmp_path / "out",
        nodes=lambda: NODES,
        absence_s=60,
    )
    late = iter(grid.send_and_receive(messages(question()), timeout=20))
    found = next(late)
    assert found.metadata.src_node_id == 3
    assert found.content.array_records[records.ARRAYS]["w"].numpy()[0, 0] == 7.0
    assert again.waiting("south") == []
    assert len(again.waiting("north")) == 1
    late.close()  # type: ignore[attr-defined]
    # Another question is another task, and the next round forgets this one's replies.
    again.post([_task(again, tmp_path, "south", 4)])
    assert len(again.waiting("south")) == 1
    assert not list((tmp_path / "run-1").glob("000003-*"))


def _task(mailbox: Mailbox, folder: Path, site: str, number: int) -> Task:
    body = write_body(folder / "other", Content({records.ROUND: number}))
    return Task("ab" * 32, "run-1", number, "train", site, body, 1000)


def test_a_damaged_reply_is_asked_for_again(sites: Sites, tmp_path: Path) -> None:
    task = _task(sites.mailbox, tmp_path, "north", 1)
    sites.mailbox.post([task])
    sites.answer(task, result(1.0))
    (body,) = (tmp_path / "run-1").glob("*.body")
    data = bytearray(body.read_bytes())
    data[-1] ^= 1
    body.write_bytes(data)
    again = Mailbox(lambda run: tmp_path / run)
    again.post([task])
    assert again.waiting("north") == [task]


def test_a_run_that_is_stopped_ends_its_waiting(make: MakeGrid, sites: Sites) -> None:
    def stop() -> None:
        raise RoundError("the run was stopped", hint="resume it")

    with pytest.raises(RoundError, match="was stopped"):
        list(make(hooks=Hooks(check=stop)).send_and_receive(messages(question()), timeout=60))
    assert sites.mailbox.waiting("north") == []


def test_pushing_and_pulling_work_too(make: MakeGrid, sites: Sites) -> None:
    grid = make()
    keys = list(grid.push_messages(messages(question())))
    assert list(grid.pull_messages(keys)) == []
    sites.answer(sites.mailbox.waiting("north")[0], result(5.0))
    (answer,) = grid.pull_messages(keys)
    assert answer.metadata.src_node_id == 2
    assert list(grid.pull_messages(keys)) == []


def test_runs_in_threads_of_one_process_keep_their_own_identity(make: MakeGrid) -> None:
    barrier, found = threading.Barrier(4), dict[int, int]()

    def run(run_id: int) -> None:
        grid = make(run_id=run_id, run=f"run-{run_id}")
        barrier.wait()
        message = grid.create_message(RecordDict(), "train", 2, "")
        found[run_id] = message.metadata.run_id
        assert grid.run.run_id == run_id

    threads = [in_thread(lambda n=n: run(n)) for n in range(10, 14)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert found == {n: n for n in range(10, 14)}


# --- records --------------------------------------------------------------------------------------


def test_records_come_back_as_they_went(tmp_path: Path) -> None:
    identify(1)
    record = RecordDict(
        {
            records.ARRAYS: ArrayRecord({"a": Array(np.arange(6.0).reshape(2, 3))}),
            records.CONFIG: ConfigRecord({"text": "x", "number": 2, "yes": True}),
            records.METRICS: MetricRecord({"weight": 1.5}),
        }
    )
    write_body(tmp_path / "body", content_of(record))
    back = record_of(tmp_path / "body")
    assert back == record
    assert record == back
    assert dict(back.config_records[records.CONFIG]) == {"text": "x", "number": 2, "yes": True}
    array = back.array_records[records.ARRAYS]["a"]
    # A carrier of Flower's can still serialise it.
    assert Array(array.dtype, array.shape, array.stype, array.data).numpy().tolist() == [
        [0.0, 1.0, 2.0],
        [3.0, 4.0, 5.0],
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"other": ConfigRecord({"a": 1})},
        {records.ARRAYS: ConfigRecord({"a": 1})},
        {records.CONFIG: ConfigRecord({"a": b"bytes"})},
        {records.CONFIG: ConfigRecord({"a": [1, 2]})},
        {records.METRICS: MetricRecord({"a": [1.0]})},
    ],
    ids=str,
)
def test_what_may_not_travel_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(LinkError):
        content_of(RecordDict(record))


def open_files() -> set[str]:
    return {str(path.readlink()) for path in _descriptors()}


def _descriptors() -> Iterator[Path]:
    for path in Path("/proc/self/fd").iterdir():
        if path.is_symlink():
            yield path


def test_a_body_is_open_for_as_long_as_one_of_its_arrays_is_there(tmp_path: Path) -> None:
    path = tmp_path / "body"
    write_body(path, Content(arrays={"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}))
    record = record_of(path)
    array = record.array_records[records.ARRAYS]["b"]
    path.unlink()  # the next round may begin while somebody still looks at the last one
    del record
    assert isinstance(array, LazyArray)
    assert array.numpy().tolist() == [0.0, 0.0]
    assert any(name.startswith(str(path)) for name in open_files())
    del array
    gc.collect()  # Flower's records refer to themselves
    assert not any(name.startswith(str(path)) for name in open_files())


def test_waiting_has_an_end_by_the_clock_that_is_given(tmp_path: Path) -> None:
    now = [0.0]
    mailbox = Mailbox(lambda run: tmp_path / run, clock=lambda: now[0])
    task = _task(mailbox, tmp_path, "north", 1)
    mailbox.post([task])
    looks: list[float] = []

    def check() -> None:
        looks.append(now[0])
        now[0] += 10

    begin = time.monotonic()
    answers = mailbox.collect([task.key], deadline=25, absent=lambda _site: None, check=check)
    assert list(answers) == [Answer("north", task.key, None, (LinkError.exit_code, LATE))]
    assert looks == [0.0, 10.0, 20.0]
    assert time.monotonic() - begin < 30
