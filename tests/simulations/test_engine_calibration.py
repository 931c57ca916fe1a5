"""`auto` tries out on a few sites which way is faster, keeps it, and takes it if it is clear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedward.client.site import Site
from fedward.server.checkpoints import NoCheckpoints
from fedward.server.flower_app import build_server_app
from fedward.server.rounds import Outcome
from fedward.simulations.engines import calibration, choice
from fedward.simulations.engines.choice import Engine
from fedward.simulations.fakes import Quiet, make_cohorts, make_sites, small_study

SITES = 10


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what is tried out; and every model is worth it."""
    monkeypatch.setenv("FEDWARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "DOUBTFUL", (1, 10**9))
    monkeypatch.setattr(calibration, "WORTH", 2)
    return tmp_path / "cache"


def run(
    rounds: int = 2,
    *,
    seed: int = 1,
    memo: Path | None = None,
    wanted: Any = "auto",
    **more: Any,
) -> Engine:
    """A whole run; what computed it."""
    study = small_study(training={"rounds": rounds, "seed": seed}, **more)
    sites: Sequence[Site] = list(make_sites(study, make_cohorts(study, SITES, patients=20)))
    found: list[Outcome] = []
    app = build_server_app(
        study, checkpoints=NoCheckpoints(), observer=Quiet(), on_outcome=found.append
    )
    engine = Engine(wanted, memo=memo)
    engine.run(app, sites)
    assert len(found[0].history) == rounds
    return engine


def kept(cache: Path) -> dict[str, float]:
    """What was found out."""
    (file,) = cache.iterdir()
    found: dict[str, float] = json.loads(file.read_bytes())
    return found


def keep(cache: Path, looped: float, stacked: float) -> None:
    """As if that had been found out."""
    (file,) = cache.iterdir()
    file.write_text(json.dumps({"looped": looped, "stacked": stacked}))


def test_what_was_tried_out_is_kept_and_decides(cache: Path) -> None:
    first = run()
    assert min(kept(cache).values()) > 0
    assert "as tried out here" in first.used.why
    for looped, stacked, expected in (
        (1.0, 5.0, True),
        (5.0, 1.0, False),
        (1.0, 1.29, False),  # not clear: as the model's size says
    ):
        keep(cache, looped, stacked)
        engine = run()
        assert engine.used.looped is expected, engine.used.why
        assert kept(cache) == {"looped": looped, "stacked": stacked}
    assert "sites at once take 1.3 times as long" in engine.used.why


def test_a_large_model_is_stacked_only_if_that_is_clear(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "STACKED_UP_TO", 1)
    run()
    for looped, stacked, expected in ((1.29, 1.0, True), (1.31, 1.0, False)):
        keep(cache, looped, stacked)
        assert run().used.looped is expected


def test_another_kind_of_work_is_tried_out_anew(cache: Path) -> None:
    run()
    run(algorithm={"name": "fedprox", "mu": 0.1})  # the same work
    run(seed=5)
    assert len(list(cache.iterdir())) == 1
    run(model={"name": "mlp", "hidden": [9]})
    run(privacy={"mode": "dp", "epsilon": 8.0, "delta": 1e-2})
    assert len(list(cache.iterdir())) == 3


def test_a_run_that_is_resumed_is_computed_as_it_began(cache: Path, tmp_path: Path) -> None:
    memo = tmp_path / "engine.json"
    run()
    keep(cache, 1.0, 5.0)
    assert run(memo=memo).used.looped
    keep(cache, 5.0, 1.0)
    assert run(memo=memo).used.looped


@pytest.mark.parametrize("wanted", ["loop", "stacked"])
def test_an_engine_that_was_asked_for_is_not_tried_out(cache: Path, wanted: str) -> None:
    run(wanted=wanted)
    assert not cache.exists()


def test_short_runs_and_clear_cases_are_not_tried_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(rounds=1)
    monkeypatch.setattr(choice, "DOUBTFUL", (10**6, 10**9))
    run()
    assert not cache.exists()


def test_a_damaged_or_impossible_cache_is_no_obstacle(cache: Path) -> None:
    run()
    (file,) = cache.iterdir()
    file.write_text('{"looped": -1.0}')
    run()
    assert min(kept(cache).values()) > 0
    file.unlink()
    cache.rmdir()
    cache.write_text("no folder")
    assert "as tried out here" in run().used.why


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("FEDWARD_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert calibration._file("kind") is None
    assert "as tried out here" in run().used.why
    assert not cache.exists()


def test_trying_out_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is charged nor what is trained."""
    dp = {"mode": "dp", "epsilon": 8.0, "delta": 1e-2}

    def outcome() -> tuple[Outcome, list[int]]:
        study = small_study(training={"rounds": 2}, privacy=dp)
        sites = list(make_sites(study, make_cohorts(study, SITES, patients=20)))
        found: list[Outcome] = []
        app = build_server_app(
            study, checkpoints=NoCheckpoints(), observer=Quiet(), on_outcome=found.append
        )
        Engine("auto").run(app, sites)
        return found[0], [len(site.spending.charges) for site in sites]

    tried, charged = outcome()
    monkeypatch.setattr(choice, "worthwhile", lambda _sites: False)
    untried, as_charged = outcome()
    assert charged == as_charged
    for name, value in untried.weights.items():
        assert value.tobytes() == tried.weights[name].tobytes()
