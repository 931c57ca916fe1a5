"""Checks, in order, and what they found: `ok`, something to do soon, something wrong.

>>> def key() -> str:
...     return "only its owner may read it"
>>> def disk() -> Advice:
...     return Advice("2 GB are left", todo="free some space")
>>> for finding in diagnose([Check("key", key), Check("disk", disk)]):
...     print(line(finding, width=4))
ok       key   only its owner may read it
soon     disk  2 GB are left: free some space
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fedward.common.errors import FedwardError

State = Literal["ok", "soon", "wrong", "skipped"]


@dataclass(frozen=True)
class Advice:
    """Nothing is wrong yet.

    Attributes:
        says: what was seen.
        todo: what to do about it, in the imperative.
    """

    says: str
    todo: str


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        name: short.
        look: returns what it saw, or raises what is wrong.
        needs: names of earlier checks without which this one makes no sense.
    """

    name: str
    look: Callable[[], str | Advice]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What became of a check.

    Attributes:
        check: its name.
        state: ok, soon (to be done before long), wrong, or skipped.
        says: what was seen.
        todo: what to do; empty if nothing.
        exit_code: of the error, if it is wrong.
    """

    check: str
    state: State
    says: str
    todo: str = ""
    exit_code: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def diagnose(checks: Iterable[Check]) -> Iterator[Finding]:
    """Make the checks in order; a check whose need is not met is not made."""
    failed: dict[str, str] = {}
    for check in checks:
        cause = next((failed[need] for need in check.needs if need in failed), None)
        finding = _look(check) if cause is None else _skipped(check, cause)
        if finding.state in ("wrong", "skipped"):
            failed[check.name] = cause or check.name
        yield finding


def exit_code(findings: Iterable[Finding]) -> int:
    """Of the first that is wrong: what comes later may follow from it. 0 if none is."""
    return next((finding.exit_code for finding in findings if finding.state == "wrong"), 0)


def line(finding: Finding, width: int) -> str:
    """A finding for people; `width` is that of the longest name."""
    text = f"{finding.says}: {finding.todo}" if finding.todo else finding.says
    state = finding.state.upper() if finding.state == "wrong" else finding.state
    return f"{state:<8} {finding.check:<{width}}  {text}"


def summary(findings: Sequence[Finding]) -> dict[str, Any]:
    """For JSON: all of them, and whether nothing is wrong."""
    return {
        "ok": exit_code(findings) == 0,
        "findings": [finding.to_dict() for finding in findings],
    }


def _look(check: Check) -> Finding:
    try:
        seen = check.look()
    except FedwardError as error:
        return Finding(check.name, "wrong", error.problem, error.hint, error.exit_code)
    if isinstance(seen, Advice):
        return Finding(check.name, "soon", seen.says, seen.todo)
    return Finding(check.name, "ok", seen)


def _skipped(check: Check, cause: str) -> Finding:
    return Finding(check.name, "skipped", f"not looked at, because of {cause}")
