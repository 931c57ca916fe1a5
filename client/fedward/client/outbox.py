"""Replies on their way out: `state/outbox/<run>/`, each under the key of the task that it answers.

A reply is there whole or not at all, whatever is killed when. It stays until the site has
answered the round after the next, so that the same task, asked again, is answered by the same
bytes: a server keeps two checkpoints, and may go back from the newest. Replies also tell which
rounds are over, so no refusal deletes one: whoever asks may have meant it to. A refusal stays until
its receipt: asked anew, a site may have changed its mind.

    RUN/ROUND.KEY.work     written by the training process, not seen by the gate yet
    RUN/ROUND.KEY.reply    passed the gate
    RUN/ROUND.ACTION.KEY.asked   that it was asked, see `Outbox.ask`
    .refused/KEY.refusal   says why there is no reply, or why it is not given now

Whoever is refused leaves nothing else behind, whatever names he asks in.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from fedward.common.errors import LinkError, RoundError
from fedward.common.files import output_error
from fedward.common.wire.body import Content, Written, write_body

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KEY = re.compile(r"[0-9a-f]{64}")
REPLY = ".reply"
"""Ends the names of replies."""
_REFUSED = ".refused"
"""Folder of refusals; no run has such a name."""
MOST_REFUSALS = 256
"""That are kept until somebody takes them; the oldest go first. More than a site has in hand."""
MOST_QUESTIONS = 3
"""How many different tasks of one kind a site takes in a round: a server that was killed may ask
for something else than before, but none may ask on and on."""
STRANGE_AFTER_S = 24 * 3600.0
"""After which a folder of a run that nobody knows is deleted; a server may be slow to name one."""


class Outbox:
    """The replies of a site.

    Args:
        folder: where they are; made if it is not there.

    Raises:
        OutputError: the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error

    def work(self, run: str, number: int, key: str) -> Path:
        """Where the training process writes its answer to a task, see `begin`.

        Raises:
            LinkError: run or key are no names for a file.
        """
        if not _RUN.fullmatch(run) or not _KEY.fullmatch(key) or not 0 <= number <= 10**6:
            raise _nameless()
        return self._folder / run / f"{number:07d}.{key}.work"

    def begin(self, work: Path) -> None:
        """A task is taken on: make the folder of its run.

        Raises:
            OutputError: the disk refuses.
        """
        _make(work.parent)

    def ask(self, work: Path, action: str) -> None:
        """Note that a task of a round is taken on; the same again changes nothing.

        Without privacy nothing else bounds how many questions are asked about the same patients:
        the ledger does so where there is a promise.

        Raises:
            RoundError: too many others of that kind were taken on in that round.
            OutputError: the disk refuses.
        """
        number, key = _round(work), work.stem.partition(".")[2]
        if number == 0:  # before the first round every answer is the same
            return
        self.begin(work)
        mine = work.with_name(f"{number:07d}.{action}.{key}.asked")
        # Patterns of files are constant, here and below: each other one would be kept, compiled.
        asked, kind = work.parent.glob("*.asked"), f"{number:07d}.{action}."
        known = {path.name for path in asked if path.name.startswith(kind)}
        if len(known - {mine.name}) >= MOST_QUESTIONS:
            raise RoundError(
                "the server asked for too many different things in one round",
                hint="server and site must run the same study in the same order",
            )
        try:
            mine.touch(mode=0o600)
        except OSError as error:
            raise output_error(mine, error) from error

    def find(self, run: str, key: str) -> Path | None:
        """What was answered to a task.

        A reply rather than a refusal, which it takes the place of: so a receipt is for what was
        given last.
        """
        if not _RUN.fullmatch(run) or not _KEY.fullmatch(key):
            return None
        refusal = self._refusal(key)
        replies = (self._folder / run).glob("*.reply")
        found = next((path for path in replies if _key(path) == key), None)
        if found is None:
            return refusal if refusal.exists() else None
        with suppress(OSError):
            refusal.unlink()
        return found

    def release(self, work: Path) -> Path:
        """Let a reply that passed the gate go: it is called so from here on, durably.

        Raises:
            OutputError: the disk refuses.
        """
        reply = work.with_suffix(REPLY)
        try:
            work.replace(reply)
            _sync(reply.parent)
        except OSError as error:
            raise output_error(reply, error) from error
        return reply

    def refuse(self, key: str, content: Content) -> Path:
        """Answer by a refusal.

        Raises:
            LinkError: the key is no name for a file.
            OutputError: the disk refuses.
        """
        if not _KEY.fullmatch(key):
            raise _nameless()
        path = self._refusal(key)
        _make(path.parent)
        write_durably(path, content)
        self._forget_refusals()
        return path

    def _forget_refusals(self) -> None:
        found = []
        for path in (self._folder / _REFUSED).glob("*.refusal"):
            with suppress(OSError):  # taken meanwhile
                found.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(found)[: max(0, len(found) - MOST_REFUSALS)]:
            with suppress(OSError):
                path.unlink()

    def last_round(self, run: str) -> int:
        """The highest round of a run that was answered; 0 for none."""
        return max((_round(path) for path in self._replies(run)), default=0)

    def receipt(self, key: str) -> Path | None:
        """The other side has an answer: what is needed no longer is deleted.

        Returns:
            The file that was received, which may be gone; None if there is no such answer.
        """
        if not _KEY.fullmatch(key):
            return None
        # A refusal of what was answered before is the later of the two, see `find`.
        refusal = self._refusal(key)
        if refusal.exists():
            with suppress(OSError):
                refusal.unlink()
            return refusal
        replies = self._folder.glob("*/*.reply")
        received = next((path for path in replies if _key(path) == key), None)
        if received is not None:
            self._tidy(received.parent)
        return received

    def _tidy(self, folder: Path) -> None:
        """Delete what the rounds of a run left that are over."""
        last = self.last_round(folder.name)
        # Patterns of files are constant, as in `ask`.
        for path in (*folder.glob("*.reply"), *folder.glob("*.asked"), *folder.glob("*.work")):
            if 0 < _round(path) < last - 1:
                with suppress(OSError):
                    path.unlink()

    def forget(self, run: str) -> None:
        """Delete what is left of a run that is over."""
        if _RUN.fullmatch(run):
            shutil.rmtree(self._folder / run, ignore_errors=True)

    def forget_strangers(self, known: Collection[str], *, now_s: float) -> None:
        """Delete what is left of runs that nobody knows, and that asked for nothing for a day.

        And refusals that nobody took for as long.

        Args:
            known: runs that go on or that the ledger has: those are forgotten when they are over.
            now_s: Unix time.
        """
        runs = (path for path in self._folder.iterdir() if _RUN.fullmatch(path.name))
        strangers = [path for path in runs if path.name not in known]
        for path in (*strangers, *(self._folder / _REFUSED).glob("*.refusal")):
            with suppress(OSError):
                if now_s - path.stat().st_mtime > STRANGE_AFTER_S:
                    _delete(path)

    def _refusal(self, key: str) -> Path:
        return self._folder / _REFUSED / f"{key}.refusal"

    def _replies(self, run: str) -> Iterator[Path]:
        if _RUN.fullmatch(run):
            yield from (self._folder / run).glob("*.reply")


def _nameless() -> LinkError:
    return LinkError("a task has no name that can be used", hint="report this as a defect")


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error


def write_durably(path: Path, content: Content) -> Written:
    """Write a body that is whole and on the disk when it has its name.

    Raises:
        LinkError: an array may not travel.
        OutputError: the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        written = write_body(partial, content)
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return Written(path, written.sha256, written.size)


def _key(path: Path) -> str:
    """Of the task that a file is about."""
    return path.stem.partition(".")[2]


def _round(path: Path) -> int:
    number = path.name.partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
