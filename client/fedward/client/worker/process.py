"""The daemon's end of a worker: start it, ask it, watch it, end it. Imports nothing that computes.

    worker = await Worker.start(limits, log=folder / "worker.log")
    await worker.ask("load", Load(...), limit_s=600.0)
    await worker.stop()

No wait is unbounded: a worker that takes too long or too much memory is killed, and so is one whose
asker stops waiting. Afterwards it is of no use; the next task starts another.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedward.client.worker.protocol import (
    BROKEN,
    LONGEST_LINE,
    REFUSED,
    Refused,
    decode,
    encode,
)
from fedward.common.errors import TrainingError
from fedward.common.files import output_error
from fedward.common.identity.key_files import PASSPHRASE_VARIABLE

_LOOK_S = 0.2
"""Between two looks at a worker's memory."""
_LARGEST_LOG = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")


class WorkerDied(TrainingError):  # noqa: N818  (an event: whoever asked may try again)
    """The training process ended by itself, or by somebody else's hand."""


@dataclass(frozen=True)
class Limits:
    """What `client.toml` allows a worker.

    Attributes:
        memory_bytes: resident memory at most.
        threads: that may compute at once.
        nice: added to its niceness, 0 … 19.
    """

    memory_bytes: int = 8 << 30
    threads: int = 1
    nice: int = 10


class Worker:
    """One worker process, and the conversation with it; made by `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        answers: asyncio.StreamReader,
        transport: asyncio.ReadTransport,
        limits: Limits,
    ) -> None:
        self._process = process
        self._answers = answers
        self._transport = transport
        self._limits = limits
        self._too_large = False
        self._watch = asyncio.create_task(self._watch_memory())

    @classmethod
    async def start(cls, limits: Limits, *, log: Path) -> Self:
        """Start a worker, which loads nothing yet.

        Args:
            limits: for it.
            log: file that it may write to; cut off when it has become long.

        Raises:
            OutputError: the log cannot be written.
            TrainingError: the system starts no more processes.
        """
        ours, its = os.pipe()
        try:
            process = await _spawn(limits, log, its)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(its)
        reader = asyncio.StreamReader(limit=LONGEST_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
        )
        return cls(process, reader, transport, limits)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None

    async def ask(self, name: str, request: Any, *, limit_s: float) -> dict[str, Any]:
        """One request and its answer.

        Args:
            name: of the request, see `protocol`.
            request: its content.
            limit_s: how long the answer may take.

        Raises:
            FedwardError: the worker's refusal, in its own words.
            TrainingError: it took too long or too much memory, or failed; it is gone then.
            WorkerDied: it ended before it answered.
        """
        try:
            async with asyncio.timeout(limit_s):
                line = await self._exchange(encode(name, request))
        except TimeoutError as error:
            await self.stop()
            raise TrainingError(
                "the training process took longer than client.toml allows",
                hint="raise [worker] task_time_s there, or take fewer local steps",
            ) from error
        except BaseException:  # who asked waits no longer: nobody may train for nobody
            await self.stop()
            raise
        return await self._read(line)

    async def _exchange(self, line: bytes) -> bytes:
        if self._process.stdin is not None:
            with suppress(ConnectionError):  # it is gone; then there is no answer either
                self._process.stdin.write(line)
                await self._process.stdin.drain()
        try:
            return await self._answers.readline()
        except ValueError:  # longer than any answer
            return b"{}\n"

    async def _read(self, line: bytes) -> dict[str, Any]:
        if not line.endswith(b"\n"):
            await self.stop()
            raise self._end()
        try:
            name, content = decode(line)
            if name == REFUSED:
                raise Refused(**content).error()
            if name == BROKEN or not isinstance(content, dict):
                raise ValueError(str(content))
        except (ValueError, TypeError) as error:
            await self.stop()
            raise TrainingError(
                "the training process failed", hint="see worker.log of this site and report it"
            ) from error
        return content

    def _end(self) -> TrainingError:
        if self._too_large:
            return TrainingError(
                "the training process used more memory than client.toml allows",
                hint="raise [worker] memory_mb there, or take a smaller model or batch",
            )
        return WorkerDied("the training process ended", hint="see worker.log of this site")

    async def _watch_memory(self) -> None:
        while self.alive:
            if resident_bytes(self.pid) > self._limits.memory_bytes:
                self._too_large = True
                self._kill()
                return
            await asyncio.sleep(_LOOK_S)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """End it, whatever it does; may be called twice."""
        self._kill()
        self._watch.cancel()
        with suppress(asyncio.CancelledError):
            await self._watch
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._transport.close()
        await self._process.wait()


async def _spawn(limits: Limits, log: Path, answers: int) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(limits.threads),
        "MKL_NUM_THREADS": str(limits.threads),
        "POLARS_MAX_THREADS": str(limits.threads),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    environment.pop("NOTIFY_SOCKET", None)  # the daemon speaks for itself
    environment.pop(PASSPHRASE_VARIABLE, None)  # and signs for itself
    command = [sys.executable, "-P", "-m", "fedward.client.worker"]
    given = {"--parent": os.getpid(), "--answers": answers, "--nice": limits.nice}
    for option, value in given.items():
        command += [option, str(value)]
    output = _open_log(log)
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=output,
            pass_fds=(answers,),
            env=environment,
        )
    except OSError as error:
        raise TrainingError(
            "the training process cannot be started", hint="see how much memory is free"
        ) from error
    finally:
        os.close(output)


def _open_log(log: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        file = os.open(log, flags, 0o600)
        if os.fstat(file).st_size > _LARGEST_LOG:
            os.ftruncate(file, 0)
    except OSError as error:
        raise output_error(log, error) from error
    return file


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * _PAGE
