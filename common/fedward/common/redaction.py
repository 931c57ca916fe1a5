"""What of a log record may leave the hospital: a closed list of facts, each in its own form.

Guarantee:
    A redacted record holds the time, the level, a module of fedward, phrases of fedward's own
    source (`phrases`), and facts whose name stands in `FORMS` and whose value has that form: names
    of sites, runs and studies, numbers of rounds and protocols, durations, sizes of messages. No
    text of an exception, no path, no fact of any other name, whatever is logged.

A record of another library is left out: its messages can quote anything.
"""

from __future__ import annotations

import builtins
import logging
import math
import re
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from fedward.common import records
from fedward.common.errors import FedwardError, error_classes
from fedward.common.exit_codes import exit_codes
from fedward.common.phrases import Phrases
from fedward.common.wire import kinds

WITHHELD = "(withheld)"
LEVELS: Mapping[int, str] = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}
_PREFIX = "fedward."
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_RUN = re.compile(r"[a-z0-9][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[0-9][0-9a-z.+-]{0,31}")
_DATE = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}(T[0-9:.+Z]{1,24})?")
_HASH = re.compile(r"[0-9a-f]{8,64}")
_MOST_NAMES = 10_000
_TEXTS = ("error", "reason", "problem", "hint")
_ACTIONS = (records.TRAIN, records.EVALUATE, records.STATISTICS, records.INTRODUCE)
_KINDS = (*kinds.SMALL, kinds.TASK, kinds.REPLY)

Form = Callable[[Any], bool]


def _like(pattern: re.Pattern[str]) -> Form:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _duration(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) < 1 << 53


def _names(value: Any) -> bool:
    several = isinstance(value, list | tuple | set | frozenset)
    return several and len(value) <= _MOST_NAMES and all(map(_like(_NAME), value))


def _error_name(value: Any) -> bool:
    return isinstance(value, str) and value in {kind.__name__ for kind in error_classes()}


FORMS: Mapping[str, Form] = {
    **dict.fromkeys(
        ("site", "server", "study", "peer", "sender", "recipient", "consortium", "state", "status"),
        _like(_NAME),
    ),
    # Names, never how many: `missing = 37` would be a count of somebody's values.
    **dict.fromkeys(("absent", "missing", "refused"), _names),
    "sites": lambda value: _names(value) or _count(value),
    **dict.fromkeys(("code", "exit_code"), lambda value: _count(value) and value in exit_codes()),
    "action": lambda value: value in _ACTIONS,
    "kind": lambda value: value in _KINDS,
    "role": lambda value: value in ("coordinator", "site", "observer"),
    "run": _like(_RUN),
    **dict.fromkeys(("study_hash", "fingerprint", "task", "sha256"), _like(_HASH)),
    **dict.fromkeys(("fedward", "python", "release"), _like(_VERSION)),
    "version": lambda value: _like(_VERSION)(value) or _count(value),
    "valid_until": _like(_DATE),
    "for_good": lambda value: isinstance(value, bool),
    **dict.fromkeys(
        (
            "round", "rounds", "protocol", "roster_version", "attempt", "attempts", "after",
            "bytes", "bytes_in", "bytes_out", "connected", "quorum", "restarts", "port", "pid",
        ),
        _count,
    ),
    **dict.fromkeys(
        (
            "seconds", "duration_s", "wait_s", "timeout_s", "deadline_s", "retry_in_s", "skew_s",
            "absence_s", "silence_s", "expires_in_s",
        ),
        _duration,
    ),
    "error": _error_name,
}  # fmt: skip
"""Facts that may be shared, and what their values must look like. See also `Redactor.redact`."""


class Redactor:
    """Turns log records into what may be shared."""

    def __init__(self) -> None:
        self._phrases = Phrases()

    def known(self, record: logging.LogRecord) -> bool:
        """Whether a module of fedward logged it; of other records nothing may be shared."""
        return record.name.startswith(_PREFIX) and record.name in sys.modules

    def redact(self, record: logging.LogRecord) -> dict[str, Any]:
        """What may be shared of a `known` record, as JSON-safe values.

        The facts `error`, `reason`, `problem` and `hint`, errors of fedward or their texts, are
        shown with gaps for what they name.
        """
        text = record.msg if isinstance(record.msg, str) else ""
        shared: dict[str, Any] = {
            "level": LEVELS.get(record.levelno, "other"),
            "logger": record.name if self.known(record) else WITHHELD,
            "message": self._phrases.public(text, first=record.name) or WITHHELD,
            "facts": self._facts(getattr(record, "facts", None), record.name),
        }
        if record.exc_info and record.exc_info[1] is not None:
            shared |= self._exception(record.exc_info[1])
        return shared

    def _facts(self, facts: object, logger: str) -> dict[str, Any]:
        if not isinstance(facts, Mapping):
            return {}
        shared: dict[str, Any] = {}
        for name, value in facts.items():
            if name in _TEXTS and not (name in FORMS and FORMS[name](value)):
                shared[name] = self._reason(value, logger)
            elif isinstance(name, str) and name in FORMS and FORMS[name](value):
                shared[name] = sorted(value) if isinstance(value, set | frozenset) else value
        return shared

    def _reason(self, value: object, logger: str) -> str:
        if isinstance(value, FedwardError):
            return f"{_class_name(value)}: {self._text(value)}"
        if isinstance(value, str):
            return self._phrases.public(value, first=logger) or WITHHELD
        return WITHHELD

    def _text(self, error: FedwardError) -> str:
        parts = (self._phrases.public(str(part)) for part in (error.problem, error.hint))
        return ": ".join(part or WITHHELD for part in parts)

    def _exception(self, error: BaseException) -> dict[str, str]:
        shared = {"error": _class_name(error), "place": place(error.__traceback__)}
        if isinstance(error, FedwardError):
            shared["reason"] = self._text(error)
        return shared


def place(trace: TracebackType | None) -> str:
    """The innermost module and line of fedward in a traceback."""
    found = ""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        if name.startswith(_PREFIX) and name in sys.modules:
            found = f"{name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return found or "at an unknown place"


def _class_name(error: BaseException) -> str:
    """The class of an error if it is one that everybody knows."""
    kind = type(error)
    if kind in set(error_classes()) or getattr(builtins, kind.__name__, None) is kind:
        return kind.__name__
    return "an error of another library"
