"""The worker with real data: what it answers, what it charges, and what a kill leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client.home import SiteFolder
from fedward.client.ledger import Ledger
from fedward.client.loading import load_cohort
from fedward.client.outbox import Outbox
from fedward.client.site import Site
from fedward.client.site_config import load_site_config
from fedward.client.worker.opening import open_site, randomness_for
from fedward.client.worker.pool import Pool, PoolLimits
from fedward.client.worker.process import Limits
from fedward.client.worker.protocol import Do, Done, Load
from fedward.client.workspace import Workspace
from fedward.common import records
from fedward.common.errors import (
    DataError,
    FedwardError,
    PolicyError,
    PrivacyError,
    RoundError,
    StateError,
    StudyError,
    TrainingError,
)
from fedward.common.preprocess import fit
from fedward.common.study import Study, study_hash
from fedward.common.wire.body import Body, Content, write_body
from fedward.server.preparation import first_weights
from fedward.simulations.arms import seeded
from fedward.simulations.fake_hospital import approve_data, make_hospital
from fedward.simulations.fakes import small_study

SITE = "hospital-1"
KEY = "ab" * 32
DP = {"mode": "dp", "epsilon": 3.0, "delta": 1e-3}
POLICY = """require_dp = false
min_cell_at_least = 1
min_sites_at_least = 1
max_epsilon_per_study = 50.0
max_epsilon_total = 50.0
max_runs_per_study = 2
"""


class Bench:
    """A hospital with one study, and a pool that works there."""

    def __init__(self, folder: Path, study: Study, **limits: Any) -> None:
        self.study = study
        self.home: SiteFolder = make_hospital(folder, study, policy=POLICY)
        self.load = Load(str(folder), study_hash(study), "run-1")
        self.outbox = Outbox(self.home.outbox)
        self.limits = replace(PoolLimits(), **limits)
        self.pool: Pool

    def task(self, action: str = records.TRAIN, number: int = 1, key: str = KEY) -> Do:
        early = action in (records.INTRODUCE, records.STATISTICS)
        number = 0 if early else number
        config: dict[str, Any] = {records.STUDY_HASH: study_hash(self.study)}
        arrays = {}
        if not early:
            transform = fit(self.study)
            config |= {records.ROUND: number, records.TRANSFORM: transform.to_json()}
            arrays = first_weights(self.study, transform)
        body = write_body(self.home.state / f"{action}.{number}", Content(config, {}, arrays)).path
        work = self.outbox.work("run-1", number, key)
        self.outbox.begin(work)
        return Do(key, str(body), action, number, str(work))

    async def do(self, task: Do | None = None) -> Done:
        return await self.pool.do(self.load, task or self.task())

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        async def go() -> None:
            self.pool = Pool(self.limits, log=self.home.state / "worker.log")
            try:
                await story()
            finally:
                await self.pool.stop()

        asyncio.run(go())

    def reservations(self) -> list[tuple[int, str, bool]]:
        with Ledger(self.home.ledger) as ledger:
            found = ledger.reservations(self.load.study, "run-1")
        return [(r.entry.round, r.entry.group, bool(r.reply)) for r in found]


def reply(task: Do) -> Content:
    with Body.open(Path(task.out)) as body:
        return body.content()


def worker_pid(bench: Bench) -> int:
    return bench.pool._idle["run-1"].pid


def test_it_gives_the_very_model_of_the_simulation(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(model={"name": "mlp", "hidden": [4]}))

    async def story() -> None:
        task = bench.task()
        done = await bench.do(task)
        assert Path(task.out).stat().st_size == done.size
        config = load_site_config(bench.home.site_file)
        key = bench.home.load_patients_key()
        cohort = load_cohort(bench.study, config, key=key)
        site = Site(SITE, bench.study, (cohort,), randomness=seeded(3, SITE), workspace=Workspace())
        transform = fit(bench.study)
        weights = first_weights(bench.study, transform)
        expected = site.train(weights, transform, round_number=1, proximal_mu=0.0)
        found = reply(task)
        assert dict(found.metrics) == {records.WEIGHT: 1.0}
        assert list(found.arrays) == list(expected)
        for name, value in expected.items():
            assert (found.arrays[name] == value).all()

    bench.run(story)


def test_it_stays_warm_and_answers_every_action(tmp_path: Path) -> None:
    study = small_study(preprocess={"standardise": "federated"})
    bench = Bench(tmp_path, study)

    async def story() -> None:
        task = bench.task(records.INTRODUCE)
        await bench.do(task)
        assert dict(reply(task).config) == {records.SITE: SITE}
        first = worker_pid(bench)
        task = bench.task(records.STATISTICS, key="cd" * 32)
        await bench.do(task)
        assert "patients" in reply(task).arrays
        assert worker_pid(bench) == first

    bench.run(story)


def test_private_rounds_are_charged_once_and_never_alike(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(privacy=DP))

    async def story() -> None:
        train, judge = bench.task(), bench.task(records.EVALUATE, key="cd" * 32)
        first = await bench.do(train)
        await bench.do(judge)
        assert bench.reservations() == [(1, "training", True), (1, "testing", True)]
        # The same task again, its answer still there: the same bytes, not paid for again.
        assert await bench.do(train) == first
        assert len(bench.reservations()) == 2
        # The answer lost: it was paid for, and is not made again.
        Path(train.out).unlink()
        with pytest.raises(PrivacyError, match="done before"):
            await bench.do(train)
        with pytest.raises(PrivacyError, match="done before"):
            await bench.do(bench.task(key="ef" * 32))

    bench.run(story)


def test_randomness_is_secure_where_it_protects_somebody() -> None:
    private, plain = small_study(privacy=DP), small_study()
    assert not randomness_for(private, SITE)("training", 1).reproducible
    one, other = (randomness_for(plain, SITE)("training", 2).uniform(4) for _ in range(2))
    assert np.array_equal(one, other)
    assert np.array_equal(one, seeded(plain.training.seed, SITE)("training", 2).uniform(4))


def test_killed_between_tasks_it_is_started_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())

    async def story() -> None:
        first = await bench.do()
        os.kill(worker_pid(bench), signal.SIGKILL)
        second = await bench.do(bench.task(key="cd" * 32))
        assert first.sha256 == second.sha256

    bench.run(story)


LONG = {"local_epochs": 100_000, "rounds": 2}


async def in_mid_task(bench: Bench, task: Do) -> tuple[asyncio.Task[Done], int]:
    """A worker in the middle of a task, surely: its ledger has been charged."""
    doing = asyncio.create_task(bench.do(task))
    while not bench.home.ledger.exists() or (1, "training", False) not in bench.reservations():
        assert not doing.done(), await doing
        await asyncio.sleep(0.02)
    return doing, bench.pool._busy["run-1"].pid


def test_killed_in_a_private_round_it_refuses_that_round_and_does_the_next(tmp_path: Path) -> None:
    study = small_study(privacy={**DP, "epsilon": 40.0}, training={"local_epochs": 400})
    bench = Bench(tmp_path, study)

    async def story() -> None:
        task = bench.task()
        doing, pid = await in_mid_task(bench, task)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(PrivacyError, match="its cost is spent"):
            await doing
        assert not Path(task.out).exists()
        assert bench.reservations() == [(1, "training", False)]
        await bench.do(bench.task(number=2, key="cd" * 32))
        assert bench.reservations() == [(1, "training", False), (2, "training", True)]

    bench.run(story)


def test_killed_between_answer_and_commit_it_commits_the_answer_that_is_there(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, small_study(privacy=DP))

    async def story() -> None:
        task = bench.task()
        await bench.do(task)
        answer = Path(task.out).read_bytes()
        # The state that a kill leaves there: reserved, answered, not committed.
        other = bench.task(number=2, key="cd" * 32)
        with Ledger(bench.home.ledger) as ledger:
            known = ledger.reservations(bench.load.study, "run-1")[0].entry
            ledger.reserve(
                bench.load.study,
                "run-1",
                round_number=2,
                group="training",
                event=known.event,
                cohort=known.cohort,
                plan=known.plan,
                code=known.code,
            )
        Path(other.out).write_bytes(answer)
        done = await bench.do(other)
        assert Path(other.out).read_bytes() == answer
        assert bench.reservations() == [(1, "training", True), (2, "training", True)]
        assert done.size == len(answer)

    bench.run(story)


def test_who_stops_waiting_ends_the_training(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(training=LONG))

    async def story() -> None:
        doing = asyncio.create_task(bench.do())
        while not bench.home.ledger.exists() or "run-1" not in bench.pool._busy:
            assert not doing.done(), await doing
            await asyncio.sleep(0.02)
        worker = bench.pool._busy["run-1"]
        doing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doing
        assert not worker.alive
        assert bench.pool.running == ()

    bench.run(story)


def test_a_task_that_takes_too_long_is_refused_in_words(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(training=LONG), task_s=0.2)

    async def story() -> None:
        with pytest.raises(TrainingError, match="took longer"):
            await bench.do()
        assert bench.pool.running == ()

    bench.run(story)


def test_too_much_memory_is_not_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(), worker=Limits(memory_bytes=80 << 20))

    async def story() -> None:
        with pytest.raises(TrainingError, match="more memory"):
            await bench.do()

    bench.run(story)


def test_runs_make_room_for_each_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(), runs=1)

    async def story() -> None:
        await bench.do()
        assert bench.pool.running == ("run-1",)
        task = bench.task(key="cd" * 32)
        await bench.pool.do(replace(bench.load, run="run-2"), task)
        assert bench.pool.running == ("run-2",)

    bench.run(story)


def test_a_study_without_a_promise_is_run_as_often_as_the_policy_allows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(), runs=3)
    introduce = [bench.task(records.INTRODUCE, key=f"{number:064x}") for number in range(4)]

    async def take_part(run: int) -> None:
        await bench.pool.do(replace(bench.load, run=f"run-{run}"), introduce[run])

    async def story() -> None:
        for run in (1, 2):
            await take_part(run)
        with pytest.raises(PolicyError, match=r"no more runs of this study.*max_runs_per_study"):
            await take_part(3)  # before the first round, and before it even says who it is
        await bench.pool.end_idle()
        with Ledger(bench.home.ledger) as ledger:
            ledger.end_run(bench.load.study, "run-1", "failed")
        await take_part(1)  # resumed: the same run
        await bench.pool.end_idle()
        with Ledger(bench.home.ledger) as ledger:
            ledger.end_run(bench.load.study, "run-1", "over", for_good=True)
        with pytest.raises(StateError, match="over at this site, for good"):
            await take_part(1)
        policy = bench.home.policy_file
        policy.write_text(policy.read_text().replace("study = 2", "study = 3"))
        await take_part(3)
        policy.write_text(policy.read_text().replace("study = 3", "study = 1"))
        await bench.pool.do(replace(bench.load, run="run-3"), bench.task())  # it goes on

    bench.run(story)


def refused_with(bench: Bench, kind: type[FedwardError], match: str) -> None:
    async def story() -> None:
        with pytest.raises(kind, match=match):
            await bench.do()

    bench.run(story)


def test_a_study_that_was_not_offered_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())
    bench.load = replace(bench.load, study="0" * 64)
    refused_with(bench, StudyError, "cannot read")


def test_a_study_that_was_changed_on_the_disk_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())
    path = bench.home.studies / f"{bench.load.study}.json"
    path.write_bytes(path.read_bytes().replace(rb"\"rounds\":2", rb"\"rounds\":9"))
    refused_with(bench, StudyError, "not the one that its file names")


def test_data_without_an_approval_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())
    (bench.home.manifests / f"{bench.load.study}.json").unlink()
    refused_with(bench, StateError, "cannot read")


def change_data(bench: Bench) -> None:
    """One patient more, with the record of another."""
    import polars as pl

    path = tmp = bench.home.path / SITE / "patients.parquet"
    frame = pl.read_parquet(path)
    one = frame.head(1).with_columns(pl.lit("somebody new").alias("patient_id"))
    pl.concat([frame, one]).write_parquet(tmp)


def test_other_data_than_those_approved_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())
    change_data(bench)
    refused_with(bench, DataError, "not those that were approved: patients were added")


def test_data_that_change_between_rounds_are_noticed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())

    async def story() -> None:
        await bench.do()
        change_data(bench)
        with pytest.raises(DataError, match="patients were added"):
            await bench.do(bench.task(number=2, key="cd" * 32))
        with pytest.raises(DataError, match="patients were added"):
            await bench.do(bench.task(number=2, key="cd" * 32))

    bench.run(story)


def test_data_that_change_in_memory_are_noticed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())
    opened = open_site(bench.load)
    cohort = opened._cohort
    try:
        opened.check_unchanged()
        for name in ("target", "patient", "test"):
            changed = getattr(cohort, name).copy()
            changed[0] = changed[0] == 0
            opened._cohort = replace(cohort, **{name: changed})
            with pytest.raises(DataError, match="data in memory have changed"):
                opened.check_unchanged()
        opened._cohort = cohort
        opened.check_unchanged()
    finally:
        opened._ledger.close()


def test_data_that_are_written_again_unchanged_are_accepted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())

    async def story() -> None:
        await bench.do()
        path = bench.home.path / SITE / "patients.parquet"
        path.write_bytes(path.read_bytes())
        await bench.do(bench.task(number=2, key="cd" * 32))

    bench.run(story)


def test_prepared_pictures_that_are_written_to_are_noticed(tmp_path: Path) -> None:
    """They are mapped: who writes to the cache changes what a process trains on."""
    table = small_study().model_dump(mode="json", exclude_unset=True)
    table["data"] = {"modality": "image"}
    table["preprocess"] = {"image": {"height": 8, "width": 8}}
    table["model"] = {"name": "cnn"}
    bench = Bench(tmp_path, Study.model_validate(table))
    opened = open_site(bench.load)
    try:
        opened.check_unchanged()
        [cache] = (bench.home.state / "cache").glob("pixels-*.npy")
        with cache.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        with pytest.raises(DataError, match="not those that were approved"):
            opened.check_unchanged()
        cache.unlink()  # would be made again as it was, but what is mapped is still the other
        with pytest.raises(DataError, match="not those that were approved"):
            opened.check_unchanged()
    finally:
        opened._ledger.close()
    opened = open_site(bench.load)
    try:
        cache.unlink()
        for _ in range(2):
            opened.check_unchanged()
    finally:
        opened._ledger.close()


def test_another_approval_asks_for_a_fresh_start(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study())

    async def story() -> None:
        await bench.do()
        change_data(bench)
        approve_data(bench.home, bench.study)
        with pytest.raises(DataError, match="other data now"):
            await bench.do(bench.task(number=2, key="cd" * 32))

    bench.run(story)


def test_a_study_beyond_the_caps_is_refused_before_anything(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(privacy=DP))
    (bench.home.policy_file).write_text("max_epsilon_per_study = 0.5\nmax_epsilon_total = 0.5\n")
    refused_with(bench, PrivacyError, "allows 0.5")
    assert bench.reservations() == []


def test_a_cap_that_is_lowered_in_a_run_ends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(privacy=DP))
    lowered = "max_epsilon_per_study = 0.5\nmax_epsilon_total = 0.5\n"

    async def story() -> None:
        await bench.do()
        before = bench.home.policy_file.read_text()
        bench.home.policy_file.write_text(lowered)
        with pytest.raises(PrivacyError, match=r"allows 0\.5"):
            await bench.do(bench.task(number=2, key="cd" * 32))
        bench.home.policy_file.write_text(before)
        await bench.do(bench.task(number=2, key="cd" * 32))

    bench.run(story)
    assert bench.reservations() == [(1, "training", True), (2, "training", True)]


def test_a_body_that_cannot_be_used_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, small_study(privacy=DP))

    async def story() -> None:
        task = bench.task()
        Path(task.body).write_bytes(b"nonsense")
        with pytest.raises(FedwardError):
            await bench.do(task)
        task = bench.task(number=7)
        with pytest.raises(RoundError):
            await bench.do(task)
        assert bench.reservations() == []

    bench.run(story)
