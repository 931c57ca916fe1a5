"""What carries a run: the seam between the conductor and whatever reaches the sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedward.common.study import Study
from fedward.server.flower_internals import SERVER_NODE_ID, identify, quieten
from fedward.server.journal import Receipts
from fedward.server.link.grid import GrpcGrid, Hooks
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.presence import Presence
from fedward.server.link.tasks import Answer, Task
from fedward.server.registry import Run

TASKS = "tasks"
"""Folder of a run where the bodies of tasks are, for as long as somebody is asked."""
_RUN_NUMBER = 1
"""Flower's own number of the run: ours are known by name, so it is the same for all."""


@dataclass(frozen=True)
class Order:
    """One run to be carried.

    Attributes:
        run: which.
        study: its protocol.
        nodes: sites that take part now, by node id; asked again before every round.
        receipts: where signed replies are put down.
        check: called a few times a second while sites are waited for; may raise to end it.
    """

    run: Run
    study: Study
    nodes: Callable[[], Mapping[int, str]]
    receipts: Receipts
    check: Callable[[], None]


class Carrier(Protocol):
    """Reaches sites."""

    proves: bool
    """Whether replies come with a signed header each, so that contributions can be proven."""

    def connected(self) -> frozenset[str]:
        """Sites that can be reached now."""
        ...

    def carry(self, app: ServerApp, order: Order) -> None:
        """Run a server app to its end, in this thread.

        Raises:
            FedwardError: what ended the run.
        """
        ...


class LinkCarrier:
    """Carries runs over the fedward link.

    Args:
        mailbox: where runs and sites meet.
        presence: who is connected.
        absence_s: after how long without a connection a site is not waited for.
        folder_for_run: where a run keeps its files.
    """

    proves = True

    def __init__(
        self,
        mailbox: Mailbox,
        presence: Presence,
        *,
        absence_s: float,
        folder_for_run: Callable[[str], Path],
    ) -> None:
        self._mailbox = mailbox
        self._presence = presence
        self._absence_s = absence_s
        self._folder_for_run = folder_for_run

    def connected(self) -> frozenset[str]:
        """Sites that are connected now."""
        return frozenset(found.site for found in self._presence.snapshot() if found.connected)

    def carry(self, app: ServerApp, order: Order) -> None:
        """Run a server app over the link."""

        def answered(_task: Task, answer: Answer) -> None:
            if answer.evidence:
                order.receipts.add(answer.evidence)

        grid = GrpcGrid(
            self._mailbox,
            self._presence,
            study=order.run.study,
            run=order.run.id,
            folder=self._folder_for_run(order.run.id) / TASKS,
            nodes=order.nodes,
            absence_s=self._absence_s,
            hooks=Hooks(answered=answered, check=order.check),
        )
        run_app(app, grid)


def run_app(app: ServerApp, grid: Grid) -> None:
    """Run a server app over a grid, in this thread.

    Raises:
        FedwardError: what ended the run.
    """
    quieten()
    identify(_RUN_NUMBER)
    own = Context(_RUN_NUMBER, SERVER_NODE_ID, {}, RecordDict({"none": ConfigRecord()}), {})
    app(grid, own)
