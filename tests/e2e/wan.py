"""Two machines far apart: network namespaces with a slow, lossy line between them.

    with Wan(delay_s=0.1, loss=0.01) as wan:
        subprocess.run([*wan.inside(wan.hospital), "ping", wan.server_address])

The line is a process that holds both ends (TUN devices) and carries packet by packet, each way as
`tc qdisc … netem delay 100ms loss 1% limit 10000` would; kernels without netem are common in
sandboxes. TUN devices offload nothing, so what is lost is one packet of the wire's size and never a
bundle of forty. Neither namespace has another way out than this line.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

# Addresses for documentation (RFC 5737): nobody has them.
SERVER, HOSPITAL = "192.0.2.1", "192.0.2.2"
_TUNSETIFF, _TUN, _NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST_PACKET = 65_536
_AT_ONCE = 64
_QUEUE = 10_000
"""Packets on the way, each way; more are lost."""


class Unavailable(Exception):  # noqa: N818  (it says that something is missing, here)
    """This machine does not let us make network namespaces."""


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Unavailable("the command ip is missing: apt-get install iproute2") from error
    if done.returncode != 0:
        raise Unavailable(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Counted:
    """What the line did: packets carried and lost, both ways together."""

    carried: int
    lost: int


class Wan:
    """The two machines.

    Args:
        delay_s: each way.
        loss: share of the packets that are lost, each way.
        seed: decides which.
        congestion: the algorithm with which both sides send, as the kernel calls it.
    """

    def __init__(
        self, *, delay_s: float, loss: float, seed: int = 1, congestion: str = "reno"
    ) -> None:
        self._line_arguments = [str(delay_s), str(loss), str(seed)]
        self._congestion = congestion
        self.server = f"fw-{os.getpid()}-server"
        self.hospital = f"fw-{os.getpid()}-hospital"
        self.counted = Counted(0, 0)
        self._stack = ExitStack()
        self._line: subprocess.Popen[str] | None = None

    @staticmethod
    def inside(namespace: str) -> list[str]:
        """What a command is preceded by, to run on that machine."""
        return ["ip", "netns", "exec", namespace]

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _make(self) -> None:
        if os.geteuid() != 0:
            raise Unavailable("only root makes network namespaces")
        for name in (self.server, self.hospital):
            _ip("netns", "add", name)
            self._stack.callback(self._remove, name)
        ends = [f"fw{os.getpid() % 10**9}{side}" for side in "sh"]
        self._line = subprocess.Popen(
            [sys.executable, __file__, *ends, *self._line_arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(self._hang_up)
        if self._line.stdout is None or self._line.stdout.readline() != "ready\n":
            raise Unavailable("no TUN devices: is there /dev/net/tun?")
        addresses = ((self.server, SERVER), (self.hospital, HOSPITAL))
        for (name, address), end in zip(addresses, ends, strict=True):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/30", "dev", end)
            for device in ("lo", end):
                _ip("-n", name, "link", "set", device, "up")
            setting = "/proc/sys/net/ipv4/tcp_congestion_control"
            _ip("netns", "exec", name, "sh", "-c", f"echo {self._congestion} > {setting}")

    @staticmethod
    def _remove(name: str) -> None:
        # Whatever still runs in there would keep it alive without a name.
        found = subprocess.run(
            ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
        )
        for pid in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _hang_up(self) -> None:
        if self._line is None:
            return
        out, _ = self._line.communicate(timeout=30)  # closes its input, which ends it
        if out:
            self.counted = Counted(*map(int, out.split()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


# --- the line, a process of its own ---------------------------------------------------------------


def _device(name: str) -> int:
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_PI))
    return file


class _Way:
    """One direction."""

    def __init__(self, source: int, target: int, delay_s: float, loss: float, seed: int) -> None:
        self.source = source
        self._target = target
        self._delay_s = delay_s
        self._loss = loss
        self._random = random.Random(seed)
        self._queue: deque[tuple[float, bytes]] = deque()
        self.carried = self.lost = 0

    def take(self) -> None:
        """Take packets that are there."""
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self.source, _LARGEST_PACKET)
            except BlockingIOError:
                return
            if len(self._queue) >= _QUEUE or self._random.random() < self._loss:
                self.lost += 1
            else:
                self._queue.append((time.monotonic() + self._delay_s, packet))

    def give(self) -> float | None:
        """Hand over those whose time has come; seconds until the next one's."""
        while self._queue:
            wait_s = self._queue[0][0] - time.monotonic()
            if wait_s > 0:
                return wait_s
            _, packet = self._queue.popleft()
            with suppress(OSError):  # the device is not up yet, or is gone
                os.write(self._target, packet)
                self.carried += 1
        return None


def carry(first: str, second: str, delay_s: float, loss: float, seed: int) -> None:
    """Carry packets until standard input ends, then say how many."""
    ends = _device(first), _device(second)
    ways = [
        _Way(*ends, delay_s, loss, seed),
        _Way(*reversed(ends), delay_s, loss, seed + 1),
    ]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    wait_s: float | None = None
    while True:
        readable, _, _ = select.select([sys.stdin, *ends], [], [], wait_s)
        if sys.stdin in readable:
            break
        for way in ways:
            if way.source in readable:
                with suppress(OSError):  # not up yet
                    way.take()
        waits = [wait for way in ways if (wait := way.give()) is not None]
        wait_s = min(waits, default=None)
    sys.stdout.write(f"{sum(way.carried for way in ways)} {sum(way.lost for way in ways)}")


if __name__ == "__main__":
    carry(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
