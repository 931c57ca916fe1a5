"""The cells of a sweep: one checked study for each combination of the swept values.

All of them are checked before the first one runs. A cell whose `[algorithm]` or `[model]` is not
the study's goes without the parameters that its own does not have, unless they are swept: then the
combination is refused. What was left out stands in the plan.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.common.errors import StudyError
from fedward.common.models.registry import model_keys
from fedward.common.study import Study, load_study, load_table, simulation_hash, study_from
from fedward.common.study.training_sections import algorithm_keys
from fedward.simulations.sweep.arguments import Axis, value_text

MOST_RUNS = 10_000
AS_IT_STANDS = "as it stands"
"""The name of the one cell of a sweep without keys."""
_NAMED: Mapping[str, Callable[[str], frozenset[str] | None]] = {
    "algorithm": algorithm_keys,
    "model": model_keys,
}
"""Sections that have a name, and which other keys go with it."""
_LONGEST_FOLDER = 100
_SAME_QUESTION = "cells are compared on the same question, patients and metric; write another study"
_FIXED = {
    "training.seed": "give --seeds",
    "study": _SAME_QUESTION,
    "task": _SAME_QUESTION,
    "evaluation": _SAME_QUESTION,
    "simulation": "of [simulation], only keys of partition can be swept",
}
"""What cannot be swept, and what to do instead."""


@dataclass(frozen=True)
class Cell:
    """One combination of values.

    Attributes:
        name: for people: keys and values.
        folder: for files: the same in letters that every file system takes.
        settings: the values as texts, by key, in the order of the keys.
        study: checked; its seed is that of the study file.
        dropped: keys of the study file that do not belong to this cell's algorithm or model.
    """

    name: str
    folder: str
    settings: Mapping[str, str]
    study: Study
    dropped: tuple[str, ...]

    def with_seed(self, seed: int) -> Study:
        """The study of one run."""
        training = self.study.training.model_copy(update={"seed": seed})
        return self.study.model_copy(update={"training": training})


@dataclass(frozen=True)
class Grid:
    """What a sweep runs.

    Attributes:
        base: the study as its file says.
        folder: that its paths are relative to.
        keys: what is swept.
        cells: in the order of the values, the last key fastest.
        seeds: of the runs of each cell.
    """

    base: Study
    folder: Path
    keys: tuple[str, ...]
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]

    @property
    def private(self) -> bool:
        """Whether any cell is trained with differential privacy."""
        return any(cell.study.private for cell in self.cells)

    def same_data(self) -> bool:
        """Whether all cells of a seed train with the same rows, divided the same way."""
        return not any(key.partition(".")[0] in _DATA for key in self.keys)


_DATA = ("data", "preprocess", "simulation")


def make_grid(path: Path, axes: Sequence[Axis], seeds: Sequence[int] | None = None) -> Grid:
    """All cells of a sweep, checked.

    Args:
        path: the study file.
        axes: what is swept; without any, the study as it stands is the only cell.
        seeds: those of the runs; only the study's if absent.

    Raises:
        StudyError: the study, a key or a cell is refused; the message names cell and key.
    """
    base, table = load_study(path), load_table(path)
    if base.simulation is None:
        raise StudyError(
            "the study has no [simulation] section",
            hint="say where the data of the virtual hospitals are; see `fedward study new`",
        )
    axes = [Axis(axis.key.removesuffix(".name"), axis.values) for axis in axes]
    keys = tuple(axis.key for axis in axes)
    for key in keys:
        _check_key(key, keys)
    # Baselines do not take part in the comparison, and would be the same in most cells.
    table["simulation"] = {**table["simulation"], "compare": [], "cross_site": False}
    chosen = tuple(seeds or (base.training.seed,))
    count = len(chosen)
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_RUNS:
        raise StudyError(
            f"the sweep has {count:,} runs, more than {MOST_RUNS:,}", hint="sweep fewer values"
        )
    combinations = itertools.product(*(axis.values for axis in axes))
    cells = tuple(
        _make_cell(table, dict(zip(keys, values, strict=True))) for values in combinations
    )
    _check_distinct(cells)
    return Grid(base, path.parent, keys, cells, chosen)


def _check_key(key: str, keys: Sequence[str]) -> None:
    if keys.count(key) > 1:
        raise StudyError(f"{key} is swept twice", hint="give all of its values at once")
    if key.startswith("simulation.partition."):
        return
    for fixed, hint in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise StudyError(f"{key} cannot be swept", hint=hint)
    if "." not in key and key not in _NAMED:
        raise StudyError(f"{key} is no key of a study file", hint=f"write {key}.KEY=VALUE,VALUE")


def _make_cell(table: Mapping[str, Any], values: Mapping[str, Any]) -> Cell:
    settings = {key: value_text(value) for key, value in values.items()}
    name = ", ".join(f"{key}={text}" for key, text in settings.items()) or AS_IT_STANDS
    changed = copy.deepcopy(dict(table))
    dropped: list[str] = []
    for key in sorted(values, key=lambda key: key not in _NAMED):  # names before their parameters
        if key in _NAMED:
            dropped += _rename(changed, key, values)
        else:
            _set(changed, name, key, values[key])
    try:
        study = study_from(changed, name=name)
    except StudyError as error:
        if not error.problem.endswith(" is missing"):
            raise
        raise StudyError(
            error.problem,
            hint="write it into the study file (cells that do not know it go without), or give "
            "the value as a table, such as algorithm={name='fedprox',mu=0.1},fedavg",
        ) from error
    return Cell(name, _folder(name), settings, study, tuple(dropped))


def _rename(table: dict[str, Any], section: str, values: Mapping[str, Any]) -> list[str]:
    """Give a section another name, and return the keys that do not belong to it any more."""
    value = copy.deepcopy(values[section])
    if isinstance(value, dict):
        table[section] = value
        return []
    old = table.get(section, {})
    known = _NAMED[section](value) if isinstance(value, str) else None
    swept = {key for key in old if f"{section}.{key}" in values}
    foreign = [
        key for key in old if known is not None and key not in {"name", *known} and key not in swept
    ]
    table[section] = {key: old[key] for key in old if key not in foreign} | {"name": value}
    return [f"{section}.{key}" for key in foreign]


def _set(table: dict[str, Any], name: str, key: str, value: Any) -> None:
    *path, last = key.split(".")
    place = table
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise StudyError(
                f"{name}: {part} of {key} is no table", hint="sweep keys of tables, not of arrays"
            )
    place[last] = copy.deepcopy(value)


def _check_distinct(cells: Sequence[Cell]) -> None:
    """Two cells that are one study would be compared with themselves."""
    known: dict[str, str] = {}
    for cell in cells:
        first = known.setdefault(simulation_hash(cell.study), cell.name)
        if first != cell.name:
            raise StudyError(
                f"{first} and {cell.name} are the same study", hint="give each value once"
            )


def _folder(name: str) -> str:
    """A folder's name; where letters had to go, a digest keeps it apart from others."""
    plain = name.replace(", ", ",").replace(" ", "-")
    safe = re.sub(r"[^A-Za-z0-9.,=_-]", "", plain)[:_LONGEST_FOLDER]
    if safe == plain:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{safe[: _LONGEST_FOLDER - 9]}-{digest}"
