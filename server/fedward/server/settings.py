"""The coordinator's settings: the file `server.toml`, every key of which has a default but three.

>>> table = {"server": {"consortium": "Example", "host": "fl.example.org"}}
>>> settings = ServerSettings.model_validate(table)
>>> settings.server.port, settings.link.heartbeat_s, settings.limits.streams_per_site
(8440, 20.0, 8)
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedward.common.study.section import Name, Positive, Section

Port = Annotated[int, Field(ge=0, le=65535)]
Text = Annotated[str, Field(min_length=1, max_length=255)]


class ServerSection(Section):
    """`[server]`: who this is, and where hospitals reach it.

    `port` is where the service listens and, unless `public_port` says otherwise, where hospitals
    connect. `listen` is the address that it listens on.
    """

    consortium: Text
    name: Name = "coordinator"
    host: Text
    hosts: tuple[Text, ...] = ()
    port: Annotated[int, Field(ge=1, le=65535)] = 8440
    public_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    listen: Text = "0.0.0.0"  # noqa: S104  (every call is authenticated)
    database: str = ""


class LinkSection(Section):
    """`[link]`: how a site's absence is noticed."""

    heartbeat_s: Positive = 20.0
    absence_s: Positive = 90.0

    @model_validator(mode="after")
    def _several_beats(self) -> Self:
        if self.absence_s < 2 * self.heartbeat_s:
            raise ValueError("absence_s must be at least twice heartbeat_s")
        return self


class LimitsSection(Section):
    """`[limits]`: what one site may ask of the server."""

    messages_per_s: Positive = 50.0
    streams_per_site: Annotated[int, Field(ge=2, le=1000)] = 8


class CertificatesSection(Section):
    """`[certificates]`: for how long they are issued; a hospital renews its own in time."""

    leaf_days: Annotated[int, Field(ge=1, le=90)] = 90
    issuer_days: Annotated[int, Field(ge=91, le=3650)] = 730


class MonitoringSection(Section):
    """`[monitoring]`: figures for Prometheus and `/healthz`; port 0 is none."""

    port: Port = 0
    address: Text = "127.0.0.1"


class ServerSettings(Section):
    """The whole file."""

    server: ServerSection
    link: LinkSection = LinkSection()
    limits: LimitsSection = LimitsSection()
    certificates: CertificatesSection = CertificatesSection()
    monitoring: MonitoringSection = MonitoringSection()
