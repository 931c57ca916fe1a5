"""Workloads as folders: a real study, a site file, and data drawn from a seed.

workload.json   what the other programs need to know
rows.npz        the rows, for the other programs
study.toml      the same for the product
site.toml
data.parquet    or images.npz
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURES = 30
SIDE = 28
BOUND = 4.0
MLP: Mapping[str, Any] = {"name": "mlp", "hidden": [64, 32]}
CNN: Mapping[str, Any] = {"name": "cnn", "channels": [16, 32], "pool": 7, "hidden": [64]}


@dataclass(frozen=True)
class Workload:
    """What is trained where.

    Attributes:
        name: of the workload.
        model: as in `[model]`.
        sites: how many.
        rows: of each site that train; a tenth more are kept for testing.
        rounds: how many.
        private: patient-level DP-SGD; a row is a patient.
        learning_rate: of local SGD.
        batch_size: rows of a step; under privacy the expected number.
        epochs: passes over a site's rows in a round.
        seed: of the data and of training.
        noise_multiplier: standard deviation of the noise by `max_grad_norm`, under privacy.
        max_grad_norm: what a row's gradient is clipped to, under privacy.
        aims: how many times as fast as another program the product is meant to be, on two cores.
    """

    name: str
    model: Mapping[str, Any]
    sites: int
    rows: int
    rounds: int
    private: bool = False
    learning_rate: float = 0.5
    batch_size: int = 32
    epochs: int = 1
    seed: int = 1
    noise_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    aims: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def pictures(self) -> bool:
        """Whether inputs are pictures."""
        return bool(self.model["name"] == "cnn")

    @property
    def tests(self) -> int:
        """Rows of each site that are kept for testing."""
        return max(1, self.rows // 10)


WORKLOADS = (
    Workload("W1", MLP, 100, 200, 20, aims={"bare": 12.0, "pfl": 15.0, "flower": 40.0}),
    Workload(
        "W2",
        MLP,
        1000,
        50,
        5,
        learning_rate=2.0,
        aims={"bare": 14.0, "pfl": 15.0, "flower": 150.0},
    ),
    Workload("W3", CNN, 20, 200, 5, learning_rate=0.1, aims={"bare": 1.7, "pfl": 1.0}),
    Workload("W4", CNN, 20, 200, 5, learning_rate=0.1, private=True, aims={"bare": 2.7}),
    Workload("W5", MLP, 100, 200, 20, private=True, aims={"bare": 30.0}),
)
"""What is measured, and what is reported in docs/performance.md."""


def write(load: Workload, folder: Path) -> Path:
    """Make the folder of a workload, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(load.seed)
    parts = {
        "train": (load.sites * load.rows, np.repeat(np.arange(load.sites), load.rows)),
        "test": (load.sites * load.tests, np.repeat(np.arange(load.sites), load.tests)),
    }
    rows: dict[str, NDArray[Any]] = {}
    for part, (count, site) in parts.items():
        rows[f"{part}_site"] = site
        draw = _pictures if load.pictures else _table
        rows[f"{part}_x"], rows[f"{part}_y"] = draw(rng, count)
    _save(folder / "rows.npz", rows)
    (_write_pictures if load.pictures else _write_table)(folder, rows)
    (folder / "workload.json").write_text(json.dumps(asdict(load), indent=1))
    (folder / "study.toml").write_text(_study(load))
    return folder


