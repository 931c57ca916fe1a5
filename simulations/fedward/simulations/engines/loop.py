"""The `loop` engine: one site after another in this process. The reference for all others.

It carries the same `ServerApp` and `ClientApp` that run between machines, over a `Grid` that calls
the client app instead of sending anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedward.client.flower_app import build_client_app
from fedward.client.site import Site
from fedward.server.flower_internals import SERVER_NODE_ID, OwnGrid, identify, quieten

RUN_ID = 1
_FIRST_NODE = SERVER_NODE_ID + 1
_SITE = "site"


class LoopGrid(OwnGrid):
    """A grid whose nodes are sites in this process.

    Args:
        app: the client app.
        contexts: Flower context of each node, by node id.
    """

    def __init__(self, app: ClientApp, contexts: Mapping[int, Context]) -> None:
        super().__init__(RUN_ID)
        self._app = app
        self._contexts = dict(contexts)
        self._waiting: dict[str, Message] = {}
        self._pushed = 0

    def site(self, node: int) -> str:
        """Name of the site at a node."""
        return str(self._contexts[node].node_config[_SITE])

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; nobody ever leaves."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled."""
        keys = []
        for message in messages:
            self._pushed += 1
            key = str(self._pushed)
            self._waiting[key] = message
            keys.append(key)
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the sites that were pushed a message to, and give their replies."""
        return list(self.send_and_receive([self._waiting.pop(key) for key in message_ids]))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Run one site after another; a reply exists only while it is looked at."""
        del timeout  # a call in this process cannot be abandoned half-way
        for message in messages:
            yield self._deliver(message)

    def _deliver(self, message: Message) -> Message:
        return self._app(message, self._contexts[message.metadata.dst_node_id])


def loop_grid(sites: Iterable[Site]) -> LoopGrid:
    """A grid that reaches sites in this process, one node for each."""
    return LoopGrid(*reached(sites))


def reached(sites: Iterable[Site]) -> tuple[ClientApp, dict[int, Context]]:
    """The client app, and the context of each node: one for each site."""
    quieten()
    identify(RUN_ID)
    by_name = {site.name: site for site in sites}
    contexts = {
        node: Context(RUN_ID, node, {_SITE: name}, RecordDict(), {})
        for node, name in enumerate(by_name, start=_FIRST_NODE)
    }
    app = build_client_app(lambda context: by_name[str(context.node_config[_SITE])], disclose=True)
    return app, contexts


def run_in_loop(server_app: ServerApp, sites: Iterable[Site]) -> None:
    """Run a server app against sites in this process.

    Raises:
        FedwardError: whatever ends the run; see `Rounds.run`.
    """
    run_over(server_app, loop_grid(sites))


def run_over(server_app: ServerApp, grid: Grid) -> None:
    """Run a server app over a grid of this process.

    Raises:
        FedwardError: whatever ends the run; see `Rounds.run`.
    """
    own = Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict({"none": ConfigRecord()}), {})
    server_app(grid, own)
