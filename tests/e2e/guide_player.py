"""Plays the guides of docs/guides: each block is done as it stands, its output compared.

What a block is, its first line says (readers see only the first word, as highlighting):

    ```console          commands after `$ `, each with the output that it must give
    ```console until    the same, repeated until the output is as shown: what readers wait for;
                        only commands that look, and change nothing
    ```console daemon   one command that goes on; the lines shown must appear, and it stays
    ```sh systemd       needs systemd and an administrator: only the units' names are checked
    ```toml write=FILE  what the reader puts into FILE
    ```toml part=FILE   a part of a settings file: its keys are checked

In outputs `…` stands for anything in a line, and a line of `…` for any lines. A command whose shown
output has a line `error: …` must fail, every other must not. No shown output: any will do.

Comments that no reader sees divide a guide and say what people do apart from commands:

    <!-- step: NAME -->              what follows, up to the next; `Player.play` does one
    <!-- bring: FILE from PLACE -->  a file that was sent by mail, or on a stick
    <!-- end: PLACE -->              Ctrl-C in the terminal where a daemon of that place runs
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_PIECE = re.compile(
    r"^<!-- (?P<order>step|bring|end): (?P<what>.*?) -->$"
    r"|^```(?P<info>\S[^\n]*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
_SPOKEN = re.compile(r"(?:[0-9a-f]{4} ){15}[0-9a-f]{4}")
_LOOKS = re.compile(
    r"fedward (server (status|runs|run-show|roster)|client (status|studies|budget)) "
)
_COMMAND_S = 900.0
_WAIT_S = 600.0
_LOOK_S = 0.5

Check = Callable[[str, str, Path], None]


class NotAsShownError(AssertionError):
    """What happened is not what the guide shows."""


@dataclass(frozen=True)
class Piece:
    """A block (`kind`, `extra`: the words of its first line) or an order of a comment."""

    kind: str
    extra: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command and what it must print; no shown lines: anything."""

    line: str
    shown: str

    @property
    def fails(self) -> bool:
        """Whether the guide shows that it is refused."""
        return bool(re.search(r"^error: ", self.shown, re.M))


def steps(page: Path) -> dict[str, list[Piece]]:
    """The steps of a guide, in its order.

    Raises:
        NotAsShownError: a block stands before the first step, or two steps have one name.
    """
    found: dict[str, list[Piece]] = {}
    here: list[Piece] | None = None
    for match in _PIECE.finditer(page.read_text(encoding="utf-8")):
        if match["order"] == "step":
            if match["what"] in found:
                raise NotAsShownError(f"{page.name}: two steps are called {match['what']}")
            here = found[match["what"]] = []
            continue
        if here is None:
            raise NotAsShownError(f"{page.name}: a block before the first step")
        kind, _, extra = (match["info"] or "").partition(" ")
        here.append(
            Piece(match["order"] or kind, extra or match["what"] or "", match["text"] or "")
        )
    return found


