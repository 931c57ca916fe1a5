r"""Choose a study's settings without looking at a test patient.

Every site's test patients are taken away first. A fifth of its training patients, drawn by seed,
stands in for them; each setting is trained on the others and judged on that fifth, several times
with another fifth. Prints the mean of the headline metric and of accuracy over sites, best first.

    python benchmarks/tune.py examples/heart-disease/free.toml \
        --set training.learning_rate=0.01,0.03,0.1 --set training.local_steps=20,100
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from fedward.client.cohort import Cohort
from fedward.client.workspace import Workspace
from fedward.common.errors import FedwardError
from fedward.common.metrics import evaluate, exact_counts
from fedward.common.study import Study, load_study
from fedward.server.checkpoints import NoCheckpoints
from fedward.simulations.arms import ArmName, make_site, run_arm, study_of_arm
from fedward.simulations.cohorts import load_cohorts
from fedward.simulations.judging import judge_arm

HELD_OUT = 0.2
"""Share of the training patients that judges a setting."""


def main() -> None:
    """Read the command line, try every combination, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=A,B,…")
    parser.add_argument("--arm", default="federated", choices=["federated", "federated_no_dp"])
    parser.add_argument("--folds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(arguments.study)
    cohorts = load_cohorts(study, arguments.study.parent)
    table: list[tuple[float, float, dict[str, Any]]] = []
    for changes in combinations(arguments.set):
        try:
            tried = changed(study, changes)
            folds = [score(tried, cohorts, arguments.arm, f) for f in range(arguments.folds)]
        except FedwardError as error:
            print(f"{json.dumps(changes)}  {error.problem}")
            continue
        table.append((mean(f[0] for f in folds), mean(f[1] for f in folds), changes))
    for headline, accuracy, changes in sorted(table, key=lambda row: -row[0]):
        print(f"headline {headline:.4f}  accuracy {accuracy:.4f}  {changes}")


def combinations(options: list[str]) -> list[dict[str, Any]]:
    """Every combination of the values given with --set."""
    keys = [option.split("=", 1)[0] for option in options]
    values = [[parse(v) for v in option.split("=", 1)[1].split(",")] for option in options]
    return [dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*values)]


def parse(text: str) -> Any:
    """A value as TOML would read it; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def changed(study: Study, changes: dict[str, Any]) -> Study:
    """The study with other values, checked like a study file."""
    content = study.model_dump(mode="json", exclude_none=True, serialize_as_any=True)
    for key, value in changes.items():
        section, name = key.split(".", 1)
        content[section][name] = value
    return Study.model_validate(content)


def score(study: Study, cohorts: list[Cohort], arm: ArmName, fold: int) -> tuple[float, float]:
    """Headline metric over all held-out training patients, and mean accuracy over sites."""
    inner = [held_out(cohort, fold) for cohort in cohorts]
    training = study.training.model_copy(update={"seed": fold})
    study = study.model_copy(update={"training": training})
    workspace = Workspace()
    plain = study_of_arm(study, "federated_no_dp")
    judges = {c.site: make_site(plain, c.site, [c], workspace) for c in inner}
    result = run_arm(
        study,
        arm,
        inner,
        judges=judges,
        workspace=workspace,
        checkpoints=NoCheckpoints(),
        shown=lambda _arm, _round, _metric: None,
    )
    judged = judge_arm(result, judges).values()
    kind = study.task.kind
    everyone = exact_counts(
        kind, np.concatenate([j.truth for j in judged]), np.concatenate([j.scores for j in judged])
    )
    accuracies = [evaluate(exact_counts(kind, j.truth, j.scores))["accuracy"] for j in judged]
    return (
        evaluate(everyone)[study.evaluation.metric] or 0.0,
        mean(a for a in accuracies if a is not None),
    )


def held_out(cohort: Cohort, fold: int) -> Cohort:
    """The training patients of a site, a fifth of them marked as test patients."""
    own = cohort.training()
    generator = np.random.default_rng([fold, len(own)])
    chosen = generator.random(own.patients) < HELD_OUT
    return Cohort(own.site, own.features, own.target, own.patient, chosen[own.patient], own.extra)


if __name__ == "__main__":
    main()
