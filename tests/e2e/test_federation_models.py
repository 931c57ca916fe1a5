"""A federation of processes comes to the simulation's model and its price, and sends nothing else.

The first two compare with `fedward simulate` on the examples; the last two look at one private
run from the server's side, with everything that hospitals said recorded as it came in.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.e2e.town import LIMIT_S, QUIET

from fedward.client.cohort import Cohort
from fedward.client.ledger import Ledger
from fedward.client.ledger.report import report
from fedward.client.site import Site
from fedward.client.workspace import Workspace
from fedward.common import records
from fedward.common.privacy.accounting import epsilon
from fedward.common.privacy.events import compress
from fedward.common.privacy.plan import PrivacyPlan
from fedward.common.tensors import from_safetensors
from fedward.common.wire import kinds
from fedward.common.wire.body import Body, Content
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.common.wire.message import unpack
from fedward.common.wire.session import Session
from fedward.server.home import ConsortiumFolder
from fedward.server.link.shelf import Kept, Shelf
from fedward.server.link.tasks import Task
from fedward.server.service import Options, serve
from fedward.simulations.arms import make_sites
from fedward.simulations.cohorts import load_cohorts
from fedward.simulations.rehearsal.federation import Federation, command
from fedward.simulations.rehearsal.hospitals import prepare_hospitals

pytestmark = pytest.mark.slow


def make_federation(study_file: Path, folder: Path) -> Federation:
    from fedward.common.study import load_study

    study = load_study(study_file)
    (folder / "data").mkdir()
    hospitals = prepare_hospitals(study, study_file.parent, folder / "data")
    federation = Federation(study_file, hospitals, folder, environment=QUIET)
    federation.found()
    return federation


def released(federation: Federation) -> dict[str, Any]:
    """Do the federation's study, from the offer to the release."""
    federation.submit()
    for hospital in federation.hospitals:
        federation.approve(hospital.name)
    run = federation.wait(2 * LIMIT_S, watch=lambda _run: None)
    assert run["state"] == "released", run
    return run


def simulated(study_file: Path, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of `fedward simulate`, without the arms that it is compared with."""
    text = study_file.read_text().replace('compare = ["local", "pooled"]', "compare = []")
    assert "compare = []" in text
    shutil.copytree(study_file.parent, folder / "example")
    copy = folder / "example" / "alone.toml"
    copy.write_text(text)
    command("simulate", copy, "--out", folder / "OUT")
    return dict(from_safetensors((folder / "OUT/model/weights.safetensors").read_bytes()))


@pytest.mark.data
def test_four_hospitals_come_to_the_simulation_s_model(
    tmp_path: Path, repository: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDWARD_DATA", str(data_dir))
    study_file = repository / "examples/heart-disease/free.toml"
    expected = simulated(study_file, tmp_path)
    federation = make_federation(study_file, tmp_path)
    try:
        federation.start()
        run = released(federation)
    finally:
        federation.stop()
    model = federation.release(run["run"]) / "model"
    weights = from_safetensors((model / "weights.safetensors").read_bytes())
    assert list(weights) == list(expected)
    for name, value in expected.items():
        assert np.abs(weights[name] - value).max() <= 1e-6
    assert run["sites"] == ["cleveland", "hungarian", "switzerland", "va"]


# A private run, recorded.


@dataclass
class Recorded:
    """Everything that came in at the server: messages with their small bodies, and replies."""

    headers: list[Header] = field(default_factory=list)
    small: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    bodies: list[tuple[Header, Content, int]] = field(default_factory=list)


@dataclass
class Private:
    """The breast-cancer example, done by a federation whose server was listened to."""

    federation: Federation
    run: dict[str, Any]
    recorded: Recorded
    sites: dict[str, Site]
    cohorts: Sequence[Cohort]

    def plan(self, name: str) -> PrivacyPlan:
        plan = self.sites[name].plan
        assert plan is not None
        return plan


def listen(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Record at the two places that every message of a hospital passes."""
    recorded, opened, kept = Recorded(), Session.open, Shelf.keep

    def open_(self: Session, signed: Signed, *args: Any, **kwargs: Any) -> Header:
        header = opened(self, signed, *args, **kwargs)
        recorded.headers.append(header)
        recorded.raw.append(signed.SerializeToString())
        if header.kind in kinds.SMALL:
            recorded.small.append((header.kind, unpack(signed.body)))
        return header

    def keep(self: Shelf, task: Task, header: Header, evidence: bytes) -> Kept:
        found = kept(self, task, header, evidence)
        assert found.answer.body is not None
        with Body.open(found.answer.body) as body:
            recorded.bodies.append((header, body.content(), found.answer.body.stat().st_size))
        recorded.raw.append(found.answer.body.read_bytes())
        return found

    monkeypatch.setattr(Session, "open", open_)
    monkeypatch.setattr(Shelf, "keep", keep)
    return recorded


class Serving:
    """The service in a thread of this process."""

    def __init__(self, folder: ConsortiumFolder) -> None:
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        options = Options(started=lambda _port: self._up.set())
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(serve(folder, options, self._stop),)
        )

    def __enter__(self) -> None:
        self._thread.start()
        assert self._up.wait(LIMIT_S)

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_S)
        self._loop.close()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Private:
    study_file = repository / "examples/breast-cancer/study.toml"
    federation = make_federation(study_file, tmp_path_factory.mktemp("private"))
    cohorts = load_cohorts(federation.study, study_file.parent)
    sites = make_sites(federation.study, cohorts, Workspace())
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorded = listen(monkeypatch)
        try:
            with Serving(ConsortiumFolder.open(federation.consortium)):
                for daemon in federation.daemons.values():
                    daemon.start()
                run = released(federation)
                federation.until(lambda: not still_open(federation), LIMIT_S)
        finally:
            federation.stop()
    return Private(federation, run, recorded, sites, cohorts)


