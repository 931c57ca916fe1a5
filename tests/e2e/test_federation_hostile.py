"""Enrolled members that lie, over real sockets: the other side refuses, says so, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.e2e.scripted import ScriptedServer, ScriptedSite
from tests.e2e.town import LIMIT_S, NAMES, Offered, Town, study_text

from fedward.client.link.assignments import Assignment
from fedward.common import records
from fedward.common.preprocess import fit
from fedward.common.study import Study, canonical_json, study_hash
from fedward.common.study.load import parse_study
from fedward.common.wire.body import Content
from fedward.server.first_weights import first_weights

pytestmark = pytest.mark.slow
FIRST, SECOND, THIRD = NAMES


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Town.founded(tmp_path_factory.mktemp("town"), start=False) as town:
        yield town


@pytest.fixture(autouse=True)
def nobody_left(town: Town) -> Iterator[None]:
    """Every test starts whom it needs."""
    yield
    for service in (*town.daemons.values(), town.server):
        service.stop()


# A hospital that lies.


def lies(task: Assignment, asked: Content) -> Content:
    """What the hostile hospital answers, by round."""
    if task.action == records.INTRODUCE:
        return Content({records.SITE: THIRD})
    if task.action == records.EVALUATE:
        counts = {"scores": np.full((2, 10), np.nan)}
        return Content({}, {records.WEIGHT: 1.0, records.RELEASED: 1.0}, counts)
    weight = {records.WEIGHT: 1e6}  # nobody believes it
    name, first = next(iter(asked.arrays.items()))

    def put(array: Any, **others: Any) -> Content:
        return Content({}, weight, {**asked.arrays, name: array, **others})

    refusal = {records.ERROR_CODE: 5, records.ERROR_REASON: "one\ntwo \x1b[31m" + "x" * 5000}
    told: dict[int, Callable[[], Content]] = {
        1: lambda: put(np.full_like(first, np.nan)),
        2: lambda: put(np.zeros((*first.shape, 2), np.float32)),
        3: lambda: put(first + np.float32(1e4)),
        4: lambda: put(first, more=np.zeros(3, np.float32)),
        5: lambda: put(np.zeros(first.shape, np.float64)),
        6: lambda: Content({}, weight),
        7: lambda: Content(refusal),
        8: lambda: Content({**refusal, records.ERROR_CODE: "no number"}),
    }
    return told.get(task.round, lambda: put(first))()


LIES = 8


def test_a_hospital_that_lies_is_refused_by_name_round_by_round(town: Town) -> None:
    town.server.start()
    for name in (FIRST, SECOND):
        town.daemons[name].start()
    study = town.offer("lies", rounds=LIES + 2)
    town.approve_at(study, FIRST, SECOND)
    with ScriptedSite(town, THIRD, lies) as site:
        site.approve(study)
        run = town.ended(study)
    rounds = run["history"]
    for found in rounds[:LIES]:
        assert found["participants"] == [FIRST, SECOND], found
        assert set(found["refused"]) == {THIRD}, found
    reasons = [found["refused"][THIRD] for found in rounds[:LIES]]
    assert "NaN" in reasons[0] or "finite" in reasons[0]
    assert "max_update_norm" in reasons[2]
    assert len(set(reasons)) >= 5, reasons
    assert all(len(reason) <= 500 and reason.isprintable() for reason in reasons)
    # When it answers as it should it is in again, with the weight that the study gives it.
    assert [found["participants"] for found in rounds[LIES:]] == [list(NAMES)] * 2
    assert rounds[-1]["refused"][THIRD].startswith("evaluation: ")
    assert THIRD not in rounds[-1]["evaluation"]
    weights = "\n".join(str(found["evaluation"]) for found in rounds)
    assert "nan" not in weights


def test_a_hospital_that_takes_anothers_name_is_left_out(town: Town) -> None:
    town.server.start()
    for name in (FIRST, SECOND):
        town.daemons[name].start()
    study = town.offer("names", rounds=2)

    def impostor(task: Assignment, asked: Content) -> Content:
        if task.action == records.INTRODUCE:
            return Content({records.SITE: FIRST})
        return Content({}, {records.WEIGHT: 1.0}, dict(asked.arrays))

    town.approve_at(study, FIRST, SECOND)
    with ScriptedSite(town, THIRD, impostor) as site:
        site.approve(study)
        run = town.ended(study)
    assert [found["participants"] for found in run["history"]] == [[FIRST, SECOND]] * 2
    assert run["history"][0]["refused"] == {THIRD: "gave a name that is not its own"}


# A server that lies.


def test_a_server_that_lies_about_a_study_is_refused(town: Town) -> None:
    study = parse_study(study_text("honest"))
    other = parse_study(study_text("other"))
    name = study_hash(study)
    with ScriptedServer(town) as server:
        server.offer(study)
        server.offer(other)
        more = study.model_copy(
            update={"training": study.training.model_copy(update={"rounds": 999})}
        )
        server.offer(more, document=canonical_json(study))  # a hash that is not the document's
        town.daemons[FIRST].start()
        offered = Offered(study, name, town.folder / "none")
        town.approve_at(offered, FIRST)
        refusals = ask_lies(server, study, other)

    assert not (town.site(FIRST) / "state/studies" / f"{study_hash(more)}.json").exists()
    assert "an offer was left out" in town.output(FIRST)
    # What the server was told is what stands in the hospital's own log.
    log = town.audit(town.site(FIRST) / "state/audit.log")
    hashes = (name, study_hash(other))
    refused = [
        e["facts"]["reason"] for e in log if e["kind"] == "refuse" and e["facts"]["study"] in hashes
    ]
    assert refused == list(refusals)


def ask_lies(server: ScriptedServer, study: Study, other: Study) -> list[str]:
    """Ask an honest question, then all that is none; what the hospital said to those."""
    name = study_hash(study)
    transform = fit(study, None)
    weights = first_weights(study, transform)
    key = next(iter(weights))
    refusals: list[str] = []

    def config(number: int, **changes: Any) -> dict[str, Any]:
        return {
            records.STUDY_HASH: changes.pop("study", name),
            records.ROUND: number,
            records.TRANSFORM: transform.to_json(),
            **changes,
        }

    def refused(words: str, **asked: Any) -> None:
        number = asked.pop("round_number", 1)
        given = {"study": name, "config": config(number), "arrays": weights, **asked}
        reply = server.ask(FIRST, round_number=number, **given)
        reason = str(reply.config.get(records.ERROR_REASON, f"no refusal, {words}"))
        assert words in reason
        assert records.ERROR_REASON in reply.config, asked
        assert not reply.arrays
        refusals.append(reason)

    def asked(number: int, **arrays: Any) -> Content:
        return server.ask(
            FIRST, study=name, config=config(number), arrays=arrays or weights, round_number=number
        )

    introduced = server.ask(
        FIRST,
        study=name,
        config={records.STUDY_HASH: name},
        action=records.INTRODUCE,
        round_number=0,
    )
    assert introduced.config == {records.SITE: FIRST}
    refused(
        "has not approved",
        run="r3",
        study=study_hash(other),
        config=config(1, study=study_hash(other)),
    )
    refused("another study than its header", run="r2", config=config(1, study=study_hash(other)))
    refused("another round than its header", run="r4", config=config(2))
    refused("a round that the study does not have", round_number=4)
    refused("a round that the study does not have", round_number=0)
    refused("something that sites do not do", action="train.everything")
    refused("shape", arrays={**weights, key: np.zeros((9, 9), np.float32)})
    refused("is missing", round_number=2, arrays={key: weights[key]})
    broken = {**weights, key: np.full_like(weights[key], np.nan)}
    refused("", round_number=3, arrays=broken)
    refused("", round_number=3, config=config(3, transform="{}"))

    trained = asked(1)
    assert list(trained.arrays) == list(weights), trained.config
    assert trained.metrics == {records.WEIGHT: 1.0}
    assert asked(1).arrays[key].tobytes() == trained.arrays[key].tobytes()
    moved = transform.to_json().replace('"mean":55.0', '"mean":50.0')
    assert moved != transform.to_json()
    refused("another preprocessing than before", round_number=2, config=config(2, transform=moved))
    asked(2)
    refused("a round that is over at this site", config=config(1, learning_rate=2.0))
    return refusals


def test_a_private_round_is_never_done_twice(town: Town) -> None:
    study = parse_study(study_text("private", epsilon=3.0))
    name = study_hash(study)
    transform = fit(study, None)
    weights = first_weights(study, transform)
    with ScriptedServer(town) as server:
        server.offer(study)
        town.daemons[FIRST].start()
        town.approve_at(Offered(study, name, town.folder / "none"), FIRST)

        def ask(run: str, scale: float) -> Content:
            config = {
                records.STUDY_HASH: name,
                records.ROUND: 1,
                records.TRANSFORM: transform.to_json(),
            }
            arrays = {key: np.asarray(w * scale, np.float32) for key, w in weights.items()}
            return server.ask(FIRST, study=name, config=config, arrays=arrays, run=run)

        first = ask("p1", 1.0)
        assert first.arrays
        again = ask("p1", 1.0)  # the same question: the same answer, at no cost
        assert [a.tobytes() for a in again.arrays.values()] == [
            a.tobytes() for a in first.arrays.values()
        ]
        other = ask("p1", 0.5)
        assert not other.arrays
        assert "has paid for this before" in str(other.config[records.ERROR_REASON])
        # As many runs as it likes to begin do not get past the site's own limit.
        told = [ask(f"p{number}", 1.0).config.get(records.ERROR_REASON) for number in range(2, 6)]
        assert told[-1] == "the privacy promise cannot be kept at this site; the site knows why"
        town.until(
            lambda: any("is left" in r or "allows" in r for r in town.refusals(FIRST, _of(study))),
            LIMIT_S,
        )


def test_runs_that_are_named_in_turn_are_no_more_runs(town: Town) -> None:
    """Without a promise only the runs are counted: the first is over when another is named."""
    study = parse_study(study_text("turns"))
    name, transform = study_hash(study), fit(study, None)
    weights = first_weights(study, transform)
    runs = {run: f"turns-{name[:8]}-{run}" for run in (1, 2)}
    with ScriptedServer(town) as server:
        server.offer(study)
        town.daemons[FIRST].start()
        town.approve_at(Offered(study, name, town.folder / "none"), FIRST)

        def ask(run: int, number: int, scale: float = 1.0) -> Content:
            config = {
                records.STUDY_HASH: name,
                records.ROUND: number,
                records.TRANSFORM: transform.to_json(),
            }
            arrays = {key: np.asarray(w * scale, np.float32) for key, w in weights.items()}
            return server.ask(
                FIRST, study=name, config=config, arrays=arrays, run=runs[run], round_number=number
            )

        def say(run: int, state: str = "running") -> None:
            server.desk.offers[0] |= {"run": runs[run], "state": state}
            server.desk.version += 1

        def is_open() -> bool:
            return town.ledger_runs(FIRST)[runs[1]]

        def refused() -> str:
            told = ask(1, 1, 0.5).config
            assert told[records.ERROR_CODE] == 15
            return str(told[records.ERROR_REASON])

        assert ask(1, 1).arrays
        say(1, "failed")
        town.until(lambda: not is_open(), LIMIT_S)
        say(1)
        assert ask(1, 2).arrays  # resumed
        assert is_open()
        say(2)
        town.until(lambda: not is_open(), LIMIT_S)
        say(1)
        for restarted in (False, True):
            if restarted:
                town.daemons[FIRST].stop()
                town.daemons[FIRST].start()
            # At the moment at which the site hears of the runs, it ends its work without a word.
            town.until(lambda: "this run is over at this site, for good" in refused(), LIMIT_S)
            told = ask(2, 1).config
            assert told[records.ERROR_CODE] == 14
            assert "no more runs of this study" in str(told[records.ERROR_REASON])
    assert runs[2] not in town.ledger_runs(FIRST)


def _of(study: Study) -> Offered:
    return Offered(study, study_hash(study), None)  # type: ignore[arg-type]
