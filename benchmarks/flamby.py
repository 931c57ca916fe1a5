"""fedward's figures beside the published ones, from the study files in `examples/`.

Fed-Heart-Disease (FLamby, Ogier du Terrail et al. 2022): accuracy, mean over the four hospitals,
mean and deviation over five seeds. The row of a local model is its mean over all hospitals' test
patients, as published. Below it, what fedward reaches with settings of its own, and the diabetes
silos.

    export FEDWARD_DATA=…            # a folder with heart_disease/ and diabetes130/
    python benchmarks/flamby.py      # about three minutes on two cores
    python benchmarks/flamby.py --json figures.json --only heart-disease/fedavg
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, pstdev

from fedward.simulations.report.results import OVERALL, Results
from fedward.simulations.simulate import Simulation

EXAMPLES = Path(__file__).parent.parent / "examples"
SEEDS = (42, 43, 44, 45, 46)
PUBLISHED = {
    ("heart-disease/fedavg", "pooled"): 0.735,
    ("heart-disease/fedavg", "local cleveland"): 0.722,
    ("heart-disease/fedavg", "local hungarian"): 0.629,
    ("heart-disease/fedavg", "local switzerland"): 0.567,
    ("heart-disease/fedavg", "local va"): 0.637,
    ("heart-disease/fedavg", "federated"): 0.685,
    ("heart-disease/fedprox", "federated"): 0.685,
    ("heart-disease/fedadam", "federated"): 0.726,
    ("heart-disease/fedyogi", "federated"): 0.731,
    ("heart-disease/fedadagrad", "federated"): 0.731,
}
"""Accuracy published for Fed-Heart-Disease, by study file and row."""
HEART = tuple(dict.fromkeys(study for study, _ in PUBLISHED))
OWN = ("heart-disease/free", "heart-disease/private")
DIABETES = ("diabetes/open", "diabetes/private")


@dataclass(frozen=True)
class Row:
    """One figure of the table.

    Attributes:
        study: file below `examples/`, without its ending.
        row: arm, or `local` and the site whose model it is.
        accuracy: mean over sites and seeds, in [0, 1].
        deviation: of the mean over sites, between seeds.
        auroc: over all test patients, mean over seeds; None for a single site's model.
        epsilon: largest of all sites and seeds; None without differential privacy.
        published: accuracy, None if there is none.
        seconds: mean wall time of a run.
    """

    study: str
    row: str
    accuracy: float
    deviation: float
    auroc: float | None
    epsilon: float | None
    published: float | None
    seconds: float


def measure(study: str, seeds: Iterable[int]) -> list[Row]:
    """Run a study file once per seed and average."""
    runs = [run(study, seed) for seed in seeds]
    arms = [arm for arm in ("pooled", "federated", "federated_no_dp") if arm in runs[0].metrics]
    return [*_local_rows(study, runs), *(_arm_row(study, arm, runs) for arm in arms)]


def run(study: str, seed: int) -> Results:
    """Simulate a study file with another seed; its outputs are thrown away."""
    with tempfile.TemporaryDirectory() as out:
        return Simulation.of(EXAMPLES / f"{study}.toml", Path(out) / "out", seed=seed).run()


def _arm_row(study: str, arm: str, runs: list[Results]) -> Row:
    accuracies = [
        mean(
            metrics["accuracy"].value or 0.0
            for site, metrics in result.metrics[arm].items()
            if site != OVERALL
        )
        for result in runs
    ]
    spent = [p.epsilon for result in runs for p in result.privacy.values() if p.epsilon is not None]
    return Row(
        study,
        arm,
        mean(accuracies),
        pstdev(accuracies),
        mean(result.metrics[arm][OVERALL]["auroc"].value or 0.0 for result in runs),
        max(spent) if spent and arm == "federated" else None,
        PUBLISHED.get((study, arm)),
        mean(result.timing.seconds for result in runs),
    )


def _local_rows(study: str, runs: list[Results]) -> list[Row]:
    """The cross-site matrix's rows: the model of one hospital at all of them."""
    tables = [result.cross_site for result in runs if result.cross_site is not None]
    if not tables or tables[0].metric != "accuracy":
        return []
    rows = []
    for index, model in enumerate(tables[0].models):
        if model == "federated":
            continue
        means = [mean(v for v in table.values[index] if v is not None) for table in tables]
        name = f"local {model}"
        seconds = mean(result.timing.seconds for result in runs)
        rows.append(
            Row(
                study,
                name,
                mean(means),
                pstdev(means),
                None,
                None,
                PUBLISHED.get((study, name)),
                seconds,
            )
        )
    return rows


def table(rows: Iterable[Row]) -> str:
    """The rows as text."""
    lines = [f"{'study':26}{'row':20}{'accuracy':>16}{'published':>11}{'AUROC':>8}{'ε':>7}{'s':>6}"]
    lines += [
        f"{row.study:26}{row.row:20}{row.accuracy:>9.3f} ± {row.deviation:.3f} "
        f"{_cell(row.published, 10)}{_cell(row.auroc, 8)}{_cell(row.epsilon, 7)}"
        f"{row.seconds:>6.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def _cell(value: float | None, width: int) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:>{width}.3f}"


def main() -> None:
    """Run everything, print the table."""
    parser = argparse.ArgumentParser(description="fedward's figures beside the published ones")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--only", nargs="*", help="study files, such as heart-disease/fedavg")
    arguments = parser.parse_args()
    beside = EXAMPLES.parent.parent / "shared" / "data"
    os.environ.setdefault("FEDWARD_DATA", str(beside))
    rows: list[Row] = []
    for study in arguments.only or (*HEART, *OWN, *DIABETES):
        seeds = SEEDS[:1] if study.startswith("diabetes") else SEEDS
        rows += measure(study, seeds)
        print(f"measured {study}", flush=True)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