def commands(text: str) -> list[Command]:
    """The commands of a console block, and what it shows of their output."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        lines = part.splitlines()
        end = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
        shown = "\n".join(lines[end + 1 :])
        found.append(Command("\n".join(lines[: end + 1]), shown))
    return found


def pattern(shown: str) -> re.Pattern[str]:
    """What an output must be to be as shown."""
    lines = [line.rstrip() for line in shown.strip("\n").splitlines()]
    whole = [
        r"(?:[^\n]*\n)*?" if line == "…" else re.escape(line).replace("…", r"[^\n]*?") + r"\n"
        for line in lines
    ]
    return re.compile("".join(whole))


def as_shown(shown: str, printed: str) -> bool:
    """Whether an output is as the guide shows it; blanks at the ends of lines do not count."""
    tidy = "".join(line.rstrip() + "\n" for line in printed.strip("\n").splitlines())
    return pattern(shown).fullmatch(tidy) is not None


@dataclass
class Player:
    """Plays steps of guides in a folder for each place, with real processes.

    Args:
        folder: an existing folder; each place has its own below.
        guides: where the pages are.
        environment: of every command.
        substitute: what stands in the guides, and what stands for it here, for each place.
        part: checks a part of a settings file: name of the file, text, folder of the place.
        unit: checks a block that needs systemd.
    """

    folder: Path
    guides: Path
    environment: Mapping[str, str]
    substitute: Callable[[str, str], str]
    part: Check
    unit: Check
    played: list[tuple[str, str]] = field(default_factory=list)
    _spoken: dict[str, str] = field(default_factory=dict)
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def place(self, name: str) -> Path:
        """Folder in which the people of a place give their commands."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def play(self, guide: str, step: str, place: str, *, about: str = "") -> None:
        """Do one step.

        Args:
            guide: name of the page.
            step: of that page.
            place: where it is done.
            about: the hospital that it is about, if it is done elsewhere.

        Raises:
            NotAsShownError: something is not as the guide shows it.
        """
        self.played.append((guide, step))
        for piece in steps(self.guides / f"{guide}.md")[step]:
            told = Piece(*(self._fill(text, place, about or place) for text in _of(piece)))
            try:
                self._do(told, place)
            except NotAsShownError as error:
                raise NotAsShownError(f"{guide}.md, step {step}, at {place}: {error}") from None

    def _fill(self, text: str, place: str, about: str) -> str:
        text = self.substitute(text, about)
        read_out = {"--fingerprint": about, "--ca-fingerprint": "coordinator"}
        for option, whose in read_out.items():
            spoken = self._spoken.get(whose, "")
            text = re.sub(rf'{option} "[^"\n]*…"', f'{option} "{spoken}"', text)
        return text

    def _do(self, piece: Piece, place: str) -> None:
        here = self.place(place)
        action = (piece.kind, piece.extra.partition("=")[0])
        match action:
            case ("console", "daemon"):
                self._leave_running(*commands(piece.text), place=place)
            case ("console", "until"):
                self._repeat(commands(piece.text), place)
            case ("console", ""):
                for command in commands(piece.text):
                    self._give(command, place)
            case ("toml", "write"):
                (here / piece.extra.partition("=")[2]).write_text(piece.text, encoding="utf-8")
            case ("toml", "part"):
                self.part(piece.extra.partition("=")[2], piece.text, here)
            case ("sh", "systemd"):
                self.unit(place, piece.text, here)
            case ("bring", _):
                name, _, origin = piece.extra.partition(" from ")
                source = self.place(origin) / name
                copy = shutil.copytree if source.is_dir() else shutil.copy
                copy(source, here / source.name)
            case ("end", _):
                self.end(piece.extra)
            case _:
                raise NotAsShownError(f"nobody knows what to do with a block of {action}")

    # --- commands ---------------------------------------------------------------------------------

    def _give(self, command: Command, place: str) -> None:
        code, printed = self._run(command.line, place)
        found = _SPOKEN.search(printed)
        if found and re.search(r"\b(server|client) init\b", command.line):
            self._spoken[place] = found[0]
        if (code != 0) != command.fails:
            raise NotAsShownError(f"$ {command.line}\nends with {code}:\n{printed}")
        if command.shown and not as_shown(command.shown, printed):
            raise NotAsShownError(
                f"$ {command.line}\nshould print:\n{command.shown}\n\nbut prints:\n{printed}"
            )

    def _repeat(self, wanted: list[Command], place: str) -> None:
        for command in wanted:
            if not _LOOKS.match(command.line):
                raise NotAsShownError(f"$ {command.line}\nis not repeated: it does more than look")
        end = time.monotonic() + _WAIT_S
        while True:
            try:
                for command in wanted:
                    self._give(command, place)
                return
            except NotAsShownError:
                if time.monotonic() > end:
                    raise
            time.sleep(_LOOK_S)

    def _run(self, line: str, place: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self.place(place),
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        return done.returncode, done.stdout

    def _leave_running(self, command: Command, *, place: str) -> None:
        if place in self._daemons:
            raise NotAsShownError(f"{place} has a daemon already")
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".out", delete=False) as output:
            self._daemons[place] = subprocess.Popen(
                ["bash", "-c", f"exec {command.line}"],
                cwd=self.place(place),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + _WAIT_S
        seen = Path(output.name)
        wanted = [pattern(line) for line in command.shown.splitlines()]
        while not all(line.search(seen.read_text(errors="replace")) for line in wanted):
            if self._daemons[place].poll() is not None or time.monotonic() > end:
                raise NotAsShownError(
                    f"$ {command.line}\nshould say:\n{command.shown}\n\n{seen.read_text()}"
                )
            time.sleep(_LOOK_S)

    def end(self, place: str) -> None:
        """Ctrl-C for a place's daemon; it must end by itself."""
        process = self._daemons.pop(place)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            _reap(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._daemons.values():
            _reap(process)


def _of(piece: Piece) -> tuple[str, str, str]:
    return piece.kind, piece.extra, piece.text


def _reap(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
