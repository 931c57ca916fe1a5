"""Every arm's model on every site's test patients: scores, metrics with intervals, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedward.client.site import Site
from fedward.common.metrics import Interval, bootstrap, exact_counts, one_metric
from fedward.common.study.schema import Study
from fedward.server.rounds import Outcome
from fedward.simulations.arms import ArmResult
from fedward.simulations.scoring import Scoring
from fedward.simulations.watcher import MOST_SITES, OVERALL


@dataclass(frozen=True)
class Judgement:
    """A model on the test rows of one site.

    Attributes:
        truth: float32 `[rows]`.
        scores: float32 `[rows, outputs]`.
        patient: int64 `[rows]`, the site's own numbering.
    """

    truth: NDArray[np.float32]
    scores: NDArray[np.float32]
    patient: NDArray[np.int64]


def judge(sites: Mapping[str, Site], outcome: Outcome) -> dict[str, Judgement]:
    """Score a model on the test patients of sites, by name."""
    tests = Scoring(list(sites.values()), outcome.transform)
    scores = tests.split(tests.scores(outcome.weights))
    return {
        name: Judgement(rows.target.numpy(), own, rows.patient)
        for name, rows, own in zip(sites, tests.each, scores, strict=True)
    }


def judge_arm(arm: ArmResult, judges: Mapping[str, Site]) -> dict[str, Judgement]:
    """Scores of an arm by site; a site whose local training failed is absent."""
    found: dict[str, Judgement] = {}
    for outcome, names in arm.models(judges):
        found |= judge({name: judges[name] for name in names}, outcome)
    return found


def metrics_with_intervals(
    study: Study, judgements: Mapping[str, Judgement]
) -> dict[str, dict[str, Interval]]:
    """All metrics by site and `overall`, with bootstrap intervals over patients.

    Over all sites, patients are resampled within each site. With more than `MOST_SITES` sites only
    `overall` has intervals, and each site the headline metric alone.
    """
    evaluation, kind = study.evaluation, study.task.kind
    result: dict[str, dict[str, Interval]] = {}
    for name, found in judgements.items():
        if len(judgements) > MOST_SITES:
            value = one_metric(exact_counts(kind, found.truth, found.scores), evaluation.metric)
            result[name] = {evaluation.metric: Interval(value, None, None)}
            continue
        result[name] = bootstrap(
            study.task.kind,
            found.truth,
            found.scores,
            found.patient,
            resamples=evaluation.bootstrap,
            confidence=evaluation.confidence,
            seed=study.training.seed,
        )
    if judgements:
        parts = list(judgements.values())
        result[OVERALL] = bootstrap(
            study.task.kind,
            np.concatenate([part.truth for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.patient for part in parts]),
            resamples=evaluation.bootstrap,
            confidence=evaluation.confidence,
            seed=study.training.seed,
            stratum=np.repeat(np.arange(len(parts)), [len(part.truth) for part in parts]),
        )
    return result


def cross_site(
    study: Study, arms: Sequence[ArmResult], judges: Mapping[str, Site]
) -> dict[str, dict[str, float | None]]:
    """The headline metric of each site's local model, and of the federated one, at every site.

    Returns:
        By model (a site's name, or `federated`), then by the site whose test patients were scored.
    """
    models: dict[str, Outcome] = {}
    for arm in arms:
        if arm.name == "local":
            models |= arm.outcomes
        elif arm.name == "federated":
            models["federated"] = arm.outcomes[""]
    table: dict[str, dict[str, float | None]] = {}
    for model, outcome in models.items():
        found = judge(judges, outcome)
        table[model] = {
            name: one_metric(
                exact_counts(study.task.kind, one.truth, one.scores), study.evaluation.metric
            )
            for name, one in found.items()
        }
    return table
