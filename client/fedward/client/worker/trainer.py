"""A run of a study inside the worker: model, data and ledger stay between rounds.

Order, for every task: are the data still those that were approved? → charge the ledger (inside
`Site`, before a row is looked at) → compute → write the answer durably → record that it is there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedward.client.flower_app import build_client_app
from fedward.client.outbox import write_durably
from fedward.client.worker.flower_internals import NODE_ID, identify, quieten
from fedward.client.worker.opening import Opened, open_site
from fedward.client.worker.protocol import Do, Done, Load, Ready
from fedward.client.worker.records import from_records, to_records
from fedward.common.errors import FedwardError, TrainingError
from fedward.common.wire.body import BLOCK, Body, Written

_RUN_ID = 1


class Trainer:
    """Answers the tasks of one run.

    Args:
        load: which run, and where.

    Raises:
        FedwardError: the site cannot take part; see `open_site`.
    """

    def __init__(self, load: Load) -> None:
        quieten()
        identify(_RUN_ID)
        torch.set_num_threads(load.threads)
        self._opened: Opened = open_site(load)
        self._refusal: FedwardError | None = None
        self._app: ClientApp = build_client_app(
            lambda _context: self._opened.site, on_refusal=self._note
        )
        self._context = Context(_RUN_ID, NODE_ID, {}, RecordDict(), {})

    @property
    def ready(self) -> Ready:
        """What the daemon is told when everything is loaded."""
        return Ready(plan=self._opened.plan_hash)

    def do(self, task: Do) -> Done:
        """Answer one task, durably.

        Raises:
            FedwardError: the site's refusal, in its own words.
        """
        out = Path(task.out)
        self._opened.check_unchanged()
        self._opened.check_caps()
        # Written before this process, or the one before it, was killed: it is whole.
        written = _written(out) if out.exists() else self._compute(task, out)
        self._opened.commit(task.round, task.action, written.sha256.hex())
        return Done(written.sha256.hex(), written.size)

    def _compute(self, task: Do, out: Path) -> Written:
        with Body.open(Path(task.body)) as body:
            content = to_records(body.content())
        message = Message(content, dst_node_id=NODE_ID, message_type=task.action)
        self._refusal = None
        answer = self._app(message, self._context)
        if answer.has_error():
            raise self._refusal or TrainingError(
                "the training process failed", hint="see worker.log of this site"
            )
        return write_durably(out, from_records(answer.content))

    def _note(self, refusal: FedwardError) -> None:
        self._refusal = refusal


def _written(path: Path) -> Written:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(BLOCK):
            digest.update(chunk)
            size += len(chunk)
    return Written(path, digest.digest(), size)
