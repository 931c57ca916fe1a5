"""From a site's folder to a `Site` that may train: approved data, admitted in the ledger.

The data are loaded as for the approval and compared with its manifest, patient by patient. Between
rounds they stay in memory; then the files' dates and a digest of what is held are looked at, and
what has a new date is read and compared again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedward.client.cohort import Cohort
from fedward.client.home import SiteFolder
from fedward.client.ledger import Caps, Ledger, ledger_spending, plan_hash
from fedward.client.loading import load_cohort
from fedward.client.manifest import Manifest, check, load_manifest, manifest_of
from fedward.client.offers import kept_study
from fedward.client.policy import Policy, load_policy
from fedward.client.site import RandomnessFor, Site
from fedward.client.site_config import SiteConfig, load_site_config
from fedward.client.spending import SpendingFor
from fedward.client.worker.protocol import Load
from fedward.client.workspace import Workspace
from fedward.common import records
from fedward.common.errors import DataError, SiteConfigError
from fedward.common.privacy.randomness import Randomness, SecureRandomness, SeededRandomness
from fedward.common.study import Study
from fedward.common.table import FeatureTable, ImageStack
from fedward.common.version import version

_Dates = tuple[tuple[str, int, int, int], ...]


@dataclass
class Opened:
    """A site that may train, and what that rests on; made by `open_site`.

    Attributes:
        site: trains.
        plan_hash: of its privacy plan, empty without one.
    """

    site: Site
    plan_hash: str
    _home: SiteFolder
    _load: Load
    _ledger: Ledger
    _approved: Manifest
    _cohort: Cohort
    _digest: str
    _dates: _Dates
    _pixels: _Dates
    _caps: Caps

    def check_unchanged(self) -> None:
        """Refuse to train on other data than those that were approved.

        Raises:
            DataError: they are others now, on the disk or in this process.
            StateError: the approved manifest is gone.
        """
        if load_manifest(self._home.manifests, self._load.study).digest != self._approved.digest:
            raise DataError(
                "the approval is for other data now", hint="restart the client to load them"
            )
        if _digest(self._cohort) != self._digest:
            raise DataError("the data in memory have changed", hint="check this machine's memory")
        study, config = self.site.study, load_site_config(self._home.site_file)
        if (pixels := _pixel_dates(self._cohort)) != self._pixels:
            held = manifest_of(study, self._cohort, _key(self._home, self._load))
            check(self._approved, held)
            self._pixels = pixels
        dates = _dates(self._home, config)
        if dates != self._dates:
            check(
                self._approved, manifest_of(study, *_cohort(self._home, self._load, study, config))
            )
            self._dates = dates

    def check_caps(self) -> None:
        """Refuse to go on if the site's policy does not leave room for the rest any more.

        Raises:
            PrivacyError: it does not: somebody lowered a cap.
            SiteConfigError: the policy cannot be read.
        """
        policy = load_policy(self._home.policy_file)
        if policy.caps != self._caps:
            _spending(self._ledger, self._load, self._approved, policy)(self.site.plan)
            self._caps = policy.caps

    def commit(self, number: int, action: str, reply: str) -> None:
        """Record that the reply to a task is durable, for what was reserved for it.

        Raises:
            OutputError: the disk refuses.
        """
        group = "testing" if action == records.EVALUATE else "training"
        for found in self._ledger.reservations(self._load.study, self._load.run):
            if (found.entry.round, found.entry.group) == (number, group) and not found.reply:
                self._ledger.commit(found.number, reply)


def open_site(load: Load) -> Opened:
    """Load and admit.

    Raises:
        FedwardError: the study is not here, was not approved with these data, or costs more than
            the site's policy leaves.
    """
    home = SiteFolder.open(Path(load.folder))
    study = kept_study(home.studies, load.study)
    approved = load_manifest(home.manifests, load.study)
    config = load_site_config(home.site_file)
    if config.name != home.settings.site.name:
        raise SiteConfigError(
            "site.toml is of a site of another name than client.toml",
            hint="write the name of client.toml into [site] of site.toml",
        )
    dates = _dates(home, config)  # before the data are read: what changes meanwhile is seen later
    cohort, key = _cohort(home, load, study, config)
    pixels = _pixel_dates(cohort)
    check(approved, manifest_of(study, cohort, key))
    ledger = Ledger(home.ledger)
    policy = load_policy(home.policy_file)
    spending = _spending(ledger, load, approved, policy)
    site = Site(
        config.name,
        study,
        (cohort,),
        randomness=randomness_for(study, config.name),
        workspace=Workspace(),
        spending=spending,
        for_release=True,
    )
    plan = "" if site.plan is None else plan_hash(site.plan)
    return Opened(
        site=site,
        plan_hash=plan,
        _home=home,
        _load=load,
        _ledger=ledger,
        _approved=approved,
        _cohort=cohort,
        _digest=_digest(cohort),
        _dates=dates,
        _pixels=pixels,
        _caps=policy.caps,
    )


def _spending(ledger: Ledger, load: Load, approved: Manifest, policy: Policy) -> SpendingFor:
    return ledger_spending(
        ledger,
        load.study,
        load.run,
        approved.members,
        policy.caps,
        version(),
        most_runs=policy.max_runs_per_study,
    )


def randomness_for(study: Study, site: str) -> RandomnessFor:
    """Where a hospital's randomness comes from.

    Guarantee:
        In a private study: the operating system's cryptographic generator, always. Without privacy
        only batches are shuffled, from the study's seed, so that a federation gives the very model
        that the simulation gave.
    """

    def secure(_purpose: str, _number: int) -> Randomness:
        return SecureRandomness()

    def seeded(purpose: str, number: int) -> Randomness:
        return SeededRandomness(study.training.seed, site, purpose, number)

    return secure if study.private else seeded


def _cohort(home: SiteFolder, load: Load, study: Study, config: SiteConfig) -> tuple[Cohort, bytes]:
    key = _key(home, load)
    return load_cohort(study, config, key=key, identify=True, cache=home.state / "cache"), key


def _key(home: SiteFolder, load: Load) -> bytes:
    # Only the daemon knows the passphrase: whoever opens the site's own key is no trainer.
    return bytes.fromhex(load.patients_key) or home.load_patients_key()


def _dates(home: SiteFolder, config: SiteConfig) -> _Dates:
    """What tells cheaply whether a file was written to."""
    paths = (home.site_file, home.patients_key, *_sources(config))
    return tuple(_date(path, _stat(path)) for path in paths)


def _pixel_dates(cohort: Cohort) -> _Dates:
    """The same for prepared pictures, which are mapped: who writes to their file changes them."""
    pixels = cohort.features.pixels if isinstance(cohort.features, ImageStack) else None
    if not isinstance(pixels, np.memmap) or pixels.filename is None:
        return ()
    path = Path(pixels.filename)
    try:
        return (_date(path, path.stat()),)
    except OSError:  # a cache may be emptied: what is mapped stays
        return ((path.name, 0, 0, 0),)


def _date(path: Path, found: os.stat_result) -> tuple[str, int, int, int]:
    return (path.name, found.st_mtime_ns, found.st_size, found.st_ino)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(
            f"{path.name} cannot be read", hint="check the path and the permissions"
        ) from error


def _sources(config: SiteConfig) -> Iterator[Path]:
    for name in (config.source.path, config.source.labels):
        if name is not None:
            yield config.locate(name)


def _digest(cohort: Cohort) -> str:
    """SHA-256 over what is held in memory; pixels stay on the disk, see `_pixel_dates`."""
    digest = hashlib.sha256()
    arrays = [cohort.target, cohort.patient, cohort.test]
    if isinstance(cohort.features, FeatureTable):
        arrays += [cohort.features.numeric, cohort.features.codes]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
