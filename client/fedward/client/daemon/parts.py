"""From a site's folder and settings to what the parts of its daemon take."""

from __future__ import annotations

from pathlib import Path

from fedward.client.daemon.seams import Place
from fedward.client.home import SiteFolder
from fedward.client.link.connection import Endpoint
from fedward.client.link.settings import LinkSettings
from fedward.client.worker.pool import Pool, PoolLimits
from fedward.client.worker.process import Limits
from fedward.common.files import private_folder
from fedward.common.identity.key_files import read_secret
from fedward.common.identity.pkcs8 import is_sealed


def link_settings(home: SiteFolder) -> LinkSettings:
    """How the link behaves.

    Raises:
        IdentityError: it is not known where the server is.
    """
    settings, server = home.settings.link, home.server()
    return LinkSettings(
        endpoint=Endpoint(server.host, server.port),
        inbox=home.inbox,
        most_bytes=settings.largest_message_mb << 20,
        heartbeat_s=settings.heartbeat_s,
        first_wait_s=settings.retry_s,
        longest_wait_s=settings.longest_retry_s,
    )


def place(home: SiteFolder, passphrase: str | None = None) -> Place:
    """Where the daemon works.

    Raises:
        IdentityError: the key that hashes patients is encrypted, and not with this passphrase.
    """
    key = ""
    if home.patients_key.exists() and is_sealed(read_secret(home.patients_key)):
        key = home.load_patients_key(passphrase).hex()
    settings = home.settings
    return Place(settings.site.name, home.path, home.studies, settings.worker.threads, key)


def pool(home: SiteFolder) -> Pool:
    """The training processes.

    Raises:
        OutputError: the disk refuses.
    """
    settings = home.settings.worker
    private_folder(home.logs)
    worker = Limits(settings.memory_mb << 20, settings.threads, settings.nice)
    limits = PoolLimits(worker, runs=settings.runs, task_s=settings.task_time_s)
    return Pool(limits, log=home.logs / "worker.log")


def watched(home: SiteFolder) -> tuple[Path, ...]:
    """Files that decide what the daemon does: every change of one is put on record."""
    decisions = home.decisions / "decisions.log"
    return home.settings_file, home.site_file, home.policy_file, decisions
