"""The results arranged for tables: rows and cells that a template only has to print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedward.simulations.report.results import OVERALL, Estimate, FeatureSummary, Results, Site
from fedward.simulations.report.selection import MOST, chosen_sites
from fedward.simulations.report.words import (
    arm_label,
    decimals,
    delta_text,
    duration_text,
    epsilon_text,
    interval_text,
    main_arm,
    metric_names,
    metric_of,
    most_spent,
    number_text,
    range_text,
)

MOST_FEATURES = 40
"""So many features have a row in the heat map: those in which sites differ most."""


class Cell(NamedTuple):
    """A cell: its text, quieter text below, and how strongly it is tinted (-1 … 1)."""

    text: str
    small: str = ""
    tint: float = 0.0


class Row(NamedTuple):
    """A row of a table: its heading, a note below that, and its cells."""

    name: str
    note: str
    cells: tuple[Cell, ...]


def key_figures(results: Results) -> tuple[tuple[str, str, str], ...]:
    """`(what, figure, note)` of the strip at the top."""
    study, arm = results.study, main_arm(results)
    train = sum(site.train_patients for site in results.sites)
    test = sum(site.test_patients for site in results.sites)
    headline = results.estimate(arm, OVERALL)
    places = decimals(results, study.metric)
    figures = [
        ("Hospitals", f"{len(results.sites):,}", "virtual, on one machine"),
        ("Patients", f"{train + test:,}", f"{train:,} to train, {test:,} to test"),
        (
            f"{metric_of(study.metric).label}, {arm_label(arm).lower()}",
            number_text(headline.value, places),
            range_text(headline, places) or "no interval",
        ),
    ]
    spent = most_spent(results)
    if study.private and spent is not None:
        budget = f"of {epsilon_text(study.epsilon)} " if study.epsilon is not None else ""
        note = f"{budget}per {_unit(results)}, δ = {_delta(results)}"
        figures.append(("ε spent, at most", epsilon_text(spent), note))
    else:
        figures.append(("Privacy", "none", "no differential privacy"))
    figures.append(
        ("Rounds", f"{study.rounds:,}", f"{duration_text(results.timing.seconds)} in all")
    )
    return tuple(figures)


def headline_rows(results: Results, places: tuple[str, ...]) -> tuple[Row, ...]:
    """The headline metric of each place by arm, and the ε spent there."""
    return tuple(_place_row(results, place, results.study.metric) for place in places)


def metric_rows(results: Results, place: str) -> tuple[Row, ...]:
    """Every metric at one place by arm."""
    return tuple(
        Row(_upper(metric_of(name).label), "", _arm_cells(results, place, name))
        for name in metric_names(results)
    )


def _place_row(results: Results, place: str, metric: str) -> Row:
    cells = _arm_cells(results, place, metric)
    if results.privacy:
        own = results.privacy.get(place)
        spent = most_spent(results) if place == OVERALL else own.epsilon if own else None
        cells += (Cell(epsilon_text(spent), "at most" if place == OVERALL else ""),)
    tests = {site.name: site.test_patients for site in results.sites}
    count = sum(tests.values()) if place == OVERALL else tests.get(place, 0)
    return Row("Overall" if place == OVERALL else place, f"{count:,} test patients", cells)


def _arm_cells(results: Results, place: str, metric: str) -> tuple[Cell, ...]:
    places = decimals(results, metric)
    found = (results.estimate(arm, place, metric) for arm in results.arms)
    return tuple(Cell(number_text(e.value, places), range_text(e, places)) for e in found)


def flat(results: Results, arm: str, place: str) -> str:
    """The headline metric in one line: `0.97 (0.95–0.99)`."""
    estimate: Estimate = results.estimate(arm, place)
    return interval_text(estimate, decimals(results, results.study.metric))


def feature_rows(results: Results) -> tuple[Row, ...]:
    """How far each shown site's mean of a feature is from the mean of all, in deviations.

    The standardised difference (Austin 2009): (mean of the site - mean of all rows) / pooled
    within-site deviation. Beyond ±0.2 a difference is commonly called notable.
    """
    shown = set(chosen_sites(results))
    names = dict.fromkeys(name for site in results.sites for name in site.features)
    rows = []
    for name in names:
        differences = _differences(results.sites, name)
        cells = tuple(_difference_cell(differences.get(s)) for s in chosen_sites(results))
        spread = max((abs(v) for s, v in differences.items() if s in shown), default=0.0)
        rows.append((spread, Row(name, "", cells)))
    if len(rows) > MOST_FEATURES:
        rows = sorted(rows, key=lambda item: -item[0])[:MOST_FEATURES]
    return tuple(row for _, row in rows)


def _differences(sites: tuple[Site, ...], feature: str) -> dict[str, float]:
    parts = [(s, p) for s in sites if (p := s.features.get(feature)) and p.mean is not None]
    weights = np.array([_present(site, part) for site, part in parts], dtype=float)
    if weights.sum() == 0:
        return {}
    means = np.array([part.mean for _, part in parts], dtype=float)
    deviations = np.array([part.sd or 0.0 for _, part in parts])
    pooled = float(np.sqrt(np.average(deviations**2, weights=weights)))
    if pooled == 0.0:
        return {}
    found = (means - np.average(means, weights=weights)) / pooled
    return {site.name: float(value) for (site, _), value in zip(parts, found, strict=True)}


def _present(site: Site, part: FeatureSummary) -> float:
    return (site.train_rows + site.test_rows) * (1.0 - part.missing)


def _difference_cell(value: float | None) -> Cell:
    if value is None:
        return Cell(number_text(None))
    sign = "+" if value >= 0.005 else ""
    return Cell(sign + number_text(value), "", float(np.clip(value / 1.5, -1.0, 1.0)))


def site_rows(results: Results) -> tuple[dict[str, Any], ...]:
    """Sizes, class shares and missing values of each shown site."""
    by_name = {site.name: site for site in results.sites}
    return tuple(_site_row(by_name[name]) for name in chosen_sites(results))


def _site_row(site: Site) -> dict[str, Any]:
    total = sum(site.classes.values())
    shares = {label: count / total for label, count in site.classes.items()} if total else {}
    missing = [part.missing for part in site.features.values()]
    return {
        "name": site.name,
        "train": f"{site.train_patients:,}",
        "test": f"{site.test_patients:,}",
        "rows": f"{site.train_rows + site.test_rows:,}",
        "shares": [(label, share * 100) for label, share in shares.items()],
        "missing": f"{100 * sum(missing) / len(missing):.1f} %" if missing else "–",
    }


def cross_rows(results: Results) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Columns and rows of the cross-site matrix, cut to what can be read."""
    cross = results.cross_site
    if cross is None:
        return (), ()
    columns = cross.sites[:MOST]
    own = [name for name in cross.models if name in columns]
    models = own + [name for name in cross.models if name not in cross.sites]
    values = [v for row in cross.values for v in row if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    sign = -1.0 if metric_of(cross.metric).lower_is_better else 1.0
    rows = []
    for model in models:
        line = cross.values[cross.models.index(model)][: len(columns)]
        cells = tuple(_matrix_cell(value, low, high, sign) for value in line)
        rows.append(Row(arm_label(model) if model not in cross.sites else model, "", cells))
    return columns, tuple(rows)


def _matrix_cell(value: float | None, low: float, high: float, sign: float) -> Cell:
    if value is None:
        return Cell(number_text(None))
    share = (value - low) / (high - low) if high > low else 0.5
    return Cell(number_text(value), "", share if sign > 0 else 1.0 - share)


def privacy_rows(results: Results) -> tuple[Row, ...]:
    """What each shown site spent, on what."""
    rows = []
    for name in chosen_sites(results):
        spent = results.privacy.get(name)
        if spent is None:
            continue
        costs = (spent.epsilon, spent.training, spent.testing, spent.crosscheck)
        figures = (*map(epsilon_text, costs), delta_text(spent.delta), spent.unit)
        cells = [Cell(text) for text in figures]
        rows.append(Row(name, "", (*cells, Cell("; ".join(_releases(spent.events)) or "–"))))
    return tuple(rows)


def _releases(events: tuple[dict[str, Any], ...]) -> list[str]:
    counts = Counter(_event_text(charge["event"]) for charge in events)
    return [f"{count} × {text}" if count > 1 else text for text, count in counts.items()]


def _event_text(event: Mapping[str, Any]) -> str:
    noise = f"noise σ/C = {event['noise_multiplier']:.3g}" if "noise_multiplier" in event else ""
    if event.get("kind") == "sampled_gaussian":
        steps, share = event.get("steps", 1), event.get("sampling_probability", 1.0)
        return f"{steps} DP-SGD steps on {100 * share:.3g} % of the patients, {noise}"
    what = f"{event.get('purpose', event.get('kind', 'release'))} with {noise}"
    return f"{event['count']} × {what}" if event.get("count", 1) > 1 else what


def view_rows(results: Results) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """What a coordinator would have seen: metrics as columns, places as rows."""
    view = results.federation_view
    if view is None:
        return (), ()
    found = {name for place in view.metrics.values() for name in place}
    names = tuple(n for n in metric_names(results) if n in found)
    rows = []
    for place in (*chosen_sites(results), OVERALL):
        seen = view.metrics.get(place, {})
        cells = tuple(Cell(number_text(seen.get(name), decimals(results, name))) for name in names)
        rows.append(Row("Overall" if place == OVERALL else place, "", cells))
    return tuple(_upper(metric_of(name).label) for name in names), tuple(rows)


def _upper(label: str) -> str:
    return label[:1].upper() + label[1:]


def _unit(results: Results) -> str:
    units = {privacy.unit for privacy in results.privacy.values()}
    return "patient" if units == {"patient"} else "record"


def _delta(results: Results) -> str:
    return delta_text(max(privacy.delta for privacy in results.privacy.values()))
