"""The cells of a sweep: what the command line means, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedward.common.errors import StudyError
from fedward.common.study.load import EXAMPLE
from fedward.simulations.sweep.arguments import (
    Axis,
    parse_axis,
    parse_seeds,
    value_text,
    with_repeated_option,
)
from fedward.simulations.sweep.grid import Grid, make_grid
from fedward.simulations.sweep.words import plan

SIMULATION = '\n[simulation]\nsites = ["a.toml"]\ncompare = ["local", "pooled"]\n'
PROX = EXAMPLE.replace('name = "fedavg"', 'name = "fedprox"\nmu = 0.1')


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return written(tmp_path, EXAMPLE)


def written(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text + SIMULATION)
    return path


def grid(path: Path, *axes: str, seeds: tuple[int, ...] | None = None) -> Grid:
    return make_grid(path, [parse_axis(axis) for axis in axes], seeds)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("algorithm=fedavg,fedprox", ("fedavg", "fedprox")),
        ("privacy.epsilon=1,3.5, 1e-1", (1, 3.5, 0.1)),
        ("model.hidden=[64, 32],[128],[]", ([64, 32], [128], [])),
        ("a.b='x,y',true", ("x,y", True)),
        ("algorithm={name='fedprox', mu=0.1},fedavg", ({"name": "fedprox", "mu": 0.1}, "fedavg")),
    ],
)
def test_values_are_toml_and_bare_words_strings(text: str, values: tuple[object, ...]) -> None:
    assert parse_axis(text) == Axis(text.partition("=")[0], values)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("algorithm", "not key=value"),
        ("=1", "not key=value"),
        ("a b=1", "not key=value"),
        ("a.b=", "empty value"),
        ("a.b=1,,2", "empty value"),
        ("a.b=[1,2", "left open"),
        ("a.b='x", "left open"),
        ("a.b=1,2,1", "value 1 twice"),
        ("a.b=[1 2]", "not TOML"),
        ("a.b=1\nc=2", "empty value"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_axis(text)


def test_several_keys_follow_one_option() -> None:
    words = ["s.toml", "--sweep", "a=1,2", "b.c=3", "--seeds", "5", "--out", "x=1"]
    assert with_repeated_option(words, "--sweep") == [
        "s.toml", "--sweep", "a=1,2", "--sweep", "b.c=3", "--seeds", "5", "--out", "x=1",
    ]  # fmt: skip
    glued = ["--sweep=a=1", "b=2", "s.toml"]
    assert with_repeated_option(glued, "--sweep") == ["--sweep=a=1", "--sweep", "b=2", "s.toml"]
    repeated = ["--sweep", "a=1", "--sweep", "b=2"]
    assert with_repeated_option(repeated, "--sweep") == repeated


def test_seeds() -> None:
    assert parse_seeds("3", first=7) == (7, 8, 9)
    assert parse_seeds("4,2", first=7) == (4, 2)
    assert parse_seeds("4,", first=7) == (4,)
    for wrong in ("", "0", "-1", "x", "1,1", "1.5", str(10**7), f"1,{2**63}"):
        with pytest.raises(ValueError, match="seed"):
            parse_seeds(wrong, first=7)


def test_cells_are_the_product_and_have_no_baselines(study: Path) -> None:
    made = grid(study, "algorithm=fedavg,fedmedian", "training.rounds=1,2", seeds=(5, 6))
    assert [cell.name for cell in made.cells] == [
        "algorithm=fedavg, training.rounds=1",
        "algorithm=fedavg, training.rounds=2",
        "algorithm=fedmedian, training.rounds=1",
        "algorithm=fedmedian, training.rounds=2",
    ]
    assert made.cells[3].folder == "algorithm=fedmedian,training.rounds=2"
    assert (made.cells[3].study.algorithm.name, made.cells[3].study.training.rounds) == (
        "fedmedian", 2,
    )  # fmt: skip
    assert made.cells[0].with_seed(6).training.seed == 6
    for cell in made.cells:
        assert cell.study.simulation is not None
        assert cell.study.simulation.compare == ()
    assert made.base.simulation is not None
    assert made.base.simulation.compare == ("local", "pooled")
    assert [cell.name for cell in grid(study, seeds=(1, 2)).cells] == ["as it stands"]


def test_parameters_of_another_algorithm_are_left_out_and_the_plan_says_so(tmp_path: Path) -> None:
    made = grid(written(tmp_path, PROX), "algorithm=fedavg,fedprox")
    assert [cell.dropped for cell in made.cells] == [("algorithm.mu",), ()]
    assert made.cells[1].study.algorithm.mu == 0.1  # type: ignore[union-attr]
    shown = plan(made, jobs=2, left=1)
    assert "  algorithm.mu is left out for fedavg" in shown
    assert "2 cells × 1 seed = 2 runs, two at once" in shown[0]
    assert shown[-1] == "  1 of 2 runs finished before"


def test_a_swept_parameter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, PROX)
    wanted = r"algorithm=fedavg, algorithm\.mu=0\.1: unknown key algorithm\.mu"
    with pytest.raises(StudyError, match=wanted):
        grid(path, "algorithm=fedprox,fedavg", "algorithm.mu=0.1,1")


def test_a_table_is_an_algorithm_with_its_parameters(study: Path) -> None:
    made = grid(study, "algorithm={name='fedprox',mu=0.5},fedavg")
    assert [cell.name for cell in made.cells] == ["algorithm=fedprox(mu=0.5)", "algorithm=fedavg"]
    assert made.cells[0].study.algorithm.mu == 0.5  # type: ignore[union-attr]
    assert "(" not in made.cells[0].folder


def test_models_can_be_swept_with_what_belongs_to_them(tmp_path: Path) -> None:
    text = EXAMPLE.replace('name = "logistic"', 'name = "mlp"\nhidden = [8]')
    made = grid(written(tmp_path, text), "model=mlp,logistic")
    assert [cell.dropped for cell in made.cells] == [(), ("model.hidden",)]
    made = grid(written(tmp_path, text), "model.hidden=[64,32],[16]")
    assert [cell.study.model.hidden for cell in made.cells] == [(64, 32), (16,)]  # type: ignore[attr-defined]
    assert len({cell.folder for cell in made.cells}) == 2


@pytest.mark.parametrize(
    ("axes", "complaint"),
    [
        (["training.roundz=1,2"], r"training\.roundz=1: unknown key training\.roundz: did you"),
        (["training.rounds=1,x"], r"training\.rounds=x: training\.rounds is a string"),
        (["training.rounds=1,0"], r"training\.rounds=0: training\.rounds"),
        (["algorithm=fedavg,fedprox"], r"algorithm\.fedprox\.mu|algorithm\.mu is missing"),
        (["algorithm=fedavg,nosuch"], r"algorithm=nosuch: algorithm\.name is not known"),
        (["privacy.epsilonn=1"], r"unknown key privacy\.epsilonn: did you mean epsilon"),
        (["data.features.min=1,2"], r"features of data\.features\.min is no table"),
        (["rounds=1,2"], r"rounds is no key"),
        (["training.seed=1,2"], r"training\.seed cannot be swept: give --seeds"),
        (["evaluation.metric=auroc,f1"], r"evaluation\.metric cannot be swept"),
        (["simulation.compare=[]"], r"simulation\.compare cannot be swept"),
        (["training.rounds=1", "training.rounds=2"], r"training\.rounds is swept twice"),
        (["algorithm=fedavg", "algorithm.name=fedmedian"], r"algorithm is swept twice"),
        (["privacy.max_grad_norm=1,1.0"], r"are the same study"),
    ],
)
def test_a_wrong_cell_is_refused_by_name_before_any_runs(
    axes: list[str], complaint: str, study: Path
) -> None:
    with pytest.raises(StudyError, match=complaint):
        grid(study, *axes)


def test_a_sweep_has_an_end(study: Path) -> None:
    many = ",".join(map(str, range(1, 102)))
    with pytest.raises(StudyError, match=r"10,100 runs, more than 10,000"):
        grid(study, f"training.rounds={many}", seeds=tuple(range(100)))


def test_a_study_without_simulation(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE)
    with pytest.raises(StudyError, match=r"no \[simulation\]"):
        grid(path, "training.rounds=1,2")


def test_values_as_text() -> None:
    assert value_text({"name": "fedprox", "mu": 0.1}) == "fedprox(mu=0.1)"
    assert value_text([1, "a", False]) == "[1,a,false]"