def ledger_of(federation: Federation, name: str) -> Path:
    return federation.site(name) / "state/ledger.sqlite"


def still_open(federation: Federation) -> list[str]:
    found = []
    for name in federation.daemons:
        with Ledger(ledger_of(federation, name)) as ledger:
            found += [name for run in ledger.book.runs.values() if run.open]
    return found


def test_every_ledger_holds_what_the_plan_of_the_simulation_says(private: Private) -> None:
    federation = private.federation
    assert len(federation.daemons) == 4
    delta = federation.study.privacy.delta
    assert delta is not None
    spent = {}
    for name in federation.daemons:
        plan = private.plan(name)
        with Ledger(ledger_of(federation, name)) as ledger:
            [run] = ledger.book.runs.values()
            assert compress(run.paid("training")) == compress(plan.total())
            assert compress(run.paid("testing")) == compress(plan.evaluation_total())
            found = report(ledger, delta, epsilon)
        spent[name] = found.cohorts[0].spent
        # Who trains and who is tested are different people: the dearer of the two.
        costs = [epsilon(events, delta) for events in (plan.total(), plan.evaluation_total())]
        assert spent[name] == pytest.approx(max(costs), abs=1e-9)
    assert len({round(value, 9) for value in spent.values()}) == 1, spent
    assert federation.study.privacy.epsilon is not None
    assert 0.99 * 1.9 < max(spent.values()) <= federation.study.privacy.epsilon


def test_the_release_says_what_was_promised_and_no_more(private: Private) -> None:
    release = private.federation.release(private.run["run"])
    said = json.loads((release / "privacy.json").read_text())
    assert (said["epsilon"], said["unit"]) == (1.9, "patient")
    root = private.federation.consortium / "ca/root.crt"
    found = command("server", "verify-release", release, "--root", root)
    assert found["proven"] == found["contributions"] == 4 * 30
    text = b"\n".join(path.read_bytes() for path in release.rglob("*") if path.is_file())
    for name in private.federation.daemons:
        assert not told(text, *secrets(private, name))


def secrets(private: Private, name: str) -> tuple[float, ...]:
    """q and σ of a hospital, but for round numbers, which stand everywhere."""
    plan = private.plan(name)
    found = (plan.sampling_probability, plan.noise_multiplier, plan.evaluation_noise_multiplier)
    uncommon = tuple(value for value in found if len(repr(value)) > 8)
    assert len(uncommon) >= 2
    return uncommon


def told(data: bytes, *values: float) -> list[float]:
    """Values that stand in some bytes, as they are or in decimals.

    Not in four bytes: those would be there by chance, once in a thousand runs.
    """
    return [
        value
        for value in values
        if struct.pack("<d", value) in data or repr(value)[:9].encode() in data
    ]


def test_the_search_for_secrets_finds_them() -> None:
    assert told(b"xx" + struct.pack("<d", 0.3178), 0.3178) == [0.3178]
    assert told(b'{"q": 0.31784211}', 0.3178421144) == [0.3178421144]
    assert told(b'{"q": 0.5}', 0.3178421144) == []


def test_nothing_that_a_hospital_sent_tells_how_many_patients_it_has(private: Private) -> None:
    recorded, federation = private.recorded, private.federation
    assert {kind for kind, _ in recorded.small} >= {kinds.GREET, kinds.STUDIES, kinds.DECIDE}
    assert len([1 for header, _, _ in recorded.bodies if header.action == records.TRAIN]) == 120
    everything = b"\n".join(recorded.raw)
    words = [str(federation.folder), "patients.parquet", "patient_id", "p000", ".toml", "/tmp"]  # noqa: S108
    assert [word for word in words if word.encode() in everything] == []
    for name in federation.daemons:
        assert not told(everything, *secrets(private, name))
    counts = {
        count
        for cohort in private.cohorts
        for count in (len(cohort.patient), int(cohort.test.sum()), int((~cohort.test).sum()))
    }
    assert not [n for kind, body in recorded.small for n in numbers(body) if n in counts], counts
    check_replies(recorded, counts)


def numbers(value: Any) -> Iterator[float]:
    """All numbers in JSON, also in texts that are JSON themselves: statements."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("length", "number", "seq"):  # of logs, which grow with what is done
                yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, str) and value.startswith("{"):
        yield from numbers(json.loads(value))
    elif isinstance(value, int | float):
        yield float(value)


def check_replies(recorded: Recorded, counts: set[int]) -> None:
    """Replies hold what the protocol names; the same in size whoever sends them."""
    sizes: dict[str, set[int]] = {}
    for header, content, size in recorded.bodies:
        allowed = {
            records.INTRODUCE: ({records.SITE}, set()),
            records.TRAIN: (set(), {records.WEIGHT}),
            records.EVALUATE: (set(), {records.WEIGHT, records.RELEASED}),
        }[header.action]
        assert (set(content.config), set(content.metrics)) == allowed
        assert content.metrics.get(records.WEIGHT, 1.0) == 1.0
        sizes.setdefault(header.action, set()).add(size)
        if header.action == records.EVALUATE:
            # Noised: no cell is a whole number, so none is a count.
            cells = np.concatenate([a.ravel() for a in content.arrays.values()])
            exact = [c for c in cells if c in counts and math.isfinite(c)]
            assert not exact
    assert len(sizes[records.TRAIN]) == len(sizes[records.EVALUATE]) == 1
