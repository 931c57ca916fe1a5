"""A server that goes back to an older checkpoint asks again: what is there is answered, no more.

The ledger and the training process are the real ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.client.test_daemon import POLICY as PLAIN
from tests.client.test_daemon import Ward, code_and_reason, read
from tests.client.test_worker import DP
from tests.client.test_worker import POLICY as LIMITS

from fedward.client.daemon.daemon import Daemon
from fedward.client.ledger import Ledger
from fedward.client.link.assignments import Assignment
from fedward.client.outbox import MOST_QUESTIONS
from fedward.client.worker.pool import Pool, PoolLimits
from fedward.client.worker.process import Limits
from fedward.client.worker.protocol import Do, Done, Load
from fedward.common import records
from fedward.common.preprocess import fit
from fedward.common.wire.body import Content, write_body
from fedward.common.wire.link_pb2 import Header
from fedward.common.wire.message import seal
from fedward.server.preparation import first_weights
from fedward.simulations.fakes import small_study

POLICY = LIMITS + PLAIN.splitlines()[-1] + "\n"
KEYS = [f"{number:064x}" for number in range(20)]


class Counted:
    """A real pool of training processes, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.pool = Pool(PoolLimits(Limits(nice=0)), log=folder / "worker.log")
        self.rounds: list[int] = []

    async def do(self, load: Load, task: Do) -> Done:
        self.rounds.append(task.round)
        return await self.pool.do(load, task)


class Asked(Ward):
    """A hospital that is asked to train, by a server that numbers its models."""

    def task(self, number: int, model: int | None = None) -> Assignment:
        """Round `number`, from the weights of another model than usual if one is named."""
        model = number if model is None else model
        transform = fit(self.study)
        config = {
            records.STUDY_HASH: self.name,
            records.ROUND: number,
            records.TRANSFORM: transform.to_json(),
        }
        arrays = {
            name: value + model for name, value in first_weights(self.study, transform).items()
        }
        body = write_body(self.home.state / f"model-{model}", Content(config, {}, arrays)).path
        return replace(self.asked(number, KEYS[model]), body=body)

    def received(self, daemon: Daemon, model: int) -> None:
        daemon.receipt(KEYS[model], seal(Header(kind="receipt"), self.server).SerializeToString())

    def reserved(self) -> list[tuple[int, bool]]:
        with Ledger(self.home.ledger) as ledger:
            found = ledger.reservations(self.name, "run-1")
        return [(one.entry.round, bool(one.reply)) for one in found]

    def cut_off(self, number: int) -> None:
        """The state that a kill leaves in the middle of a round: paid for and not answered."""
        with Ledger(self.home.ledger) as ledger:
            known = ledger.reservations(self.name, "run-1")[0].entry
            ledger.reserve(
                self.name,
                "run-1",
                round_number=number,
                group="training",
                event=known.event,
                cohort=known.cohort,
                plan=known.plan,
                code=known.code,
            )


async def answered(daemon: Daemon, ward: Asked, *numbers: int) -> list[bytes]:
    """Rounds are done, and the server has the answers."""
    found = []
    for number in numbers:
        path = await daemon.do(ward.task(number))
        assert read(path).arrays
        found.append(path.read_bytes())
        ward.received(daemon, number)
    return found


def test_a_private_round_is_answered_again_or_refused_as_spent(tmp_path: Path) -> None:
    study = small_study(privacy=DP, training={"rounds": 7})
    ward = Asked(tmp_path, study, policy=POLICY)

    async def code(daemon: Daemon, number: int, model: int | None = None) -> int:
        return int(code_and_reason(await daemon.do(ward.task(number, model)))[0])

    async def story(daemon: Daemon, pool: Counted) -> None:
        try:
            first, second = await answered(daemon, ward, 1, 2)
            # Back by one round, and on: both from the outbox.
            assert (await daemon.do(ward.task(1))).read_bytes() == first
            assert (await daemon.do(ward.task(2))).read_bytes() == second
            assert await code(daemon, 1, model=0) == 16  # from other weights
            await answered(daemon, ward, 3)
            assert await code(daemon, 1) == 16  # its reply is not there any more
            assert pool.rounds == [1, 2, 3]
            for model in range(10, 12 + MOST_QUESTIONS):  # the last one, from other weights
                assert await code(daemon, 3, model) == 16
            ward.cut_off(4)
            await answered(daemon, ward, 6)
            begun = list(pool.rounds)
            assert await code(daemon, 4) == 16  # cut off, and not asked again before it was over
            assert await code(daemon, 5) == 8  # never paid for: it may not say so
            assert pool.rounds == begun
        finally:
            await pool.pool.stop()

    ward.run(story, lambda: Counted(tmp_path))
    assert ward.reserved() == [(1, True), (2, True), (3, True), (4, False), (6, True)]


def test_without_privacy_a_round_that_is_over_stays_over(tmp_path: Path) -> None:
    ward = Asked(tmp_path, small_study(training={"rounds": 3}), policy=POLICY)

    async def story(daemon: Daemon, pool: Counted) -> None:
        try:
            first, _ = await answered(daemon, ward, 1, 2)
            assert (await daemon.do(ward.task(1))).read_bytes() == first
            assert code_and_reason(await daemon.do(ward.task(1, model=0)))[0] == 8
            assert pool.rounds == [1, 2]
        finally:
            await pool.pool.stop()

    ward.run(story, lambda: Counted(tmp_path))
