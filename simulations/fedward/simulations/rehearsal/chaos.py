"""Kills what a rehearsal runs, at random moments, and starts it again.

    SIGKILL to the service, to a daemon, or to a daemon's training process; then the same once more

The moments are spread over the rounds of the run: each is a round, drawn beforehand, and a fraction
of a second after its predecessor was checkpointed. So the draw decides what is killed when, and not
how fast this machine is. What is killed is started again at once, as systemd would.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Literal

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
_FIND_S = 10.0
"""How long a training process is waited for that shall be killed."""
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

    Everything runs again when `stop` returns. What did not happen until then does not happen.

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

    @property
    def done(self) -> bool:
        """Whether everything has happened."""
        return len(self.events) == len(self.moments)

    def _work(self) -> None:
        try:
            for moment in self.moments:
                if not self._reached(moment.after) or self._ending.wait(moment.wait_s):
                    return
                self._kill(moment)
        except RoundError as error:
            self.failure = error
            logger.error("a killed service did not start", extra={"facts": {"error": str(error)}})

    def _reached(self, number: int) -> bool:
        """Wait until a round is checkpointed; False if the end came first."""
        while self._round() < number:
            if self._ending.wait(_LOOK_S):
                return False
        return not self._ending.is_set()

    def _round(self) -> int:
        files = self._federation.consortium.glob("runs/*/checkpoints/round-*.safetensors")
        return max((int(path.stem.removeprefix("round-")) for path in files), default=0)

    def _kill(self, moment: Moment) -> None:
        service = self._service(moment.name)
        after, at_s = self._round(), time.monotonic() - self._begin
        if moment.kind == "training":
            if not self._kill_child(service):
                return
            down_s = 0.0
        else:
            service.kill()
            killed = time.monotonic()
            _start(service)
            down_s = time.monotonic() - killed
        event = Event(round(at_s, 3), moment.kind, moment.name, after, round(down_s, 3))
        self.events.append(event)

    def _kill_child(self, service: Service) -> bool:
        until = time.monotonic() + _FIND_S
        while not service.kill_child():
            if time.monotonic() > until or self._ending.wait(_LOOK_S):
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
