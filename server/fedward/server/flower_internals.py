"""Every non-public symbol of flwr that fedward uses, in one place; contract-tested for flwr 1.41.*.

Flower's `Message` reads who it is from a class-level identity, which its own processes set from
their command line. In-process carriers must set it themselves.
"""

from __future__ import annotations

import logging

from flwr.proto.node_pb2 import NodeInfo as NodeInfo
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE_ID = 1
"""Node id of the server in carriers of our own."""


def identify(run_id: int, *, node_id: int = SERVER_NODE_ID, task_id: int = 0) -> None:
    """Say who sends messages made in this process. Must be called before the first `Message`."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = task_id


def quieten() -> None:
    """Keep flwr's informational log off the terminal: fedward reports rounds itself."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
