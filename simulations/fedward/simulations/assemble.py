"""From what the arms gave to `results.json`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedward.client.cohort import Cohort
from fedward.client.site import Site
from fedward.client.spending import Spending
from fedward.common.metrics import reliability, roc_points
from fedward.common.privacy.accounting import Spent, epsilon, spent
from fedward.common.study import Study, simulation_hash, study_hash
from fedward.common.table import FeatureTable
from fedward.common.version import versions
from fedward.server.rounds import Outcome
from fedward.simulations.arms import ArmResult
from fedward.simulations.health import warnings_of
from fedward.simulations.judging import Judgement, metrics_with_intervals
from fedward.simulations.report import results as report

MOST_POINTS = 12
"""Points of the privacy curve of a site; each costs a composition."""
MOST_CURVES = 12
"""Sites whose ROC and calibration curves are kept."""


@dataclass(frozen=True)
class Findings:
    """All that a simulation measured.

    Attributes:
        study: what was run.
        cohorts: the sites' data.
        arms: what each way of training gave.
        judgements: scores by arm and site.
        cross_site: see `judging.cross_site`; empty if the study does not ask for it.
        seconds: wall time of everything.
    """

    study: Study
    cohorts: Sequence[Cohort]
    arms: Sequence[ArmResult]
    judgements: Mapping[str, Mapping[str, Judgement]]
    cross_site: Mapping[str, Mapping[str, float | None]]
    seconds: float


def assemble(found: Findings) -> report.Results:
    """Make the results of a simulation.

    Raises:
        PrivacyError: two accountants disagree about what was spent.
    """
    study = found.study
    arms = {arm.name: arm for arm in found.arms}
    federated = arms["federated"]
    shown = [cohort.site for cohort in found.cohorts[:MOST_CURVES]]
    return report.Results(
        study=report.StudyInfo.of(
            study, study_hash=study_hash(study), simulation_hash=simulation_hash(study)
        ),
        versions=versions(),
        seed=study.training.seed,
        engine=report.Engine(name=federated.engine.name, why=federated.engine.why),
        sites=tuple(_site(study, cohort) for cohort in found.cohorts),
        metrics={
            arm: {
                place: {
                    name: report.Estimate(value=i.value, low=i.low, high=i.high)
                    for name, i in metrics.items()
                }
                for place, metrics in metrics_with_intervals(study, judged).items()
            }
            for arm, judged in found.judgements.items()
        },
        curves={
            arm.name: tuple(
                report.CurvePoint(round=point.round, metrics=point.metrics) for point in arm.curve
            )
            for arm in found.arms
        },
        drift=_drift(federated.outcomes[""]),
        privacy=_privacy(study, federated.sites),
        roc=_roc(study, found.judgements, shown),
        calibration=_calibration(study, found.judgements, shown),
        cross_site=_cross_site(study, found.cross_site),
        federation_view=_federation_view(study, federated.outcomes[""]),
        warnings=warnings_of(study, found.arms, found.judgements),
        timing=report.Timing(
            seconds=found.seconds, rounds={arm.name: arm.seconds for arm in found.arms}
        ),
    )


def _site(study: Study, cohort: Cohort) -> report.Site:
    training, testing = cohort.training(), cohort.testing()
    classes = {
        label: int((cohort.target == index).sum()) for index, label in enumerate(study.task.labels)
    }
    return report.Site(
        name=cohort.site,
        train_patients=training.patients,
        test_patients=testing.patients,
        train_rows=len(training),
        test_rows=len(testing),
        classes=classes,
        features=_features(study, cohort),
    )


def _features(study: Study, cohort: Cohort) -> dict[str, report.FeatureSummary]:
    table = cohort.features
    if not isinstance(table, FeatureTable):
        brightness = np.array([table.pixels[row].mean() / 255.0 for row in table.rows])
        return {"brightness": report.FeatureSummary(mean=brightness.mean(), sd=brightness.std())}
    numeric = study.data.numeric
    values = table.numeric[:, : len(numeric)].astype(np.float64)
    absent = np.isnan(values)
    with warnings.catch_warnings():  # of a column without a value, whose figures are None
        warnings.simplefilter("ignore", RuntimeWarning)
        means, deviations = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    rows = zip(numeric, means.tolist(), deviations.tolist(), absent.mean(axis=0), strict=True)
    return {
        feature.name: report.FeatureSummary(
            mean=None if missing == 1.0 else mean,
            sd=None if missing == 1.0 else deviation,
            missing=missing,
        )
        for feature, mean, deviation, missing in rows
    }


def _drift(outcome: Outcome) -> tuple[report.DriftPoint, ...]:
    return tuple(
        report.DriftPoint(round=record.round, site=site, norm=drift.norm, cosine=drift.cosine)
        for record in outcome.history
        for site, drift in record.drift.items()
    )


def _privacy(study: Study, sites: Mapping[str, Site]) -> dict[str, report.SitePrivacy]:
    if not study.private or study.privacy.delta is None:
        return {}
    return {
        name: _site_privacy(study, site.spending, study.privacy.delta)
        for name, site in sites.items()
    }


def _site_privacy(study: Study, spending: Spending, delta: float) -> report.SitePrivacy:
    """What a site's patients really spent: the larger of those that train and those that test."""
    training, testing = (
        spent(events, delta) if events else Spent(0.0, 0.0, delta)
        for events in (spending.events("training"), spending.events("testing"))
    )
    worst = max(training, testing, key=lambda total: total.epsilon)
    rounds = study.training.rounds
    marks = np.unique(np.linspace(1, rounds, min(rounds, MOST_POINTS)).astype(int))
    known = {int(m): epsilon(spending.events("training", until=int(m)), delta) for m in marks}
    curve = np.interp(np.arange(1, rounds + 1), list(known), list(known.values()))
    return report.SitePrivacy(
        epsilon=worst.epsilon,
        delta=delta,
        unit=study.privacy.unit,
        crosscheck=worst.crosscheck,
        events=tuple(charge.to_dict() for charge in spending.charges),
        per_round=tuple(float(value) for value in curve),
        training=training.epsilon,
        testing=testing.epsilon,
    )


