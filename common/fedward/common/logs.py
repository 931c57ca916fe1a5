"""How a service writes its log: one JSON object per line, and a second log that may be shared.

Entry points call `configure` once; everything else only says what happens:

    logging.getLogger(__name__).info("a round is done", extra={"facts": {"round": 3}})

gives `{"time": …, "level": "info", "logger": …, "message": "a round is done", "facts": {…}}`.
The first log stays on the machine. The second, if asked for, is what `redaction` lets through: it
may be sent to those who help. Neither ever holds an exception's text, which can quote a patient's
data, unless somebody sets FEDWARD_DEBUG: then the first one does.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from fedward.common.errors import FedwardError
from fedward.common.files import output_error
from fedward.common.redaction import LEVELS, WITHHELD, Redactor, place

LARGEST_FILE = 10 << 20
"""Bytes after which a log file is put aside."""
OLD_FILES = 5
"""How many files put aside are kept."""
_DEEPEST = 5
"""Levels of nested facts that are written."""


@contextmanager
def configure(
    level: str = "info",
    stream: TextIO | Path | None = None,
    shareable: Path | None = None,
    *,
    debug: bool | None = None,
) -> Iterator[None]:
    """Write this process's log while the body runs; afterwards logging is as it was.

    Args:
        level: the least that is written: debug, info, warning, error or critical.
        stream: where the full log goes; standard error by default. A file is rotated.
        shareable: file of the log that may be shared; none by default. It is rotated.
        debug: write exceptions whole, and messages of other libraries; FEDWARD_DEBUG by default.

    Raises:
        OutputError: a log file cannot be opened.
        ValueError: there is no such level.
    """
    if level not in LEVELS.values():
        raise ValueError(f"the log level must be one of {', '.join(LEVELS.values())}")
    whole = _debug() if debug is None else debug
    handlers = [_handler(sys.stderr if stream is None else stream, _Full(debug=whole))]
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    try:
        if shareable is not None:
            handlers.append(_handler(shareable, _Redacted()))
        root.handlers[:] = handlers
        root.setLevel(level.upper())
        logging.captureWarnings(capture=True)
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        for handler in handlers:
            handler.close()


class _Stream(logging.StreamHandler[TextIO]):
    """Writes to a stream; one that is full or gone ends no service."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Lose the line: saying why would quote it, and would fail the same way."""


class _File(RotatingFileHandler):
    """Writes to a file that is put aside when it is large; a full disk ends no service."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Lose the line: saying why would quote it, and would fail the same way."""


class _Lines(logging.Formatter):
    """One JSON object per record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line of JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time.replace("+00:00", "Z"), **self.content(record)}
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        return text.encode(errors="replace").decode()  # half a character from the wire

    def content(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the line says besides the time."""
        raise NotImplementedError


class _Redacted(_Lines):
    """Only what may leave the hospital."""

    def __init__(self) -> None:
        super().__init__()
        self._redactor = Redactor()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record may be mentioned at all."""
        return self._redactor.known(record)

    def content(self, record: logging.LogRecord) -> dict[str, Any]:
        return self._redactor.redact(record)


class _Full(_Lines):
    """Everything, for the machine that the log stays on."""

    def __init__(self, *, debug: bool) -> None:
        super().__init__()
        self._debug = debug

    def content(self, record: logging.LogRecord) -> dict[str, Any]:
        ours = record.name.startswith("fedward.")
        line: dict[str, Any] = {
            "level": LEVELS.get(record.levelno, record.levelname),
            "logger": record.name,
            # A message of another library can quote data.
            "message": record.getMessage() if ours or self._debug else WITHHELD,
            "facts": _safe(getattr(record, "facts", None) or {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line |= self._exception(record.exc_info[1])
        return line

    def _exception(self, error: BaseException) -> dict[str, str]:
        line = {"error": type(error).__name__, "place": place(error.__traceback__)}
        if isinstance(error, FedwardError):
            line["reason"] = str(error)
        if self._debug:
            line["traceback"] = "".join(traceback.format_exception(error))
        return line


def _handler(target: TextIO | Path, formatter: _Lines) -> logging.Handler:
    handler: logging.Handler
    if isinstance(target, Path):
        try:
            handler = _File(target, maxBytes=LARGEST_FILE, backupCount=OLD_FILES, encoding="utf-8")
        except OSError as error:
            raise output_error(target, error) from error
    else:
        handler = _Stream(target)
    handler.setFormatter(formatter)
    if isinstance(formatter, _Redacted):
        handler.addFilter(formatter.filter)
    return handler


def _debug() -> bool:
    """As click reads the option `--debug` from its variable."""
    return os.environ.get("FEDWARD_DEBUG", "").lower() in ("1", "true", "t", "yes", "y", "on")


def _safe(value: object, depth: int = 0) -> Any:
    """A fact as JSON-safe value; of what is none, only its class: its text could quote data."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, FedwardError | Path):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {str(key): _safe(item, depth + 1) for key, item in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_safe(item, depth + 1) for item in value]
    return f"({type(value).__name__})"
