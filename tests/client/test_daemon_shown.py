"""What a daemon shows to the hospital's monitoring: true figures, and ε only where it is wanted."""

from __future__ import annotations

import asyncio
import json
import tomllib
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tests.client.test_ledger import COUNTS, DELTA, ROUND
from tests.client.test_ledger import Desk as Books

from fedward.client.daemon.account import Account
from fedward.client.daemon.shown import Shown
from fedward.client.enrolment import make_site
from fedward.client.home import SiteFolder
from fedward.client.link.settings import LinkStatus
from fedward.common.errors import FedwardError, StateError
from fedward.common.identity import Certificate, PrivateKey, make_root
from fedward.common.monitoring.health import Health, disk_room, not_expired
from fedward.common.privacy.accounting import epsilon

UP = LinkStatus(True, 0.0, 0.0, "", 0.0, 0, received=10, sent=3)
SPENT = "fedward_client_epsilon_spent"


def settings(home: SiteFolder, **monitoring: Any) -> SiteFolder:
    values = tomllib.loads(home.settings_file.read_text(encoding="utf-8"))
    values["monitoring"] = monitoring
    home.settings_file.write_text(tomli_w.dumps(values), encoding="utf-8")
    return SiteFolder(home.path)


def certificate(days: int = 10) -> Certificate:
    root = make_root(PrivateKey.generate(), "Example", now=datetime.now(UTC))
    return replace(root, name="north", not_after=datetime.now(UTC) + timedelta(days=days))


@pytest.fixture
def home(tmp_path: Path) -> SiteFolder:
    made = make_site(tmp_path / "north", "north")
    policy = tomllib.loads(made.policy_file.read_text(encoding="utf-8"))
    made.policy_file.write_text(tomli_w.dumps({**policy, "delta": DELTA}), encoding="utf-8")
    made.state.mkdir(exist_ok=True)
    return made


def look(shown: Shown, **changes: Any) -> None:
    restarts = changes.pop("restarts", 0)
    asyncio.run(shown.look(replace(UP, **changes), restarts))


def value(shown: Shown, name: str, /, **labels: str) -> float | None:
    return shown.metrics.registry.get_sample_value(name, labels)


def test_what_was_spent_is_shown_where_it_is_wanted(home: SiteFolder) -> None:
    books = Books(home.ledger)
    account = Account(home.ledger)
    try:
        books.admit("a")
        books.admit("b", private=False)
        books.reserve(1)
        open_ = Shown(settings(home, show_epsilon=True), certificate(), account)
        closed = Shown(settings(home, show_epsilon=False), certificate(), account)
        for shown in (open_, closed):
            look(shown)
        assert value(open_, SPENT, study="a" * 12) == pytest.approx(epsilon((ROUND,), DELTA))
        assert value(open_, SPENT, study="b" * 12) is None
        assert value(closed, SPENT, study="a" * 12) is None
        books.reserve(2)
        books.reserve(1, group="testing", event=COUNTS)
        look(open_)
        both = max(epsilon((ROUND, ROUND), DELTA), epsilon((COUNTS,), DELTA))
        assert value(open_, SPENT, study="a" * 12) == pytest.approx(both)
        home.policy_file.write_text("broken", encoding="utf-8")
        books.reserve(3)
        look(open_)  # no figure rather than an old one
        assert value(open_, SPENT, study="a" * 12) is None
    finally:
        account.close()
        books.ledger.close()


def test_figures_follow_the_daemon(home: SiteFolder) -> None:
    account = Account(home.ledger)
    try:
        shown = Shown(home, certificate(10), account)
        look(shown, restarts=2)
        assert value(shown, "fedward_client_connected") == 1
        assert value(shown, "fedward_client_bytes_total", direction="in") == 10
        assert value(shown, "fedward_client_bytes_total", direction="out") == 3
        assert value(shown, "fedward_client_worker_restarts_total") == 2
        before = value(shown, "fedward_client_certificate_expiry_seconds", name="north")
        shown.renewed(certificate(90))
        after = value(shown, "fedward_client_certificate_expiry_seconds", name="north")
        assert before is not None
        assert after is not None
        assert after > before + 70 * 24 * 3600
        look(shown, connected=False)
        assert value(shown, "fedward_client_connected") == 0
    finally:
        account.close()


def ask(port: int) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_health(home: SiteFolder) -> None:
    trouble: dict[str, Any] = {"link": "", "work": None}

    def halted() -> FedwardError | None:
        error = trouble["work"]
        return error if isinstance(error, FedwardError) else None

    async def scenario() -> None:
        account = Account(home.ledger)
        try:
            shown = Shown(settings(home, port=1), certificate(), account)
            endpoint = shown.endpoint(lambda: str(trouble["link"]), halted)
            assert endpoint is not None
            endpoint._port = 0  # any that is free
            port = await endpoint.start()
            try:
                assert await asyncio.to_thread(ask, port) == (200, {"healthy": True, "reasons": {}})
                trouble.update(link="the server is away", work=StateError("old", hint="x"))
                shown.renewed(certificate(-1))
                status, said = await asyncio.to_thread(ask, port)
            finally:
                await endpoint.stop()
            assert status == 503
            assert said["reasons"] == {
                "link": "the server is away",
                "work": "old",
                "certificate": "the certificate has expired",
            }
        finally:
            account.close()

    asyncio.run(scenario())


def test_no_port_is_opened_unasked(home: SiteFolder) -> None:
    account = Account(home.ledger)
    try:
        assert Shown(home, certificate(), account).endpoint(lambda: "", lambda: None) is None
    finally:
        account.close()


def test_disk_and_dates(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    well = {
        "disk": disk_room(tmp_path, 0),
        "dates": not_expired(lambda: now + timedelta(hours=1)),
    }
    assert Health(well).well()
    ill = {
        "full": disk_room(tmp_path, 1 << 40),
        "gone": disk_room(tmp_path / "gone"),
        "dates": not_expired(lambda: now - timedelta(hours=1)),
    }
    assert set(Health(ill).problems()) == set(ill)
