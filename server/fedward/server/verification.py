"""Checks a release offline: every byte, every signature, every contribution.

What is needed besides the folder is the consortium's root certificate, or a roster that is trusted
already. Nothing is taken from the release's own word: the roster in it must be signed under that
root, the manifest by a coordinator of that roster, and each contribution by its hospital.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from fedward.common.errors import FedwardError, IdentityError, ModelError
from fedward.common.files import read_bytes
from fedward.common.identity import Member, Roster, read_roster
from fedward.common.identity.roster import roster_issuer
from fedward.common.models.bundle import Bundle, load_bundle
from fedward.common.records import TRAIN, WEIGHT
from fedward.common.statements import OFFER, RELEASE, read_statement, signer_of
from fedward.common.study import canonical_json, study_hash
from fedward.common.tensors import Weights
from fedward.common.wire.body import Content, body_size
from fedward.common.wire.kinds import REPLY
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.common.wire.message import unseal
from fedward.server.model_hash import model_hash
from fedward.server.release import (
    MANIFEST,
    MODEL,
    OFFER_FILE,
    PARTICIPATION,
    RECEIPTS,
    ROSTER,
    digests,
)

_T = TypeVar("_T")
_ASK = "do not use it; ask the coordinator for a new copy"
_SLACK = 8
"""Bytes."""


@dataclass(frozen=True)
class Verified:
    """A release that is as it was signed.

    Attributes:
        consortium: whose.
        signer: the coordinator's name.
        fingerprint: of the key that signed.
        study: hash.
        run: id.
        rounds: how many.
        files: how many are covered.
        contributions: how many are in the model.
        proven: how many of them the hospital's own signature proves.
        sites: in how many rounds each contributed.
    """

    consortium: str
    signer: str
    fingerprint: str
    study: str
    run: str
    rounds: int
    files: int
    contributions: int
    proven: int
    sites: Mapping[str, int]


def verify_release(
    folder: Path, *, root_pem: bytes | None = None, roster: Roster | None = None
) -> Verified:
    """Check a release.

    Args:
        folder: that holds `RELEASE.json`.
        root_pem: the consortium's root certificate, from a trusted source.
        roster: instead of it, a roster that was checked already.

    Raises:
        IdentityError: a signature is not by who should have made it.
        ModelError: something is missing, was added or was changed.
    """
    manifest = read_bytes(
        folder / MANIFEST, error=ModelError, hint="give the folder `release` of a run"
    )
    known = roster or _roster_of(folder, root_pem)
    signer = signer_of(manifest)
    said, member = _by_one_of(
        known,
        signer,
        "coordinator",
        lambda m: read_statement(manifest, RELEASE, signer, m.public_key),
    )
    _check_files(folder, said)
    bundle = load_bundle(folder / MODEL)
    _check_study(folder, said, bundle, known)
    rounds = _rounds(folder)
    if not rounds or rounds[-1]["model"] != model_hash(bundle.weights):
        raise ModelError("the model is not that of the last round", hint=_ASK)
    contributions = [(r["round"], site) for r in rounds for site in r["participants"]]
    proven = set(_proven(folder, said, known, update_size(bundle.weights)))
    missing = [pair for pair in contributions if pair not in proven]
    if said["proves"] and missing:
        raise ModelError(
            f"nothing proves that {missing[0][1]} contributed to round {missing[0][0]}", hint=_ASK
        )
    counts: dict[str, int] = {}
    for _, site in contributions:
        counts[site] = counts.get(site, 0) + 1
    return Verified(
        consortium=known.consortium,
        signer=signer,
        fingerprint=member.fingerprint,
        study=str(said["study"]),
        run=str(said["run"]),
        rounds=len(rounds),
        files=len(said["files"]),
        contributions=len(contributions),
        proven=len(contributions) - len(missing),
        sites=dict(sorted(counts.items())),
    )


def _roster_of(folder: Path, root_pem: bytes | None) -> Roster:
    if root_pem is None:
        raise IdentityError(
            "there is nothing to check the signatures against",
            hint="give the consortium's root certificate with --root, or a roster with --roster",
        )
    data = read_bytes(folder / ROSTER, error=ModelError, hint=_ASK)
    # As of then: a release stays what it is when its issuer's certificate has expired.
    return read_roster(data, root_pem, now=roster_issuer(data).not_before)


def _by_one_of(
    roster: Roster, name: str, role: str, check: Callable[[Member], _T]
) -> tuple[_T, Member]:
    """The result of a check with one of a member's keys: it may have had several."""
    found = [m for m in roster.members if (m.name, m.role) == (name, role)]
    for member in found:
        try:
            return check(member), member
        except IdentityError:
            continue
    raise IdentityError(f"something is not signed by a {role} of the roster", hint=_ASK)


def _check_files(folder: Path, said: dict[str, Any]) -> None:
    found, listed = digests(folder), said["files"]
    for name in sorted(set(found) | set(listed)):
        if name not in found:
            raise ModelError(f"{name} is missing from the release", hint=_ASK)
        if name not in listed:
            raise ModelError(f"{name} does not belong to the release", hint=_ASK)
        if found[name] != listed[name]:
            raise ModelError(f"{name} is not as it was released", hint=_ASK)


def _check_study(folder: Path, said: dict[str, Any], bundle: Bundle, roster: Roster) -> None:
    offer = read_bytes(folder / OFFER_FILE, error=ModelError, hint=_ASK)
    signer = signer_of(offer)
    content, _ = _by_one_of(
        roster, signer, "coordinator", lambda m: read_statement(offer, OFFER, signer, m.public_key)
    )
    same = content.get("document") == canonical_json(bundle.study)
    if not same or not study_hash(bundle.study) == content.get("study") == said["study"]:
        raise ModelError("the model is of another study than was offered", hint=_ASK)


def _rounds(folder: Path) -> list[dict[str, Any]]:
    data = read_bytes(folder / PARTICIPATION, error=ModelError, hint=_ASK)
    rounds: list[dict[str, Any]] = json.loads(data)["rounds"]
    return rounds


def update_size(weights: Weights) -> int:
    """Bytes of a reply that holds new weights; a refusal, signed just the same, has others."""
    return body_size(Content({}, {WEIGHT: 1.0}, dict(weights)))


def _proven(
    folder: Path, said: dict[str, Any], roster: Roster, size: int
) -> Iterator[tuple[int, str]]:
    """Contributions that the hospital's own signature proves: round and site.

    Args:
        folder: of the release.
        said: its manifest.
        roster: who was who.
        size: bytes of an update.
    """
    for line in read_bytes(folder / RECEIPTS, error=ModelError, hint=_ASK).splitlines():
        receipt = json.loads(line)
        site, number = str(receipt["site"]), int(receipt["round"])
        try:
            signed = Signed.FromString(bytes.fromhex(receipt["evidence"]))
        except (DecodeError, ValueError) as error:
            raise _wrong(site, number) from error
        header, _ = _by_one_of(roster, site, "site", partial(_header, signed))
        wanted = (REPLY, said["study"], said["run"], number, TRAIN, site)
        about = (header.study, header.run, header.round, header.action, header.sender)
        # Where arrays stand in a body may take a few digits more in another order of them.
        if (header.kind, *about) != wanted or abs(header.plain_size - size) > _SLACK:
            raise _wrong(site, number)
        yield number, site


def _header(signed: Signed, member: Member) -> Header:
    return unseal(signed, member.public_key)


def _wrong(site: str, number: int) -> FedwardError:
    return ModelError(f"the receipt of {site} for round {number} is for something else", hint=_ASK)
