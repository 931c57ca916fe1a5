"""What a site asks the server and tells it, apart from tasks: studies, decisions, ledgers' ends.

Everything is told again until the server says that it has it: what it has on record comes with
every list of studies, so that nothing needs to be remembered here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedward.client.daemon.ending import RunOf, Told
from fedward.client.daemon.record import Record
from fedward.client.daemon.witness import Witness
from fedward.client.offers import forget_offers, keep_offer, known_offer, read_offer
from fedward.common.errors import FedwardError
from fedward.common.identity import Roster
from fedward.common.wire import kinds

_LOG = logging.getLogger(__name__)
_AGAIN_S = 15.0
"""After which what failed is tried again, if nothing happens before."""
_LONGEST_S = 300.0
"""After which it is asked again in any case."""
_EXCHANGE_S = 10.0
"""Between two looks at whether the ledger has grown: not every round asks for signatures."""

APPROVE = "approve"
_FIRST = ("withdraw", "refuse")
"""Choices that are told before others: nothing that asks for more may hold them up."""

Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Decided:
    """What the stewards decided, as it is to be sent.

    Attributes:
        choice: approve, refuse or withdraw.
        statement: signed by the site.
    """

    choice: str
    statement: str


class Decisions(Protocol):
    """What the stewards decided so far."""

    def decided(self) -> Mapping[str, Decided]:
        """By hash of the study; nothing for those that are not decided."""
        ...

    def undecided(self) -> frozenset[str]:
        """Studies that nobody has said anything about, by hash."""
        ...


class Desk:
    """Asks and tells, whenever it is woken.

    Args:
        ask: asks the server.
        roster: gives the newest roster.
        studies: folder of the offers.
        decisions: of the stewards.
        witness: has ledgers' ends signed.
        record: the audit log.
        runs: gives the runs that the ledger has, by study and name.
        shown: is told what the server says of each study (state, choice and run, by hash), and of
            which of those runs it said something by that.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        roster: Callable[[], Roster],
        studies: Path,
        decisions: Decisions,
        witness: Witness,
        record: Record,
        runs: Callable[[], Collection[RunOf]],
        shown: Callable[[Told, Collection[RunOf]], Awaitable[None]],
    ) -> None:
        self._ask = ask
        self._roster = roster
        self._studies = studies
        self._decisions = decisions
        self._witness = witness
        self._record = record
        self._runs = runs
        self._shown = shown
        self._over: frozenset[str] = frozenset()
        """Studies that are released or had no room, and that the server has us approving."""
        self._wake = asyncio.Event()
        self._wake.set()
        self._connected = asyncio.Event()

    def connected(self) -> None:
        """There will be another connection."""
        self._witness.again()
        self._connected.set()

    def wake(self) -> None:
        """There may be something to ask or to tell."""
        self._wake.set()

    async def run(self) -> None:
        """Ask and tell until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_telling())
            group.create_task(self._keep_witnessing())

    async def _keep_telling(self) -> None:
        wait_s = _LONGEST_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()
            wait_s = _LONGEST_S if await self.once() else _AGAIN_S

    async def _keep_witnessing(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_EXCHANGE_S):
                    await self._connected.wait()
            self._connected.clear()
            await self.exchange()

    async def once(self) -> bool:
        """Ask and tell everything once; False if something failed and should be tried again."""
        try:
            told = await self.fetch()
            return await self.tell(told)
        except FedwardError as error:
            _LOG.warning("the server was not asked", extra={"facts": {"problem": error.problem}})
            return False

    async def exchange(self) -> None:
        """Have the end of the ledger signed, if it has grown."""
        try:
            if self._witness.has_news:
                await self._witness.exchange(
                    lambda body: self._ask(kinds.WITNESS, body), self._roster()
                )
        except FedwardError as error:
            facts = {"problem": error.problem}
            _LOG.warning("the ledger's end was not signed", extra={"facts": facts})

    async def fetch(self) -> dict[str, dict[str, str]]:
        """Get the studies that are offered, and keep those that are new and well signed.

        Returns:
            What the server says of each: its state, our choice there, its latest run.

        Raises:
            FedwardError: the server refuses, or does not answer.
        """
        runs = self._runs()  # those that begin while the answer is on its way are not in it
        answer = await self._ask(kinds.STUDIES, {})
        found: dict[str, dict[str, str]] = {}
        offered = answer.get("studies")
        whole = isinstance(offered, list)
        for entry in offered if isinstance(offered, list) else []:
            whole = self._take(entry, found) and whole
        # What is offered no more and nobody looked at: a server that offers on fills no disk.
        forget_offers(self._studies, self._decisions.undecided() - found.keys())
        over = answer.get("over")
        self._over = frozenset(over if isinstance(over, dict) else ())
        # That a study is missing says something only if nothing could be missing by mistake.
        await self._shown(found, [run for run in runs if whole or run[0] in found])
        return found

    def _take(self, entry: Any, found: dict[str, dict[str, str]]) -> bool:
        """Keep an offer and what is said of it; False if it is left out."""
        if not isinstance(entry, dict):
            return False
        try:
            statement = str(entry.get("offer")).encode()
            offer = known_offer(self._studies, statement) or read_offer(statement, self._roster())
        except FedwardError as error:
            facts = {"problem": error.problem, "code": error.exit_code}
            _LOG.warning("an offer was left out", extra={"facts": facts})
            return False
        if keep_offer(self._studies, offer):
            self._record.note_caused("offer", study=offer.hash, by=offer.signer)
        found[offer.hash] = {
            key: str(entry.get(key) or "")[:200] for key in ("state", "choice", "run")
        }
        return True

    async def tell(self, known: Mapping[str, Mapping[str, str]]) -> bool:
        """Send every decision that the server has not on record, withdrawals first.

        Returns:
            Whether all were taken. False, and soon to be tried again, if one was not, or if there
            is something newer before all were sent: that may be a withdrawal.
        """
        news = [
            (study, decided)
            for study, decided in self._decisions.decided().items()
            if self._is_news(study, decided.choice, known)
        ]
        well = True
        for number, (_, decided) in enumerate(sorted(news, key=_urgency)):
            if number and decided.choice not in _FIRST and self._wake.is_set():
                return False
            try:
                await self._ask(kinds.DECIDE, {"decision": decided.statement})
            except FedwardError as error:
                facts = {"problem": error.problem, "code": error.exit_code}
                _LOG.warning("a decision was not taken", extra={"facts": facts})
                well = False
        return well

    def _is_news(self, study: str, choice: str, known: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether the server has something else on record; of what is over, only an approval."""
        if study in known:
            return known[study]["choice"] != choice
        return study in self._over and choice != APPROVE


def _urgency(news: tuple[str, Decided]) -> bool:
    return news[1].choice not in _FIRST
