"""Kills what a rehearsal runs, at random moments, and starts it again.

    SIGKILL to the service, to a daemon, or to a daemon's training process; then the same once more

The moments are spread over the rounds of the run: each is a round, drawn beforehand, and a fraction
of a second after its predecessor was checkpointed. So the draw decides what is killed when, and not
how fast this machine is: what is late, because what was killed before took long to start, happens
at once, and a training process that is not there yet is waited for. If a round goes by without it,
its daemon is killed instead. What is killed is started again at once, as systemd would.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Literal

from fedward.client.worker.pool import PoolLimits
from fedward.common.errors import RoundError
from fedward.simulations.rehearsal.federation import Federation
from fedward.simulations.rehearsal.services import Service

logger = logging.getLogger(__name__)

Kind = Literal["server", "daemon", "training"]
_KINDS: tuple[Kind, ...] = ("server", "daemon", "training")
_SHARE = 0.9
"""Of the rounds, in which something is killed: the last ones are left to end in."""
_LONGEST_AFTER_S = 0.3
"""A moment is at most so long after a round's checkpoint."""
_LOOK_S = 0.01
_DEATHS = PoolLimits().retries
"""As often a training process may be killed in a round: a hospital gives a task up after more."""
_ATTEMPTS = 3
"""How often a service is started that does not get ready."""


@dataclass(frozen=True)
class Moment:
    """What is to be killed, and when.

    Attributes:
        after: number of the last completed round; 0 is while the run is prepared.
        wait_s: how long after its checkpoint.
        kind: what is killed.
        name: of the hospital; `server` for the service.
    """

    after: int
    wait_s: float
    kind: Kind
    name: str


@dataclass(frozen=True)
class Event:
    """What was done.

    Attributes:
        at_s: seconds since the chaos began.
        kind: what was killed.
        name: of the hospital; `server` for the service.
        after: last round that was checkpointed then.
        down_s: until it was ready again; 0 for a training process, which its daemon starts.
    """

    at_s: float
    kind: Kind
    name: str
    after: int
    down_s: float = 0.0

    def __str__(self) -> str:
        what = {"server": "service", "daemon": "daemon of", "training": "training process of"}
        name = "" if self.kind == "server" else f" {self.name}"
        return f"{self.at_s:.1f} s, after round {self.after}: killed the {what[self.kind]}{name}"


def draw_moments(
    randomness: random.Random, rounds: int, names: list[str], kills: int
) -> list[Moment]:
    """Moments in order; of every kind as many, but for a remainder.

    Args:
        randomness: decides.
        rounds: of the study.
        names: of the hospitals.
        kills: how many.
    """
    kinds = [_KINDS[index % len(_KINDS)] for index in range(kills)]
    randomness.shuffle(kinds)
    last = max(0, int(_SHARE * rounds) - 1)
    after = sorted(randomness.randint(0, last) for _ in range(kills))
    return [
        Moment(
            number,
            randomness.uniform(0.0, _LONGEST_AFTER_S),
            kind,
            "server" if kind == "server" else randomness.choice(names),
        )
        for number, kind in zip(after, kinds, strict=True)
    ]


class Chaos:
    """Kills parts of a federation while it runs; in a thread of its own.

    Everything runs again when `stop` returns. What did not happen until then does not happen; that
    is so only if the run ended early, or is too short for so many kills.

    Args:
        federation: started, and about to run a study.
        seed: decides what happens when.
        kills: how many.
    """

    def __init__(self, federation: Federation, *, seed: int, kills: int = 30) -> None:
        randomness, rounds = random.Random(seed), federation.study.training.rounds  # noqa: S311
        self.moments = draw_moments(randomness, rounds, sorted(federation.daemons), kills)
        """What is to happen."""
        self.events: list[Event] = []
        """What happened; to be read at any time."""
        self.failure: RoundError | None = None
        """Why something that was killed did not start again; None if all did."""
        self._federation = federation
        self._begin = time.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="chaos", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._begin = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End, as soon as what was killed last runs again."""
        self._ending.set()
        self._thread.join()

    def problems(self) -> list[str]:
        """Why not everything happened that was to; to be asked after `stop`."""
        if self.failure is not None:
            return [str(self.failure)]
        if len(self.events) < len(self.moments):
            happened = f"only {len(self.events)} of {len(self.moments)} kills happened"
            return [f"{happened}: the run had ended; give the study more rounds"]
        return []

    def _work(self) -> None:
        try:
            for moment in self.moments:
                if not self._came(moment) or not self._kill(moment):
                    return
        except RoundError as error:
            self.failure = error
            logger.error("a killed service did not start", extra={"facts": {"error": str(error)}})

    def _came(self, moment: Moment) -> bool:
        """Wait for a moment; False if the end came first. One that is late waits for nothing."""
        while self._round() < moment.after:
            if self._ending.wait(_LOOK_S):
                return False
        due = time.monotonic() + moment.wait_s
        while time.monotonic() < due and self._round() <= moment.after:
            if self._ending.wait(_LOOK_S):
                return False
        return not self._ending.is_set()

    def _round(self) -> int:
        files = self._federation.consortium.glob("runs/*/checkpoints/round-*.safetensors")
        return max((int(path.stem.removeprefix("round-")) for path in files), default=0)

    def _kill(self, moment: Moment) -> bool:
        """Kill, and start again; False if the end came first."""
        service, kind, down_s = self._service(moment.name), moment.kind, 0.0
        if kind == "training" and not self._kill_child(moment.name, service):
            if self._ending.is_set():
                return False
            kind = "daemon"
        after, at_s = self._round(), time.monotonic() - self._begin
        if kind != "training":
            service.kill()
            killed = time.monotonic()
            _start(service)
            down_s = time.monotonic() - killed
        event = Event(round(at_s, 3), kind, moment.name, after, round(down_s, 3))
        self.events.append(event)
        return True

    def _deaths(self, name: str) -> int:
        """How often a daemon has lost its training process since its last round, or its start."""
        now, deaths = self._round(), 0
        for event in reversed(self.events):
            if event.after < now or (event.kind, event.name) == ("daemon", name):
                break
            deaths += (event.kind, event.name) == ("training", name)
        return deaths

    def _kill_child(self, name: str, service: Service) -> bool:
        """Kill a training process; False if it died often enough, there is none, or the end came.

        There is none if a whole round is done without it: this hospital takes no part.
        """
        begun = self._round()
        if self._deaths(name) >= _DEATHS:
            return False
        while not service.kill_child():
            if self._round() > begun + 1 or self._ending.wait(_LOOK_S):
                return False
        return True

    def _service(self, name: str) -> Service:
        if name == "server":
            return self._federation.server
        return self._federation.daemons[name]


def _start(service: Service) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            service.start()
            return
        except RoundError:
            if attempt == _ATTEMPTS:
                raise
