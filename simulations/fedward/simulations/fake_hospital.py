"""A hospital's folder, as its people would have made it, for tests of what works in one.

    home = make_hospital(folder, small_study())
    hospital = Hospital.of(home)

The data are made from the study's schema; the study is offered by a coordinator of its own, and the
manifest of the data is there, as after an approval. What the stewards decided is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedward.client.home import SiteFolder
from fedward.client.loading import load_cohort
from fedward.client.manifest import manifest_of, save_manifest
from fedward.client.offers import keep_offer, read_offer
from fedward.client.site_config import load_site_config
from fedward.common.files import write_atomic
from fedward.common.identity import Member, PrivateKey, Roster
from fedward.common.statements import OFFER, state
from fedward.common.study import Study, canonical_json, study_hash
from fedward.simulations.rehearsal.hospitals import prepare_hospitals

_SINCE = "2026-01-01T00:00:00+00:00"
PATIENTS_KEY = bytes(range(32))


@dataclass(frozen=True)
class Consortium:
    """A coordinator and a few sites, with their keys.

    Attributes:
        coordinator: key of the member `coordinator`.
        sites: key by name.
    """

    coordinator: PrivateKey
    sites: dict[str, PrivateKey]

    @classmethod
    def make(cls, *sites: str) -> Consortium:
        """With keys that were never used."""
        return cls(PrivateKey.generate(), {name: PrivateKey.generate() for name in sites})

    def roster(self, version: int = 1) -> Roster:
        """Who is a member."""
        coordinator = Member.make(
            "coordinator", "coordinator", self.coordinator.public, since=_SINCE
        )
        members = (Member.make(n, "site", k.public, since=_SINCE) for n, k in self.sites.items())
        return Roster(
            consortium="Example",
            version=version,
            issued_at=_SINCE,
            host="localhost",
            port=8440,
            members=(coordinator, *members),
        )

    def offer(self, study: Study) -> bytes:
        """The study, offered."""
        content = {
            "study": study_hash(study),
            "document": canonical_json(study),
            "consortium": "Example",
            "at_ms": 1,
        }
        return state(OFFER, "coordinator", content, self.coordinator)


def make_hospital(
    folder: Path,
    study: Study,
    *,
    consortium: Consortium | None = None,
    policy: str = "require_dp = false\nmin_cell_at_least = 1\nmin_sites_at_least = 1\n",
    settings: str = "",
) -> SiteFolder:
    """Fill an existing folder.

    Args:
        folder: to fill.
        study: that is offered.
        consortium: whose coordinator offers it; a new one by default.
        policy: text of `policy.toml`.
        settings: sections added to `client.toml`.
    """
    consortium = consortium or Consortium.make()
    made = prepare_hospitals(study, folder, folder, sites=1, made=True)[0]
    write_atomic(folder / "client.toml", f"[site]\nname = {json.dumps(made.name)}\n{settings}")
    text = made.site_file.read_text(encoding="utf-8")
    write_atomic(folder / "site.toml", text.replace('path = "', f'path = "{made.name}/'))
    write_atomic(folder / "policy.toml", policy)
    home = SiteFolder.open(folder)
    for part in (home.identity, home.state, home.studies, home.decisions, home.manifests):
        part.mkdir(mode=0o700, exist_ok=True)
    write_atomic(home.patients_key, PATIENTS_KEY)
    home.patients_key.chmod(0o600)
    keep_offer(home.studies, read_offer(consortium.offer(study), consortium.roster()))
    approve_data(home, study)
    return home


def approve_data(home: SiteFolder, study: Study) -> None:
    """Freeze the data as they are now, as an approval does."""
    config, key = load_site_config(home.site_file), home.load_patients_key()
    cohort = load_cohort(study, config, key=key, identify=True)
    save_manifest(home.manifests, manifest_of(study, cohort, key))
