"""Every non-public symbol of flwr that fedward uses, in one place; contract-tested for flwr 1.41.*.

Flower's `Message` reads who it is from a class-level identity, which its own processes set from
their command line: one process, one run. In-process carriers must set it themselves, and a server
has a run in each of several threads; so here the identity is one of the thread, and that of the
class only where a thread has none.
"""

from __future__ import annotations

import logging
import threading

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

import fedward.common.parsing  # noqa: F401  (Flower's arrays parse their headers in each thread)

SERVER_NODE_ID = 1
"""Node id of the server in carriers of our own."""

_own = threading.local()


class _OfThread(type(TaskIdentity)):  # type: ignore[misc]  # the metaclass that Flower gives it
    """Gives a thread's own identity before that of the process."""

    def _get(cls, name: str) -> int:
        own = getattr(_own, name, None)
        return int(own if own is not None else getattr(super(), name))

    def _set(cls, name: str, value: int) -> None:
        setattr(TaskIdentity, f"_{name}", value)

    run_id = property(lambda cls: cls._get("run_id"), lambda cls, v: cls._set("run_id", v))
    node_id = property(lambda cls: cls._get("node_id"), lambda cls, v: cls._set("node_id", v))
    task_id = property(lambda cls: cls._get("task_id"), lambda cls, v: cls._set("task_id", v))


TaskIdentity.__class__ = _OfThread  # type: ignore[method-assign]


class OwnGrid(Grid):
    """What carriers of our own have in common: they know their run, and make messages.

    Args:
        run_id: number that Flower calls the run by.
    """

    def __init__(self, run_id: int) -> None:
        self._run = Run.create_empty(run_id)

    def set_run(self, run: Run) -> None:
        """Say which run this is."""
        self._run = run

    @property
    def run(self) -> Run:
        """Which run this is."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)


def identify(run_id: int, *, node_id: int = SERVER_NODE_ID, task_id: int = 0) -> None:
    """Say who sends messages made in this thread, and in those that never say so themselves.

    Must be called before the first `Message`.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id
    _own.run_id, _own.node_id, _own.task_id = run_id, node_id, task_id


def quieten() -> None:
    """Keep flwr's informational log off the terminal: fedward reports rounds itself."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
