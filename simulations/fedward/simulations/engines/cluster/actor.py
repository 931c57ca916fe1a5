"""The worker's side: a process of Ray that has the sites, and answers messages to them.

Flower's actor runs the client app; what it lacks is a place for the sites, which are here made once
and kept. Importing this needs Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Message
from numpy.typing import NDArray

from fedward.client.site import Site
from fedward.client.spending import Charge, MemorySpending
from fedward.common import records
from fedward.common.version import versions
from fedward.server.arrays import array_record
from fedward.simulations.engines.cluster.internals import VirtualClientEngineActor
from fedward.simulations.engines.loop import reached

Charges = tuple[Charge, ...]


class SiteActor(VirtualClientEngineActor):
    """Answers for sites.

    Args:
        sites: all of them; what is prepared is only that of the sites which are asked here.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        torch.set_num_threads(1)
        self._app, self._contexts = reached(sites)
        self._sites = dict(zip(self._contexts, sites, strict=True))

    def versions(self) -> dict[str, str]:
        """What runs here."""
        return versions()

    def answer(
        self,
        message: Message,
        weights: Mapping[str, NDArray[Any]] | None,
        charges: Charges | None,
    ) -> tuple[Message, Charges]:
        """Have a site answer.

        Args:
            message: to the site, without its arrays.
            weights: these arrays; None if it has none.
            charges: all that the site was charged; None if that is as this process left it.

        Returns:
            The reply, and what the site was charged for it.
        """
        node = message.metadata.dst_node_id
        site = self._sites[node]
        if charges is not None:
            site.spending = MemorySpending(site.plan, charges)
        known = len(site.spending.charges)
        if weights is not None:
            message.content[records.ARRAYS] = array_record(weights)
        _, reply, _ = self.run(lambda: self._app, message, site.name, self._contexts[node])
        return reply, site.spending.charges[known:]