def _roc(
    study: Study, judgements: Mapping[str, Mapping[str, Judgement]], shown: Sequence[str]
) -> dict[str, dict[str, report.Roc]]:
    if study.task.kind != "binary":
        return {}
    curves: dict[str, dict[str, report.Roc]] = {}
    for arm, judged in judgements.items():
        curves[arm] = {}
        for site in shown:
            one = judged.get(site)
            if one is not None and 0 < one.truth.sum() < len(one.truth):
                fpr, tpr = roc_points(one.truth, one.scores[:, 0])
                curves[arm][site] = report.Roc(fpr=tuple(fpr), tpr=tuple(tpr))
    return curves


def _calibration(
    study: Study, judgements: Mapping[str, Mapping[str, Judgement]], shown: Sequence[str]
) -> dict[str, dict[str, tuple[report.CalibrationBin, ...]]]:
    if study.task.kind != "binary":
        return {}
    return {
        arm: {
            site: tuple(
                report.CalibrationBin(
                    score=group.mean_score, observed=group.observed, count=group.count
                )
                for group in reliability(judged[site].truth, judged[site].scores[:, 0])
            )
            for site in shown
            if site in judged
        }
        for arm, judged in judgements.items()
    }


def _cross_site(
    study: Study, table: Mapping[str, Mapping[str, float | None]]
) -> report.CrossSite | None:
    if not table:
        return None
    sites = tuple(next(iter(table.values())))
    return report.CrossSite(
        metric=study.evaluation.metric,
        models=tuple(table),
        sites=sites,
        values=tuple(tuple(row[site] for site in sites) for row in table.values()),
    )


def _federation_view(study: Study, outcome: Outcome) -> report.FederationView | None:
    metrics = outcome.history[-1].evaluation
    if not metrics:
        return None
    resolution = f"score histograms of {study.evaluation.bins} bins"
    if study.private:
        resolution += ", each patient counted once, with Gaussian noise paid for by test patients"
    else:
        resolution += f", merged until every cell has at least {study.evaluation.min_cell} patients"
    return report.FederationView(resolution=resolution, metrics=metrics)
