"""A consortium without sockets: keys, a roster, three sites in this process, and what serves them.

Loaded by tests with `runpy`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import ServerApp

from fedward.client.worker.records import from_records
from fedward.common import records
from fedward.common.audit import AuditLog
from fedward.common.identity import (
    Authority,
    Member,
    PrivateKey,
    Roster,
    RosterFile,
    make_issuer,
    make_root,
    sign_roster,
)
from fedward.common.statements import OFFER, state
from fedward.common.study import Study, canonical_json, study_hash
from fedward.common.tensors import Weights
from fedward.common.wire import kinds
from fedward.common.wire.body import body_size
from fedward.common.wire.link_pb2 import Head, Header
from fedward.common.wire.message import seal
from fedward.server.authority import utc_now
from fedward.server.carrier import Order, run_app
from fedward.server.checkpoints import CheckpointFolder, RunState
from fedward.server.conductor import Conductor, Hooks
from fedward.server.first_weights import first_weights
from fedward.server.patience import Patience
from fedward.server.registry import Choice, Registry, Run, State
from fedward.server.release import Releaser
from fedward.simulations.engines.flaky import Fault, FlakyGrid, run_flaky
from fedward.simulations.engines.loop import LoopGrid, loop_grid
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

SITES = ("site-1", "site-2", "site-3")
LONG_S = 180.0


def a_study(**changes: Any) -> Study:
    section = {"weights": "equal", "min_sites": 2, **changes.pop("aggregation", {})}
    return small_study(aggregation=section, **changes)


class Consortium:
    """A coordinator's folder with a root, a roster and the keys of three sites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = PrivateKey.generate()
        self.keys = {site: PrivateKey.generate() for site in SITES}
        now = utc_now()
        root_key, issuer_key = PrivateKey.generate(), PrivateKey.generate()
        self.root = make_root(root_key, "Test", now=now)
        root = Authority(root_key, self.root)
        self.issuer = Authority(issuer_key, make_issuer(issuer_key.public, root, now=now))
        self.version = 0
        self.publish()

    def publish(self, *, without: Iterable[str] = ()) -> None:
        """A new version of the roster."""
        self.version += 1
        since = "2026-01-01"
        members = [Member.make("coordinator", "coordinator", self.key.public, since=since)]
        for site in SITES:
            member = Member.make(site, "site", self.keys[site].public, since=since)
            members.append(member.revoked("left", since=since) if site in without else member)
        roster = Roster(
            consortium="Test",
            version=self.version,
            issued_at="2026-01-01T00:00:00+00:00",
            host="localhost",
            port=8440,
            members=tuple(members),
        )
        data = sign_roster(roster, self.issuer.key, self.issuer.certificate)
        (self.folder / "roster.json").write_bytes(data)

    @property
    def root_pem(self) -> bytes:
        return self.root.pem.encode()

    def folder_for_run(self, run: str) -> Path:
        return self.folder / "runs" / run


class SiteGrid(LoopGrid):
    """Only the sites that take part; their replies are signed."""

    order: Order
    keys: Mapping[str, PrivateKey]
    answered: Callable[[str], None]
    held: Callable[[], bool]

    def get_node_ids(self) -> Iterable[int]:
        wanted = set(self.order.nodes().values())
        return [node for node in self._contexts if self.site(node) in wanted]

    def _deliver(self, message: Message) -> Message:
        self.order.check()
        while self.held():
            threading.Event().wait(0.005)
            self.order.check()
        answer = super()._deliver(message)
        site = self.site(message.metadata.dst_node_id)
        number = int(message.content.config_records["config"].get(records.ROUND, 0))  # type: ignore[arg-type]
        size = 1 if answer.has_error() else body_size(from_records(answer.content))
        header = Header(
            protocol=kinds.PROTOCOL,
            sender=site,
            recipient="coordinator",
            kind=kinds.REPLY,
            study=self.order.run.study,
            run=self.order.run.id,
            round=number,
            action=message.metadata.message_type,
            body_sha256=b"\1" * 32,
            body_size=size,
            plain_size=size,
            ledger=Head(length=number + 1, hash=bytes([number + 1]) * 32),
        )
        self.order.receipts.add(seal(header, self.keys[site]).SerializeToString())
        self.answered(site)
        return answer


class LoopCarrier:
    """Carries runs to sites in this process."""

    proves = True

    def __init__(self, consortium: Consortium, study: Study, faults: Sequence[Fault] = ()) -> None:
        self.sites = make_sites(study, make_cohorts(study, len(SITES), patients=24))
        self.there = set(SITES)
        self.faults = faults
        self.keys = consortium.keys
        self.answered: Callable[[str], None] = lambda _site: None
        self.held: Callable[[], bool] = lambda: False
        """Whether nobody is asked any more, until the run ends."""
        self.carried = 0

    def connected(self) -> frozenset[str]:
        return frozenset(self.there)

    def carry(self, app: ServerApp, order: Order) -> None:
        self.carried += 1
        grid = loop_grid(self.sites)
        grid.__class__ = SiteGrid
        assert isinstance(grid, SiteGrid)
        grid.order, grid.keys = order, self.keys
        grid.answered, grid.held = self.answered, self.held
        run_app(app, FlakyGrid(grid, self.faults))


class Service:
    """What `fedward server run` holds, without its sockets."""

    def __init__(
        self,
        consortium: Consortium,
        carrier: LoopCarrier,
        patience: Patience | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.consortium, self.carrier = consortium, carrier
        folder = consortium.folder
        self.registry = Registry.open(folder / "registry.sqlite")
        self.roster = RosterFile(folder / "roster.json", consortium.root_pem)
        self.audit = AuditLog.open(folder / "audit.log", consortium.key)
        self.conductor = Conductor(
            self.registry,
            roster=self.roster,
            audit=self.audit,
            carrier=carrier,
            folder_for_run=consortium.folder_for_run,
            release=Releaser(
                self.registry,
                self.roster,
                self.audit,
                "coordinator",
                consortium.key,
                consortium.folder_for_run,
            ),
            hooks=hooks,
            patience=patience or Patience(quorum_s=LONG_S, pause_s=0.01),
            make_weights=first_weights,
        )

    def offer(self, study: Study) -> str:
        content = {"study": study_hash(study), "document": canonical_json(study), "at_ms": 1}
        evidence = state(OFFER, "coordinator", content, self.consortium.key)
        self.registry.offer(study, evidence, SITES)
        return study_hash(study)

    def approve(self, study: str, *sites: str) -> None:
        for site in sites or SITES:
            self.registry.decide(site, study, Choice.APPROVE, b"yes")

    def until(self, *states: State, run: str | None = None) -> Run:
        """Look until the run is in one of these states."""
        deadline = time.monotonic() + LONG_S
        while time.monotonic() < deadline:
            self.conductor.look()
            runs = [r for r in self.registry.runs() if run in (None, r.id)]
            if runs and runs[-1].state in states:
                return runs[-1]
            threading.Event().wait(0.01)
        raise AssertionError(f"{[(r.state, r.reason) for r in self.registry.runs()]}")

    def close(self) -> None:
        assert self.conductor.close(LONG_S)
        self.audit.close()
        self.registry.close()


def final(consortium: Consortium, run: str) -> RunState:
    found = CheckpointFolder(consortium.folder_for_run(run) / "checkpoints").newest()
    assert found is not None
    return found


def same(left: Weights, right: Weights) -> bool:
    return all(left[name].tobytes() == right[name].tobytes() for name in right)


def expected(study: Study) -> Weights:
    sites = make_sites(study, make_cohorts(study, len(SITES), patients=24))
    return run_flaky(study, sites).weights
