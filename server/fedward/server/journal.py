"""Puts a run on record as it goes: rounds and receipts into the registry, all into the audit log.

The checkpoint is the truth about where a run stands. The registry is told of a round before it is
checkpointed; when a run is taken up again, rounds that the checkpoint does not have are taken back
and done again, to the same result.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from fedward.common.audit import AuditLog
from fedward.common.errors import LinkError
from fedward.common.preprocess import Transform
from fedward.common.tensors import Weights
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.server.checkpoints import RunState
from fedward.server.history import RoundRecord
from fedward.server.model_hash import MODEL, model_hash
from fedward.server.registry import LogHead, Receipt, Registry, Round, State


class Receipts:
    """Signed replies of one run, from their arrival until they are put on record with a round.

    Args:
        run: id of the run.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._receipts: dict[tuple[int, str, str], Receipt] = {}
        self._heads: dict[tuple[str, str], LogHead] = {}

    def add(self, evidence: bytes) -> None:
        """A reply came in; its signature was checked by the link.

        Raises:
            LinkError: it is no signed reply to this run.
        """
        receipt, header = read_receipt(evidence)
        if receipt.run != self._run:
            raise LinkError("a receipt is of another run", hint="report this defect")
        heads = [
            LogHead(receipt.site, log, head.length, head.hash.hex(), evidence)
            for log, head in (("ledger", header.ledger), ("audit", header.audit))
            if head.length
        ]
        with self._lock:
            self._receipts[receipt.round, receipt.action, receipt.site] = receipt
            for head in heads:
                key = (head.site, head.log)
                if key not in self._heads or self._heads[key].length < head.length:
                    self._heads[key] = head

    def take(self) -> tuple[list[Receipt], list[LogHead]]:
        """What came since the last time."""
        with self._lock:
            found = list(self._receipts.values()), list(self._heads.values())
            self._receipts, self._heads = {}, {}
            return found


class Journal:
    """Observer of one run (see `server.rounds.Observer`).

    Args:
        run: id of the run.
        registry: where rounds and receipts are kept.
        audit: the coordinator's log.
        receipts: signed replies that came in.
        on_heads: is told the ends of sites' logs that were put on record.
        on_counted: is told the number of each completed round.
        on_failed: is told of each time that a round was given up, and of each that is empty.
    """

    def __init__(
        self,
        run: str,
        *,
        registry: Registry,
        audit: AuditLog,
        receipts: Receipts | None = None,
        on_heads: Callable[[Sequence[LogHead]], None] = lambda _heads: None,
        on_counted: Callable[[int], None] = lambda _number: None,
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._registry = registry
        self._audit = audit
        self._receipts = receipts or Receipts(run)
        self._on_heads = on_heads
        self._on_counted = on_counted
        self._on_failed = on_failed

    def on_prepared(self, transform: Transform, weights: Weights) -> dict[str, Any]:
        """The transform is frozen."""
        model = model_hash(weights)
        digest = hashlib.sha256(transform.to_json().encode()).hexdigest()
        receipts, heads = self._receipts.take()
        self._registry.keep(receipts, heads)
        self._on_heads(heads)
        self._audit.append("run prepared", run=self._run, transform=digest, model=model)
        return {MODEL: model}

    def on_resumed(self, state: RunState) -> None:
        """Bring the registry to where the checkpoint is."""
        again = self._registry.rewind(self._run, state.round)
        self._audit.append("run resumed", run=self._run, after=state.round, taken_back=again)
        self._train_on(state.round)
        for record in state.history[self._registry.run(self._run).round :]:
            self._registry.record_round(self._run, _counted(record, {}))

    def on_evaluating(self, number: int) -> None:
        """The sites are asked to judge the model."""
        del number
        if self._registry.run(self._run).state is State.RUNNING:
            self._registry.transition(self._run, State.EVALUATING)

    def on_round(self, record: RoundRecord, weights: Weights) -> dict[str, Any]:
        """Count the round."""
        model = model_hash(weights)
        receipts, seen = self._receipts.take()
        ends: dict[str, Any] = {}
        for head in seen:
            ends.setdefault(head.site, {})[head.log] = {"length": head.length, "hash": head.hash}
        notes = {MODEL: model}
        counted = _counted(replace(record, notes=notes), ends)
        self._registry.record_round(self._run, counted, receipts=receipts, seen=seen)
        self._on_heads(seen)
        self._audit.append(
            "round",
            run=self._run,
            round=record.round,
            participants=list(record.participants),
            refused=sorted(record.refused),
            model=model,
            heads=ends,
        )
        if record.evaluation:
            self._train_on(record.round)
        if record.participants:
            self._on_counted(record.round)
        else:
            self._registry.note("round without participants", run=self._run, round=record.round)
            self.round_failed()
        return notes

    def lines(self) -> list[bytes]:
        """The registry's copy of the run's history; see `history.Spare`."""
        return [found.line.encode() for found in self._registry.rounds(self._run)]

    def on_rebuilding(self, rounds: int) -> None:
        """The run's history is damaged, and about to be made whole from the registry."""
        self._audit.append("history rebuilt", run=self._run, rounds=rounds)
        self._registry.note("history rebuilt", run=self._run, rounds=rounds)

    def round_failed(self) -> None:
        """A round was given up."""
        self._on_failed()

    def _train_on(self, number: int) -> None:
        """After an evaluation that was not the last, training goes on."""
        found = self._registry.run(self._run)
        if found.state is State.EVALUATING and number < found.rounds:
            self._registry.transition(self._run, State.RUNNING)


def _counted(record: RoundRecord, heads: dict[str, Any]) -> Round:
    """A round as the registry counts it.

    Args:
        record: as the run's history has it.
        heads: ends of the sites' logs.
    """
    return Round(
        round=record.round,
        participants=record.participants,
        refused=record.refused,
        evaluation=record.evaluation,
        model_sha256=str(record.notes.get(MODEL, "")),
        heads=heads,
        line=record.line().decode(),
    )


def read_receipt(evidence: bytes) -> tuple[Receipt, Header]:
    """What a signed reply proves; its signature was checked when it came in.

    Raises:
        LinkError: it is no signed reply.
    """
    try:
        header = Header.FromString(Signed.FromString(evidence).header)
    except DecodeError as error:
        raise LinkError(
            "a receipt cannot be read", hint="check that both sides run the same fedward"
        ) from error
    receipt = Receipt(
        run=header.run,
        round=header.round,
        action=header.action,
        site=header.sender,
        body_sha256=header.body_sha256.hex(),
        evidence=evidence,
    )
    return receipt, header
