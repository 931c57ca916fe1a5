"""Tasks of runs on one side, sites on the other: where the threads of runs meet the service.

A run posts tasks and collects answers; the service finds out what waits for a site, receives its
replies and puts them here. Every wait has an end. The same task posted again after a restart finds
the reply that was received before it.

Guarantee:
    An answer is given to the run of its task, at most once for each body; a second, different one
    turns both into a refusal. After `close` nothing is accepted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedward.common.errors import LinkError, StateError
from fedward.common.wire.link_pb2 import Header
from fedward.common.wire.spool import Incoming
from fedward.server.link.shelf import TWICE, Shelf, torn
from fedward.server.link.tasks import Answer, Task

LATE = "no answer before the deadline"
_LOOK_S = 0.25
"""How often a collecting run looks who is absent, and whether it should stop."""
_REMEMBERED = 256
"""How many closed tasks are still known by name, to say what a late reply belonged to."""


@dataclass
class _Slot:
    task: Task
    shelf: Shelf
    given: bytes | None = None
    torn: bool = False
    fresh: list[Answer] = field(default_factory=list)


class Mailbox:
    """Open tasks and their answers; every method may be called from any thread.

    Args:
        folder_for_run: where the replies of a run are kept.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        folder_for_run: Callable[[str], Path],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder_for_run = folder_for_run
        self._clock = clock
        self._changed = threading.Condition()
        self._slots: dict[str, _Slot] = {}
        self._closed: OrderedDict[str, str] = OrderedDict()
        self._listeners: list[Callable[[str], None]] = []

    # --- the run's side ---------------------------------------------------------------------------

    def post(self, tasks: Iterable[Task]) -> None:
        """Offer tasks to their sites; what is offered already stays as it is.

        Replies of earlier rounds of the same run are removed: a run that asks for a round has kept
        what it needs of those before.

        Raises:
            OutputError: the run's folder cannot be made.
        """
        shelves: dict[tuple[str, int], Shelf] = {}
        for task in tasks:
            place = (task.run, task.round)
            if place not in shelves:
                shelves[place] = Shelf(self._folder_for_run(task.run))
                shelves[place].forget_before(task.round)
            self._post(task, shelves[place])

    def _post(self, task: Task, shelf: Shelf) -> None:
        if self.find(task.key) is not None:
            return
        slot, kept = _Slot(task, shelf), shelf.recall(task)
        if kept is not None:
            slot.given, slot.fresh = kept.sha256, [kept.answer]
            slot.torn = kept.answer.refusal is not None and kept.answer.refusal[1] == TWICE
        with self._changed:
            self._slots.setdefault(task.key, slot)
            self._changed.notify_all()
        self._tell(task.site)

    def collect(
        self,
        keys: Iterable[str],
        *,
        deadline: float,
        absent: Callable[[str], str | None],
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Answer]:
        """Answers as they come, one for each task; a task that was answered twice gets another.

        Args:
            keys: of tasks that were posted.
            deadline: when to stop waiting, by the mailbox's clock.
            absent: says why a site is not waited for; None if it is.
            check: called a few times a second while waiting; may raise to end it.

        Raises:
            StateError: a task was closed by somebody else meanwhile.
        """
        left = list(dict.fromkeys(keys))
        asked = list(left)
        while left:
            check()
            over = self._clock() >= deadline
            for answer in self._take(asked, deadline):
                if answer.key in left:
                    left.remove(answer.key)
                yield answer
            for key in list(left):
                site = self._slot(key).task.site
                reason = absent(site) or (LATE if over else None)
                if reason is not None and self._give_up(key):
                    left.remove(key)
                    asked.remove(key)
                    yield Answer(site, key, None, (LinkError.exit_code, reason))

    def take(self, keys: Iterable[str]) -> list[Answer]:
        """Answers that came since the last time, without waiting.

        Raises:
            StateError: a task was closed by somebody else meanwhile.
        """
        with self._changed:
            return self._fresh(list(keys))

    def _give_up(self, key: str) -> bool:
        """Close a task, unless its answer came at the last moment."""
        with self._changed:
            if self._slot(key).fresh:
                return False
            self.close([key])
        return True

    def _take(self, keys: list[str], deadline: float) -> list[Answer]:
        """What came since the last time, after waiting a moment for something to come."""
        with self._changed:
            fresh = self._fresh(keys)
            wait_s = min(_LOOK_S, deadline - self._clock())
            if not fresh and wait_s > 0:
                self._changed.wait(wait_s)
                fresh = self._fresh(keys)
            return fresh

    def _fresh(self, keys: list[str]) -> list[Answer]:
        found: list[Answer] = []
        for key in keys:
            slot = self._slot(key)
            found += slot.fresh
            slot.fresh = []
        return found

    def _slot(self, key: str) -> _Slot:
        slot = self._slots.get(key)
        if slot is None:
            raise StateError(
                "a task was closed while it was waited for", hint="start the run again"
            )
        return slot

    def close(self, keys: Iterable[str], *, anew: Collection[str] = ()) -> None:
        """Nobody waits for these any more; replies that came stay until the next round.

        Args:
            keys: of tasks.
            anew: those of them that the site refused: asked once more, it may think otherwise.
        """
        closed: list[str] = []
        with self._changed:
            for key in keys:
                slot = self._slots.pop(key, None)
                if slot is not None:
                    if key in anew:
                        slot.shelf.forget(slot.task)
                    if slot.given is None:  # who has answered need not be told at once
                        closed.append(slot.task.site)
                    self._closed[key] = slot.task.work
                    if len(self._closed) > _REMEMBERED:
                        self._closed.popitem(last=False)
            self._changed.notify_all()
        for site in closed:
            self._tell(site)

    # --- the service's side -----------------------------------------------------------------------

    def subscribe(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Be told the site for which something was posted or closed; the result ends it.

        The listener is called in the thread that posted, and must not wait.
        """
        with self._changed:
            self._listeners.append(listener)

        def end() -> None:
            with self._changed, suppress(ValueError):  # ended before
                self._listeners.remove(listener)

        return end

    def _tell(self, site: str) -> None:
        with self._changed:
            listeners = list(self._listeners)
        for listener in listeners:
            listener(site)

    def waiting(self, site: str) -> list[Task]:
        """Tasks that a site has not answered."""
        with self._changed:
            slots = list(self._slots.values())
        return [slot.task for slot in slots if slot.task.site == site and slot.given is None]

    def find(self, key: str) -> Task | None:
        """A task, if it is open."""
        with self._changed:
            slot = self._slots.get(key)
            return slot.task if slot else None

    def match(self, *, site: str, run: str, round_number: int, action: str) -> Task | None:
        """The one open task that fits, if there is just one."""
        with self._changed:
            tasks = [slot.task for slot in self._slots.values()]
        asked = (site, run, round_number, action)
        found = [task for task in tasks if (task.site, task.run, task.round, task.action) == asked]
        return found[0] if len(found) == 1 else None

    def offset(self, key: str, *, sha256: bytes, size: int) -> int:
        """How much of a reply is here already.

        Raises:
            StateError: the task is closed.
        """
        slot = self._open(key)
        return (
            size if slot.given == sha256 else slot.shelf.offset(slot.task, sha256=sha256, size=size)
        )

    def begin_reply(self, key: str, header: Header) -> Incoming | None:
        """Where the body of a reply goes; None if the same is here already.

        May read all that came before: not for the event loop. Of one task, only one reply may be
        received at a time.

        Raises:
            LinkError: it is larger than what the task allows.
            StateError: the task is closed, or answered otherwise before.
            OutputError: the disk refuses.
        """
        slot = self._open(key)
        if max(header.body_size, header.plain_size) > slot.task.most_bytes:
            raise LinkError(
                f"the reply to {slot.task.work} is larger than the study's model can be",
                hint="check that site and server have the same study",
            )
        if slot.given is not None:
            self._same_again(slot, header.body_sha256)
            return None
        return slot.shelf.incoming(slot.task, sha256=header.body_sha256, size=header.body_size)

    def accept(self, key: str, header: Header, evidence: bytes) -> bool:
        """A reply is whole: hand it to the run. Decodes and writes: not for the event loop.

        Returns:
            Whether it is new.

        Raises:
            StateError: the task was closed meanwhile, or answered otherwise.
            OutputError: the disk refuses.
        """
        slot = self._open(key)
        kept = slot.shelf.keep(slot.task, header, evidence)
        with self._changed:
            self._open(key)
            if slot.given is None:
                slot.given = kept.sha256
                slot.fresh.append(kept.answer)
                self._changed.notify_all()
                return True
        self._same_again(slot, header.body_sha256)
        return False

    def _same_again(self, slot: _Slot, sha256: bytes) -> None:
        if slot.given == sha256 and not slot.torn:
            return
        slot.shelf.tear(slot.task)
        with self._changed:
            if not slot.torn:
                slot.torn = True
                slot.fresh = [torn(slot.task, b"")]
                self._changed.notify_all()
        raise StateError(
            f"{slot.task.site} {TWICE}, to {slot.task.work}",
            hint="the site keeps the first answer to a task and sends it again; see what is wrong",
        )

    def _open(self, key: str) -> _Slot:
        with self._changed:
            slot = self._slots.get(key)
            work = self._closed.get(key, "a task that is not known")
        if slot is None:
            raise StateError(f"{work} is closed, its reply is late", hint="wait for the next task")
        return slot
