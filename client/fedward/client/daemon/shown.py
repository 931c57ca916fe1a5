"""What a daemon shows of itself to the hospital's own monitoring, and what `/healthz` says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from fedward.client.daemon.account import Account
from fedward.client.home import SiteFolder
from fedward.client.link.settings import LinkStatus
from fedward.client.monitoring import ClientMetrics
from fedward.client.policy import load_policy
from fedward.common.errors import FedwardError
from fedward.common.identity import Certificate
from fedward.common.monitoring.endpoint import Endpoint
from fedward.common.monitoring.health import Health, disk_room, not_expired


class Shown:
    """The daemon's figures.

    Args:
        home: the site's folder.
        certificate: that the site has now.
        account: the site's ledger.
    """

    def __init__(self, home: SiteFolder, certificate: Certificate, account: Account) -> None:
        self._home = home
        self._account = account
        self.metrics = ClientMetrics(home.path, show_epsilon=home.settings.monitoring.show_epsilon)
        self._priced = -1
        self.renewed(certificate)

    def renewed(self, certificate: Certificate) -> None:
        """Another certificate is used from now on."""
        self._until: datetime = certificate.not_after
        self.metrics.certificate(certificate.name, certificate.not_after)

    async def look(self, link: LinkStatus, restarts: int) -> None:
        """Take over how it is now."""
        self.metrics.connected(link.connected)
        self.metrics.moved(link.received, link.sent)
        self.metrics.worker_restarts(restarts)
        if self.metrics.shows_epsilon and self._priced != (length := self._account.spent):
            await asyncio.to_thread(self._price)
            self._priced = length

    def _price(self) -> None:
        """Work out ε: it takes seconds, so only when something was spent, and only if asked for."""
        try:
            delta = load_policy(self._home.policy_file).caps.delta
            self.metrics.epsilon_spent(self._account.epsilon(delta))
        except FedwardError:  # `doctor` and the next approval say what is wrong with it
            self.metrics.epsilon_spent({})

    def endpoint(
        self, problem: Callable[[], str], halted: Callable[[], FedwardError | None]
    ) -> Endpoint | None:
        """The port that shows it, if the settings ask for one.

        Args:
            problem: why there is no connection; empty if there is.
            halted: why the daemon does no work; None if it does.
        """
        settings = self._home.settings.monitoring
        if settings.port == 0:
            return None

        def work() -> str | None:
            error = halted()
            return None if error is None else error.problem

        health = Health(
            {
                "link": lambda: problem() or None,
                "work": work,
                "disk": disk_room(self._home.path),
                "certificate": not_expired(lambda: self._until),
            }
        )
        return Endpoint(self.metrics.registry, health, host=settings.address, port=settings.port)
