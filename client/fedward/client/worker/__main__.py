"""`python -m fedward.client.worker`: answers the daemon, one line for one line, until it is gone.

The log that it is given stays at the site and still holds nothing of a patient: where a defect
happened and what class of error it was, never what a library said about it.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import traceback
from typing import TYPE_CHECKING, TextIO

from fedward.client.worker.confine import confine, private_streams
from fedward.client.worker.protocol import BROKEN, REFUSED, Do, Load, Refused, decode, encode
from fedward.common.errors import FedwardError

if TYPE_CHECKING:
    from fedward.client.worker.trainer import Trainer


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="fedward.client.worker")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--answers", type=int, required=True)
    parser.add_argument("--nice", type=int, default=10)
    given = parser.parse_args()
    confine(given.parent, nice=given.nice)
    requests, log_file = private_streams()
    with (
        os.fdopen(requests, "rb") as lines,
        os.fdopen(log_file, "w", buffering=1, encoding="utf-8") as log,
        os.fdopen(given.answers, "wb", buffering=0) as answers,
    ):
        faulthandler.enable(log)
        worker = _Worker(log)
        for line in lines:
            answers.write(worker.answer(line))


class _Worker:
    """Loads what computes with the first request, so that a start costs nothing."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._trainer: Trainer | None = None

    def answer(self, line: bytes) -> bytes:
        """One answer to one request."""
        try:
            name, content = decode(line)
            if name == "load":
                from fedward.client.worker.trainer import Trainer

                self._trainer = Trainer(Load(**content))
                return encode("ready", self._trainer.ready)
            if self._trainer is None:
                raise ValueError("nothing is loaded")
            return encode("done", self._trainer.do(Do(**content)))
        except FedwardError as refusal:
            return encode(REFUSED, Refused.of(refusal))
        except Exception as error:  # noqa: BLE001  (an entry point: the daemon is told, by class)
            self._note(error)
            return encode(BROKEN, type(error).__name__)

    def _note(self, error: Exception) -> None:
        """Say where it happened: the source lines and the class, not the error's own text."""
        self._log.write(f"{type(error).__name__} at\n")
        for frame in traceback.extract_tb(error.__traceback__):
            self._log.write(f"  {frame.filename}:{frame.lineno} in {frame.name}\n")


if __name__ == "__main__":
    main()