def _table(rng: np.random.Generator, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Thirty numbers, of which two matter: the best possible accuracy is 0.80."""
    values = rng.standard_normal((count, FEATURES), dtype=np.float32).clip(-BOUND, BOUND)
    return values, values[:, 0] - values[:, 1] + rng.standard_normal(count) > 0


def _pictures(rng: np.random.Generator, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Grey noise with a bright square, left or right."""
    values = rng.integers(0, 150, (count, SIDE, SIDE), dtype=np.uint8)
    right = rng.random(count) < 0.5
    tops = rng.integers(2, SIDE - 10, count)
    for index, (top, is_right) in enumerate(zip(tops.tolist(), right.tolist(), strict=True)):
        left = SIDE - 11 if is_right else 3
        values[index, top : top + 8, left : left + 8] += 90
    return values, right


def _write_table(folder: Path, rows: Mapping[str, NDArray[Any]]) -> None:
    import polars as pl

    frames = []
    for part in ("train", "test"):
        values, count = rows[f"{part}_x"], len(rows[f"{part}_x"])
        columns = {f"x{index}": values[:, index] for index in range(FEATURES)}
        words = np.where(rows[f"{part}_y"], "yes", "no")
        frame = pl.DataFrame({**columns, "ill": words, "site": _names(rows[f"{part}_site"])})
        patient = pl.int_range(count).cast(pl.String)
        frames.append(
            frame.with_columns(pl.lit(part).alias("split"), (part + "-" + patient).alias("patient"))
        )
    pl.concat(frames).write_parquet(folder / "data.parquet")
    (folder / "site.toml").write_text(
        '[site]\nname = "all"\n[source]\nkind = "parquet"\npath = "data.parquet"\n'
        '[patients]\ncolumn = "patient"\n[split]\n[target]\ncolumn = "ill"\n'
    )


def _write_pictures(folder: Path, rows: Mapping[str, NDArray[Any]]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for part in ("train", "test"):
        count = len(rows[f"{part}_y"])
        arrays[f"{part}_images"] = rows[f"{part}_x"]
        arrays[f"{part}_labels"] = rows[f"{part}_y"].astype(np.int64).reshape(-1, 1)
        arrays[f"{part}_site"] = _names(rows[f"{part}_site"])
        arrays[f"{part}_patient"] = np.array([f"{part}-{index}" for index in range(count)])
    _save(folder / "images.npz", arrays)
    (folder / "site.toml").write_text(
        '[site]\nname = "all"\n[source]\nkind = "medmnist"\npath = "images.npz"\n'
        '[patients]\ncolumn = "patient"\n[target]\ncolumn = "label"\n'
    )


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def _names(sites: NDArray[Any]) -> NDArray[np.str_]:
    return np.array([f"s{site:05d}" for site in sites.tolist()])


def _study(load: Workload) -> str:
    return f"""[study]
name = "{load.name.lower()}"
title = "{load.name}"
purpose = "To measure how fast simulations are."
contact = "bench@example.org"
[task]
kind = "binary"
target = "ill"
labels = ["no", "yes"]
{_data(load)}
[model]
{_lines(load.model)}
[training]
rounds = {load.rounds}
local_epochs = {load.epochs}
batch_size = {load.batch_size}
learning_rate = {load.learning_rate}
seed = {load.seed}
[algorithm]
name = "fedavg"
[privacy]
{_privacy(load)}
[aggregation]
weights = "equal"
min_sites = 2
[evaluation]
metric = "accuracy"
min_cell = 1
bootstrap = 10
[simulation]
source = "site.toml"
compare = []
[simulation.partition]
kind = "column"
column = "site"
min_patients = 2
"""


def _data(load: Workload) -> str:
    common = 'single_class = "allow"\nduplicates = "keep"\n'
    if load.pictures:
        return (
            f'[data]\nmodality = "image"\n{common}[preprocess]\nstandardise = "bounds"\n'
            f"[preprocess.image]\nheight = {SIDE}\nwidth = {SIDE}"
        )
    features = "".join(
        f'[[data.features]]\nname = "x{index}"\nmin = {-BOUND}\nmax = {BOUND}\n'
        for index in range(FEATURES)
    )
    return (
        f'[data]\nmodality = "tabular"\n{common}{features}'
        '[preprocess]\nstandardise = "bounds"\nimpute = "bounds"'
    )


def _privacy(load: Workload) -> str:
    if not load.private:
        return 'mode = "none"'
    return (
        'mode = "dp"\nepsilon = 100.0\ndelta = 1e-4\n'
        f"noise_multiplier = {load.noise_multiplier}\nmax_grad_norm = {load.max_grad_norm}"
    )


def _lines(section: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in section.items())
