"""The frozen cohort: exactly whose data were approved for a study, checked before they train.

It is made when a study is approved and lists, for each patient, a keyed hash of who they are,
whether they train or test, and a keyed hash of all their rows as the study reads them. It holds no
value and no identifier, but it tells how many patients there are: it stays at the site.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedward.client.cohort import Cohort
from fedward.client.identities import hash_contents, hash_rows
from fedward.client.ledger.account import Members
from fedward.common.audit.chain import canonical
from fedward.common.errors import DataError, PrivacyError, StateError
from fedward.common.files import read_bytes, write_atomic
from fedward.common.study import Study, study_hash

_FORMAT = 1
Patients = Mapping[str, str]
"""Keyed hash of a patient to keyed hash of all their rows, hexadecimal."""


@dataclass(frozen=True)
class Manifest:
    """Whose data are used for a study, and in which state.

    Attributes:
        study: hash of the study.
        site: name of the site.
        identified_by: keyed hash of what tells patients apart; empty if only their rows do.
        unit: whose data a promise about them protects.
        training: patients that train.
        testing: patients kept for testing.
    """

    study: str
    site: str
    identified_by: str
    unit: Literal["patient", "record"]
    training: Patients
    testing: Patients

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything: what an approval is bound to."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @cached_property
    def members(self) -> Members:
        """Who they are, without what their rows say: the cohort that the ledger charges."""
        return Members(
            self.identified_by,
            self.unit,
            frozenset(map(bytes.fromhex, self.training)),
            frozenset(map(bytes.fromhex, self.testing)),
        )

    def to_json(self) -> bytes:
        """The one form in which it is written and hashed."""
        return canonical({"format": _FORMAT, **_content(self)})

    @staticmethod
    def from_json(data: bytes) -> Manifest:
        """The reverse of `to_json`.

        Raises:
            StateError: it is no manifest, or not exactly as one is written.
        """
        try:
            content = json.loads(data)
            if content.pop("format") != _FORMAT:
                raise ValueError("another format")
            manifest = Manifest(**content)
            _ = manifest.members.id
            if manifest.to_json() != data:
                raise ValueError("not canonical")
        except (ValueError, TypeError, KeyError, AttributeError, PrivacyError) as error:
            raise StateError(
                "the manifest of the approved cohort cannot be read",
                hint="have the study approved again",
            ) from error
        return manifest


def _content(manifest: Manifest) -> dict[str, Any]:
    return {
        "study": manifest.study,
        "site": manifest.site,
        "identified_by": manifest.identified_by,
        "unit": manifest.unit,
        "training": dict(manifest.training),
        "testing": dict(manifest.testing),
    }


def manifest_of(study: Study, cohort: Cohort, key: bytes) -> Manifest:
    """Freeze a cohort.

    Args:
        study: the protocol.
        cohort: from `load_cohort` with `identify = True`.
        key: the site's secret, as for `load_cohort`.

    Raises:
        PrivacyError: the study protects single records, and some patient has several: what that
            would cost a patient cannot be said.
    """
    several = len(cohort) > cohort.patients
    if study.private and study.privacy.unit == "record" and several:
        raise PrivacyError(
            "the study protects single records, and some patients here have several",
            hint="ask for a study with [privacy] unit = 'patient'",
        )
    if cohort.identity is None and several:
        raise PrivacyError(
            "patients with several rows have no identifier here", hint="load them with identifiers"
        )
    rows = cohort.features, cohort.target, cohort.patient, key
    who = hash_contents(*rows) if cohort.identity is None else cohort.identity
    tests = {int(patient) for patient in cohort.patient[cohort.test]}
    sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for index, (name, digest) in enumerate(zip(who, hash_rows(*rows), strict=True)):
        sides[index in tests][name.tobytes().hex()] = digest.tobytes().hex()
    return Manifest(
        study=study_hash(study),
        site=cohort.site,
        identified_by=cohort.identified_by,
        unit=study.privacy.unit,
        training=sides[False],
        testing=sides[True],
    )


def check(approved: Manifest, now: Manifest) -> None:
    """Refuse to go on with other data than those that were approved.

    Raises:
        DataError: they differ; says in which way, and nothing about whom or how many.
    """
    if approved.digest == now.digest:
        return
    raise DataError(
        f"the data are not those that were approved: {', '.join(_differences(approved, now))}",
        hint="put the approved data back, or withdraw and approve the study with the new ones",
    )


def _differences(approved: Manifest, now: Manifest) -> list[str]:
    if (approved.study, approved.site) != (now.study, now.site):
        return ["they are for another study or site"]
    if (approved.identified_by, approved.unit) != (now.identified_by, now.unit):
        return ["patients are told apart in another way"]
    before = {**approved.training, **approved.testing}
    after = {**now.training, **now.testing}
    stayed = before.keys() & after.keys()
    moved = any((p in approved.testing) != (p in now.testing) for p in stayed)
    found = {
        "patients were added": bool(after.keys() - before.keys()),
        "patients are missing": bool(before.keys() - after.keys()),
        "records of patients have changed": any(before[p] != after[p] for p in stayed),
        "patients have moved between training and testing": moved,
    }
    return [words for words, so in found.items() if so]


def save_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write a study's manifest, in place of an older one; readable by its owner only.

    Raises:
        OutputError: the disk refuses.
    """
    path = manifest_path(folder, manifest.study)
    write_atomic(path, manifest.to_json(), private=True)
    return path


def load_manifest(folder: Path, study: str) -> Manifest:
    """Read the manifest of a study, by its hash.

    Raises:
        StateError: there is none, or it cannot be read.
    """
    hint = "approve the study: `fedward client approve`"
    data = read_bytes(manifest_path(folder, study), error=StateError, hint=hint)
    manifest = Manifest.from_json(data)
    if manifest.study != study:
        raise StateError("a manifest is of another study than its name says", hint=hint)
    return manifest


def manifest_path(folder: Path, study: str) -> Path:
    """Where the manifest of a study is, by the study's hash."""
    return folder / f"{study}.json"
