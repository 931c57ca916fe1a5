"""The site's settings for its daemon: the file `client.toml`. What is studied, it does not say.

>>> settings = ClientSettings.model_validate({"site": {"name": "north"}})
>>> settings.server.host, settings.worker.nice, settings.link.heartbeat_s
(None, 10, 20.0)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedward.common.study.section import Name, Positive, Section

Port = Annotated[int, Field(ge=0, le=65535)]
Text = Annotated[str, Field(min_length=1, max_length=255)]


class SiteSection(Section):
    """`[site]`: who this is, in the roster."""

    name: Name


class ServerSection(Section):
    """`[server]`: where the server is. Without these, the signed roster says it.

    `name` is what the server's certificate must be for, if that is not `host`: for a hospital that
    reaches it through a forwarder under another name.
    """

    host: Text | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    name: Text | None = None
    coordinator: Name | None = None


class LinkSection(Section):
    """`[link]`: how the connection is kept.

    A lost connection is tried again after `retry_s`, twice as long every time, up to
    `longest_retry_s`.
    """

    heartbeat_s: Positive = 20.0
    retry_s: Positive = 1.0
    longest_retry_s: Positive = 60.0
    largest_message_mb: Annotated[int, Field(ge=1, le=2048)] = 2048


class WorkerSection(Section):
    """`[worker]`: limits of the processes that train, of which there is one per run."""

    memory_mb: Annotated[int, Field(ge=256)] = 4096
    task_time_s: Positive = 3600.0
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    runs: Annotated[int, Field(ge=1, le=64)] = 2


class StateSection(Section):
    """`[state]`: where ledger, log and approvals are kept; relative to the site's folder."""

    folder: Text = "state"


class MonitoringSection(Section):
    """`[monitoring]`: figures for Prometheus and `/healthz`; port 0 is none."""

    port: Port = 0
    address: Text = "127.0.0.1"
    show_epsilon: bool = False


class ClientSettings(Section):
    """The whole file."""

    site: SiteSection
    server: ServerSection = ServerSection()
    link: LinkSection = LinkSection()
    worker: WorkerSection = WorkerSection()
    state: StateSection = StateSection()
    monitoring: MonitoringSection = MonitoringSection()
