"""The newest roster that a machine has seen, on its disk; nothing older ever replaces it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fedward.common.errors import IdentityError
from fedward.common.files import read_bytes, write_atomic
from fedward.common.identity.roster import Roster, read_roster, roster_issuer


class RosterFile:
    """A roster on disk.

    Args:
        path: of the file.
        root_cert_pem: the pinned root.

    Raises:
        IdentityError: what is there cannot be trusted.
    """

    def __init__(self, path: Path, root_cert_pem: str | bytes) -> None:
        self.path = path
        self._root = root_cert_pem
        self._data = b""
        self._roster: Roster | None = None
        if path.exists():
            self.reload()

    @property
    def current(self) -> Roster:
        """The roster.

        Raises:
            IdentityError: none was installed.
        """
        if self._roster is None:
            raise IdentityError("there is no roster", hint="install what the coordinator sent")
        return self._roster

    @property
    def data(self) -> bytes:
        """The roster as it travels; empty if there is none."""
        return self._data

    def reload(self) -> Roster:
        """Read the file again, which another process may have replaced.

        Raises:
            IdentityError: what is there cannot be trusted.
        """
        data = read_bytes(self.path, error=IdentityError)
        if data != self._data:
            # It was checked when it came. Once its issuer has expired, so have all certificates,
            # and only a new one helps; that it can be read is what lets a new one be accepted.
            self._roster = self._check(data, roster_issuer(data).not_before)
            self._data = data
        return self.current

    def accept(self, data: bytes, *, now: datetime | None = None) -> bool:
        """Keep a roster if it is newer; False if it is the one that is here.

        Raises:
            IdentityError: it cannot be trusted, is older, or is another one of the same version.
            OutputError: the disk refuses.
        """
        if data == self._data:
            return False
        roster = self._check(data, now or datetime.now(UTC))
        known = self._roster
        if known is not None and roster.version == known.version:
            if roster != known:
                raise IdentityError(
                    f"there are two rosters of version {roster.version}",
                    hint="do not go on; ask the coordinator",
                )
            return False
        write_atomic(self.path, data)
        self._data, self._roster = data, roster
        return True

    def _check(self, data: bytes, now: datetime) -> Roster:
        seen = self._roster.version if self._roster else 0
        roster = read_roster(data, self._root, not_before_version=seen, now=now)
        # An issuer that was replaced, perhaps because its key was stolen, signs no more rosters.
        if self._data and roster_issuer(data).not_before < roster_issuer(self._data).not_before:
            raise IdentityError(
                "the roster is signed by an issuer that was replaced",
                hint="do not go on; ask the coordinator",
            )
        return roster
