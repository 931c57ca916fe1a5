"""The studies that were offered to a site, as the coordinator signed them: `state/studies/`.

A file is the signed statement, byte for byte, named by the study's hash. Nothing of it is used
before the hash was computed again from what it says; who signed it is checked when it arrives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.common.errors import IdentityError, StudyError
from fedward.common.files import read_bytes, write_atomic
from fedward.common.identity.roster import Roster
from fedward.common.statements import OFFER, read_statement, signer_of
from fedward.common.study import Study, study_hash

_HASH = re.compile(r"[0-9a-f]{64}")
MOST_UNWANTED = 200
"""Offers that are kept though they are offered no more and nobody has decided about them."""
_HINT = "ask the coordinator to offer it again"


@dataclass(frozen=True)
class Offer:
    """A study that was offered.

    Attributes:
        study: what it says.
        hash: its name everywhere.
        signer: who offered it, by the roster.
        statement: as it was signed.
    """

    study: Study
    hash: str
    signer: str
    statement: bytes


def read_offer(statement: bytes, roster: Roster) -> Offer:
    """Check a signed offer.

    Args:
        statement: as it came.
        roster: says who may offer studies: its active coordinators.

    Raises:
        IdentityError: it was not signed by one of them.
        StudyError: it does not hold the study that it names.
    """
    signer = signer_of(statement)
    member = roster.member(signer)
    if member is None or not member.active or member.role != "coordinator":
        raise IdentityError(
            "a study was offered by somebody who is no coordinator of the roster",
            hint="ask the coordinator; do not approve it",
        )
    content = read_statement(statement, OFFER, signer, member.public_key)
    study = _study(content)
    name = study_hash(study)
    if content.get("study") != name:
        raise StudyError("an offered study is not the one that it names", hint=_HINT)
    return Offer(study, name, signer, statement)


def known_offer(folder: Path, statement: bytes) -> Offer | None:
    """An offer that is kept byte for byte, which was checked when it arrived; None for others.

    A coordinator that has another key by now goes on with what it offered under the old one.

    Raises:
        IdentityError: it is no statement.
        StudyError: it is no offer.
    """
    name = str(_content(statement).get("study"))
    kept = _HASH.fullmatch(name) is not None and (folder / f"{name}.json").is_file()
    if not kept or kept_statement(folder, name) != statement:
        return None
    return Offer(kept_study(folder, name), name, signer_of(statement), statement)


def keep_offer(folder: Path, offer: Offer) -> bool:
    """Keep an offer; False if it was here already, as it is.

    Raises:
        OutputError: the disk refuses.
    """
    path = folder / f"{offer.hash}.json"
    if path.is_file() and path.read_bytes() == offer.statement:
        return False
    write_atomic(path, offer.statement)
    return True


def forget_offers(folder: Path, names: Collection[str], *, most: int = MOST_UNWANTED) -> None:
    """Delete the oldest of some kept offers, so that at most so many of them are left."""
    kept: list[tuple[float, Path]] = []
    for name in names:
        path = folder / f"{name}.json"
        with suppress(OSError):
            kept.append((path.stat().st_mtime, path))
    for _, path in sorted(kept)[: max(0, len(kept) - most)]:
        with suppress(OSError):
            path.unlink()


def kept_study(folder: Path, name: str) -> Study:
    """The study of a kept offer. Its hash is checked; its signature was when it arrived.

    Raises:
        StudyError: there is none of that hash, or the file holds another study.
    """
    study = _study(_content(kept_statement(folder, name)))
    if study_hash(study) != name:
        raise StudyError("a kept study is not the one that its file names", hint=_HINT)
    return study


def kept_statement(folder: Path, name: str) -> bytes:
    """The signed statement of a kept offer, unchecked.

    Raises:
        StudyError: there is none of that hash.
    """
    if not _HASH.fullmatch(name):
        raise StudyError("that is no hash of a study", hint="see `fedward client studies`")
    return read_bytes(
        folder / f"{name}.json", error=StudyError, hint="see `fedward client studies`"
    )


def kept_offers(folder: Path) -> tuple[str, ...]:
    """Hashes of the studies that were offered, sorted."""
    names = (path.stem for path in folder.glob("*.json"))
    return tuple(sorted(name for name in names if _HASH.fullmatch(name)))


def _study(content: dict[str, Any]) -> Study:
    try:
        return Study.model_validate_json(str(content["document"]))
    except (KeyError, ValueError) as error:
        raise _unreadable() from error


def _content(statement: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(statement)["content"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable() from error


def _unreadable() -> StudyError:
    return StudyError(
        "an offered study cannot be read",
        hint="check that both sides run the same version of fedward",
    )
