"""Every non-public symbol of flwr that the worker uses; contract-tested for flwr 1.41.*.

Flower's `Message` reads who it is from a class-level identity, which its own processes set from
their command line. Who carries messages itself sets it himself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.supercore.task_identity import TaskIdentity

NODE_ID = 2
"""Node id of the site, here where nobody else is."""


def identify(run_id: int = 1, *, node_id: int = NODE_ID, task_id: int = 0) -> None:
    """Say who sends messages made in this process. Must be called before the first `Message`."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = task_id


@contextmanager
def another_identity() -> Iterator[None]:
    """Let a carrier of Flower's own be itself again, whoever `identify` has made it meanwhile."""
    kept = TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id
    try:
        yield
    finally:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = kept


def quieten() -> None:
    """Keep flwr's informational log off the worker's own."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
