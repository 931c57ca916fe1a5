"""docs/upgrade.md quotes what the programs really say."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from fedward.client.daemon.account import Account
from fedward.common.audit.chain import Head
from fedward.common.errors import StateError
from fedward.common.wire import kinds
from fedward.server.link import greeting
from fedward.server.link.peers import Peer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "upgrade.md").read_text(encoding="utf-8")


class North:
    name = "north"


@pytest.mark.parametrize(("server", "client"), [(2, 1), (1, 2)])
def test_old_and_new(server: int, client: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "PROTOCOL", server)
    with pytest.raises(greeting.LinkError) as caught:
        greeting._check_versions(cast("Peer", North()), [client])
    assert f"`{caught.value}`" in PAGE
    greeting._check_versions(cast("Peer", North()), [client, server])


def test_a_restored_ledger(tmp_path: Path) -> None:
    account = Account(tmp_path / "ledger.sqlite")
    try:
        with pytest.raises(StateError) as caught:
            account.check(Head(7, "ab" * 32).to_dict(), "the server")
    finally:
        account.close()
    assert f"    {caught.value}\n" in PAGE
