"""The parts of `fedward bench`: workloads, figures, the comparison with earlier ones, the page."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from fedward.common.errors import StateError
from fedward.common.study import load_study
from fedward.simulations.bench import processes, rivals
from fedward.simulations.bench.guard import check_comparable, falls
from fedward.simulations.bench.measure import summarise
from fedward.simulations.bench.page import render
from fedward.simulations.bench.processes import run_rival
from fedward.simulations.bench.results import Bench, Machine, Measured, Spread, Task
from fedward.simulations.bench.rivals import BARE, LABELS, PEERS, PRODUCT, Rival, against
from fedward.simulations.bench.terminal import table
from fedward.simulations.bench.workloads import WORKLOADS, Workload, write

W1, W2, W3, W4, W5 = WORKLOADS
SMALL = [replace(load, sites=3, rows=40) for load in WORKLOADS]
MACHINE = Machine(processors=2, system="Linux x86_64", python="3.11.9", torch="2.13.0")


def printed(name: str, round_s: float, *, first_s: float = 9.0) -> dict[str, Any]:
    """What a program prints after a run of five rounds, one of which was disturbed."""
    rounds = [round_s, round_s, round_s, 3.0 * round_s]
    if name != PRODUCT:
        return {"seconds": [first_s, *rounds], "accuracy": 0.75}
    return {
        "seconds": rounds,
        "accuracy": 0.5,
        "mean_s": 0.5,
        "first_round_s": first_s,
        "whole_s": 11.0,
        "engine": "stacked",
        "why": "many sites at once",
    }


def measured(load: Workload, ours_s: float = 0.01, **others_s: float) -> Measured:
    """One turn of a workload, in which each program took so long for a round."""
    paces = {"bare": 0.1} | {name.replace("_", "-"): value for name, value in others_s.items()}
    turn = {name: printed(name, seconds) for name, seconds in paces.items()}
    return summarise(load, [{**turn, PRODUCT: printed(PRODUCT, ours_s)}])


def found(*parts: Measured) -> Bench:
    return Bench(machine=MACHINE, measured=parts)


@pytest.mark.parametrize("load", SMALL, ids=lambda load: load.name)
def test_a_workload_is_a_study_that_says_the_same(load: Workload, tmp_path: Path) -> None:
    folder = write(load, tmp_path / "load")
    study = load_study(folder / "study.toml")
    assert (study.training.rounds, study.training.batch_size) == (load.rounds, load.batch_size)
    assert study.training.learning_rate == load.learning_rate
    assert study.private == load.private
    assert study.model.name == load.model["name"]
    told = json.loads((folder / "workload.json").read_text())
    assert (told["sites"], told["rows"], told["private"]) == (3, 40, load.private)


def test_product_and_rivals_are_given_the_same_rows(tmp_path: Path) -> None:
    folder = write(SMALL[0], tmp_path / "load")
    table_ = pl.read_parquet(folder / "data.parquet").filter(pl.col("split") == "train")
    with np.load(folder / "rows.npz") as rows:
        columns = [f"x{index}" for index in range(rows["train_x"].shape[1])]
        assert np.array_equal(table_.select(columns).to_numpy(), rows["train_x"])
        assert np.array_equal(table_["ill"].to_numpy() == "yes", rows["train_y"])
        assert rows["train_y"].shape == (3 * 40,)
        assert rows["test_y"].shape == (3 * 4,)
    assert table_["site"].to_list() == [f"s{site:05d}" for site in range(3) for _ in range(40)]
    assert table_["patient"].n_unique() == 120


def test_pictures_are_the_same_too(tmp_path: Path) -> None:
    folder = write(SMALL[2], tmp_path / "load")
    with np.load(folder / "rows.npz") as rows, np.load(folder / "images.npz") as images:
        assert np.array_equal(rows["train_x"], images["train_images"])
        assert np.array_equal(rows["test_y"], images["test_labels"][:, 0] == 1)


def test_data_follow_from_the_seed(tmp_path: Path) -> None:
    loads = [SMALL[0], SMALL[0], replace(SMALL[0], seed=2)]
    made = []
    for index, load in enumerate(loads):
        with np.load(write(load, tmp_path / str(index)) / "rows.npz") as rows:
            made.append(rows["train_x"])
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


@pytest.mark.parametrize("rival", [BARE, *PEERS], ids=lambda rival: rival.name)
def test_rivals_import_nothing_of_fedward(rival: Rival) -> None:
    names = {rival.file, "peer_data.py"} if rival.peer else {rival.file}
    for name in names:
        tree = ast.parse((rivals.folder() / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            assert not [m for m in modules if m.split(".")[0] == "fedward"], name


def test_the_bare_loop_trains_a_workload(tmp_path: Path) -> None:
    load = replace(W1, sites=8, rounds=8)
    told = run_rival(BARE, write(load, tmp_path / "load"))
    assert len(told["seconds"]) == 8
    assert told["accuracy"] > 0.6  # guessing gives 0.5


def test_a_rival_that_fails_is_a_refusal_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text("import sys\nprint('oh', file=sys.stderr)\nsys.exit(4)\n")
    monkeypatch.setattr(rivals, "folder", lambda: tmp_path)
    with pytest.raises(StateError, match="the bad one ended with 4"):
        run_rival(Rival("bad", "the bad one", "bad.py", peer=False), tmp_path)
    assert capsys.readouterr().err == "oh\n"


def test_a_rival_that_hangs_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hang.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(rivals, "folder", lambda: tmp_path)
    monkeypatch.setattr(processes, "LIMIT_S", 0.1)
    with pytest.raises(StateError, match="the slow one hangs"):
        run_rival(Rival("hang", "the slow one", "hang.py", peer=False), tmp_path)


def test_a_program_is_ended_with_all_that_it_started() -> None:
    sleep = "import time; time.sleep(600)"
    program = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {sleep!r}])\n"
        "print('started', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        processes.end(process)
        assert process.stdout.read() == ""  # the end of the pipe: nobody has it open any more


def test_who_is_told_to_stop_ends_what_it_started(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "hang.py").write_text(
        "import sys, time\n"
        "pipe = open(sys.argv[1] + '/pipe', 'w')\n"
        "print('started', file=pipe, flush=True)\n"
        "time.sleep(600)\n"
    )
    program = (
        "from pathlib import Path\n"
        "from fedward.simulations.bench import rivals\n"
        "from fedward.simulations.bench.processes import run_rival\n"
        f"rivals.folder = lambda: Path({str(tmp_path)!r})\n"
        f"run_rival(rivals.Rival('hang', 'hang', 'hang.py', peer=False), Path({str(tmp_path)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process, pipe.open() as reading:
        assert reading.readline() == "started\n"
        process.terminate()
        assert reading.read() == ""  # the end of the pipe: nobody has it open any more
        assert process.wait() == 128 + signal.SIGTERM


def test_peers_are_measured_where_they_are_and_without_privacy(tmp_path: Path) -> None:
    assert list(against(private=False, peers=None)) == [BARE]
    assert list(against(private=True, peers=tmp_path)) == [BARE]
    assert list(against(private=False, peers=tmp_path)) == [BARE, *PEERS]
    with pytest.raises(StateError, match="there is no Python environment"):
        run_rival(PEERS[0], tmp_path, tmp_path)


def test_a_ratio_is_of_median_rounds_without_the_first() -> None:
    one = measured(W1, 0.01, pfl=0.2)
    assert one.ratios["bare"] == Spread.of([0.1 / 0.01])
    assert one.ratios["pfl"].median == pytest.approx(20.0)
    assert one.all_rounds.median == pytest.approx(0.2)  # 0.1 by the mean of 0.5
    assert one.programs["bare"].round_s.median == 0.1
    assert one.product.accuracy == 0.5
    assert one.programs["bare"].accuracy == 0.75
    assert one.first_round_s.median == 9.0


def test_spreads_are_over_turns_and_ratios_within_a_turn() -> None:
    slow = {"bare": printed("bare", 0.4), PRODUCT: printed(PRODUCT, 0.04)}
    fast = {"bare": printed("bare", 0.1), PRODUCT: printed(PRODUCT, 0.005)}
    one = summarise(W1, [slow, fast, fast])
    assert one.turns == 3
    assert one.ratios["bare"].least == pytest.approx(10.0)  # and not 0.1 by 0.04
    assert one.ratios["bare"].median == one.ratios["bare"].most == pytest.approx(20.0)


def test_json_survives_the_way_to_disk(tmp_path: Path) -> None:
    bench = found(measured(W1, pfl=0.2), measured(W4))
    (tmp_path / "bench.json").write_text(bench.text(), encoding="utf-8")
    assert Bench.load(tmp_path / "bench.json") == bench
    assert json.loads(bench.text())["measured"][0]["task"]["model"] == {
        "name": "mlp",
        "hidden": [64, 32],
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(extra=1), "unknown key extra"),
        (lambda d: d.update(format=2), "format"),
        (lambda d: d["measured"][0].pop("ratios"), "ratios is missing"),
        (lambda d: d["measured"][0]["all_rounds"].update(median=0.0), "median"),
        (lambda d: d["machine"].update(processors=0), "processors"),
    ],
)
def test_other_json_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    data = json.loads(found(measured(W1)).text())
    change(data)
    (tmp_path / "bench.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(StateError, match=says):
        Bench.load(tmp_path / "bench.json")


def test_a_missing_baseline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot read earlier\.json"):
        Bench.load(tmp_path / "earlier.json")


@pytest.mark.parametrize(("now_s", "low"), [(0.0124, False), (0.0126, True), (0.001, False)])
def test_a_ratio_may_lie_a_fifth_below_the_baseline(now_s: float, low: bool) -> None:
    lower = falls(found(measured(W1, 0.01)), [measured(W1, now_s)])
    assert bool(lower) == low
    if low:
        (fall,) = lower
        assert (fall.workload, fall.rival) == ("W1", "bare")
        assert fall.allowed == pytest.approx(8.0)
        assert str(fall) == ("W1: 7.94 times as fast as bare PyTorch loop, at least 8.00 is wanted")


def test_the_baselines_smallest_ratio_counts() -> None:
    turns = [
        {"bare": printed("bare", bare_s), PRODUCT: printed(PRODUCT, 0.01)}
        for bare_s in (0.05, 0.1, 0.1)
    ]
    baseline = found(summarise(W1, turns))
    assert falls(baseline, [measured(W1, 0.024)]) == []  # a ratio of 4.2; 5.0 less a fifth is 4
    assert len(falls(baseline, [measured(W1, 0.026)])) == 1


def test_the_tolerance_is_a_share() -> None:
    baseline = found(measured(W1, 0.01))
    assert falls(baseline, [measured(W1, 0.0101)], 0.0)
    assert falls(baseline, [measured(W1, 0.019)], 0.5) == []


def test_seconds_are_not_compared() -> None:
    """A machine that is four times as slow with all programs."""
    assert falls(found(measured(W1, 0.01)), [measured(W1, 0.04, bare=0.4)]) == []


def test_every_program_of_both_is_compared_and_no_other() -> None:
    with_peers = found(measured(W1, pfl=0.2, flower=0.9))
    (fall,) = falls(with_peers, [measured(W1, pfl=0.1)])
    assert fall.rival == "pfl"
    assert falls(with_peers, [measured(W1)]) == []
    assert falls(found(measured(W1)), [measured(W1, pfl=0.0001)]) == []


def test_a_baseline_that_says_nothing_is_refused() -> None:
    baseline = found(measured(W1))
    check_comparable(baseline, MACHINE, [Task.of(W1)])
    with pytest.raises(StateError, match="of 2 processors, not of 8"):
        check_comparable(baseline, MACHINE.model_copy(update={"processors": 8}), [Task.of(W1)])
    for load in (W2, replace(W1, sites=5)):
        with pytest.raises(StateError, match="does not have"):
            check_comparable(baseline, MACHINE, [Task.of(load)])


@pytest.fixture(scope="module")
def whole() -> Bench:
    """Everything that can be measured."""
    with_peers = [
        measured(load, pfl=0.3, pfl_cores=0.2, flower=4.0) for load in (W1, W2, replace(W3))
    ]
    return found(*with_peers, measured(W4), measured(W5, 0.2))


def test_the_page_opens_without_internet(whole: Bench) -> None:
    page = render(whole)
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)
    assert page.count("<svg") == page.count("</svg>") == 2 + 2 * len(LABELS) - 1
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_says_what_was_measured(whole: Bench) -> None:
    page = render(whole)
    for label in LABELS.values():
        assert label in page
    for text in ("W5", "1,000 sites of 50 rows", "patient-level DP", "wanted 12", "10 ×", "100 ms"):
        assert text in page, text
    assert render(whole) == page


def test_the_chart_puts_what_is_faster_to_the_right(whole: Bench) -> None:
    """The marks of the bare loop lie in the order of the ratios."""
    speeds = [0.05, 0.02, 0.01]
    page = render(found(*(measured(load, s) for load, s in zip((W1, W2, W3), speeds, strict=True))))
    chart = page.partition('aria-label="How many times')[2].partition("</svg>")[0]
    mark = r'<use href="[^"]+" x="([\d.]+)"[^>]*var\(--muted\); stroke-linejoin'
    marks = [float(x) for x in re.findall(mark, chart)]
    assert len(marks) == 3
    assert all(left < right for left, right in pairwise(marks))


def test_only_what_was_measured_is_shown() -> None:
    page = render(found(measured(W4)))
    assert "Flower" not in page
    assert "pfl-research" not in page


def test_the_table_fits_a_narrow_terminal(whole: Bench) -> None:
    screen = Console(width=80, file=io.StringIO())
    with screen.capture() as printed_:
        screen.print(table(whole))
    text = printed_.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for part in ("bare PyTorch loop", " 10 ", "pfl-research, torchrun", "4,000 ms", "0.500"):
        assert part in text, part
