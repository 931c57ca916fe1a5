"""Looking at this machine: dates of certificates, signed logs, disk, limits of processes."""

from __future__ import annotations

import os
import resource
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from fedward.common.audit.verify import verify_log
from fedward.common.diagnosis.findings import Advice
from fedward.common.errors import IdentityError, OutputError, StateError
from fedward.common.identity.certificates import Certificate
from fedward.common.identity.keys import PublicKey

_GB = 1 << 30
_FEW_FILES = 1024
_LITTLE_GB = 5.0
_TOO_LITTLE_GB = 1.0
_BEHIND_S = 5.0
_WRONG_S = 60.0


def dates(
    certificate: Certificate, now: datetime, *, early: timedelta, todo: str, renew: str
) -> str | Advice:
    """Whether a certificate is valid, and for how long.

    Args:
        certificate: which.
        now: the time, with its zone.
        early: how long before the end to say so.
        todo: what to do then.
        renew: what to do if it is too late.

    Raises:
        IdentityError: it has expired, or is not valid yet.
    """
    end = certificate.not_after.date().isoformat()
    if now > certificate.not_after:
        raise IdentityError(f"it expired on {end}", hint=renew)
    if now < certificate.not_before:
        raise IdentityError("it is not valid yet", hint="check this machine's clock")
    left = certificate.not_after - now
    says = f"valid until {end}, {left.days} days"
    return Advice(says, todo) if left < early else says


def disk(folder: Path) -> str | Advice:
    """Whether the disk of a folder has room.

    Raises:
        OutputError: it has none, or the folder may not be written to.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            "this user may not write to the folder",
            hint="run as the user whom it belongs to, or correct its permissions",
        )
    free = shutil.disk_usage(folder).free / _GB
    says = f"{free:.1f} GB are left"
    if free < _TOO_LITTLE_GB:
        raise OutputError(says, hint=f"free some space: {_TOO_LITTLE_GB:.0f} GB are needed")
    return Advice(says, "free some space") if free < _LITTLE_GB else says


def audit_log(path: Path, key: PublicKey) -> str:
    """Whether an audit log is whole.

    Raises:
        StateError: it is not.
    """
    if not path.is_file():
        return "there is none yet"
    report = verify_log(path, key)
    if not report.ok:
        raise StateError(
            f"the audit log is not whole: {report.problem}",
            hint="keep the file as evidence, and find out who changed it",
        )
    return f"whole, {report.head.length} entries"


def clock(skew_s: float) -> str | Advice:
    """Whether this machine's clock agrees with another's, which is `skew_s` ahead.

    Raises:
        StateError: they differ so much that certificates and logs cannot be trusted.
    """
    way = "behind" if skew_s > 0 else "ahead of"
    says = f"{abs(skew_s):.0f} s {way} the server's"
    todo = "let this machine keep its time by NTP (timedatectl set-ntp true)"
    if abs(skew_s) > _WRONG_S:
        raise StateError(f"this machine's clock is {says}", hint=todo)
    return Advice(says, todo) if abs(skew_s) > _BEHIND_S else "agrees with the server's"


def limits(memory_mb: int = 0) -> str | Advice:
    """Whether processes may use what they need.

    Args:
        memory_mb: that training processes may take together; 0 if there are none.

    Raises:
        StateError: they may not.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < _FEW_FILES:
        raise StateError(
            f"a process may open {files} files only", hint=f"allow {_FEW_FILES} (ulimit -n)"
        )
    have_mb = _memory_mb()
    if memory_mb > have_mb:
        return Advice(
            f"training may take {memory_mb} MB, but the machine gives {have_mb} MB",
            "lower memory_mb or runs in [worker]",
        )
    return f"{os.cpu_count() or 1} processors, {have_mb} MB of memory"


def _memory_mb() -> int:
    """Memory of the machine, or what the container or service is given of it."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        most = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup, or "max"
        most = have
    return min(have, most) >> 20
