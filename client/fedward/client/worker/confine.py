"""What a worker does to itself before it touches data: low priority, no core dump, no afterlife.

A core dump would be a copy of the patients in a place that nobody looks after; a worker that
outlives its daemon would train for nobody.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_FIRST_TO_DIE = "800"
"""For the kernel that runs out of memory: rather this process than the daemon, or anybody's."""


def confine(parent: int, *, nice: int) -> None:
    """Confine this process; ends it if its daemon is gone already.

    Args:
        parent: process id of the daemon: this process is killed when it ends.
        nice: added to this process's niceness, 0 … 19.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        os.nice(nice)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_DIE, encoding="ascii")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        sys.exit(0)


def _prctl(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def private_streams() -> tuple[int, int]:
    """Take stdin and stderr for ourselves, and give libraries nothing to read or to write to.

    Returns:
        File descriptors: where requests come from, and the site's own log.
    """
    requests, log = os.dup(0), os.dup(2)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    return requests, log
