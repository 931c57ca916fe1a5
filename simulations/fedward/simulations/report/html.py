"""`report.html`: one file that needs no internet, no script and nothing beside it.

The same results give the same bytes. Numbers are those of `results.json`, only rounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from fedward.common.files import write_atomic
from fedward.simulations.report import charts, views
from fedward.simulations.report.explain import summary
from fedward.simulations.report.glossary import glossary
from fedward.simulations.report.results import OVERALL, Results
from fedward.simulations.report.selection import chosen_sites, selection_note
from fedward.simulations.report.words import arm_label, duration_text, metric_of

_FOLDER = Path(__file__).parent


def write_report(results: Results, path: Path) -> None:
    """Write the report of a simulation, whole or not at all.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    write_atomic(path, render(results))


def render(results: Results) -> str:
    """The whole page as text."""
    return render_page(_FOLDER / "template.html.j2", _context(results))


def render_page(template: Path, context: Mapping[str, Any]) -> str:
    """Any page in the style of the report, which the template takes as `css`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    css = Markup((_FOLDER / "style.css").read_text("utf-8"))  # noqa: S704  (our own file)
    return environment.get_template(template.name).render(css=css, **context)


def _unbroken(sentence: str) -> Markup:
    """The sentence, escaped, in which no interval is divided between two lines."""
    safe = str(escape(sentence))
    return Markup(re.sub(r"[\d.,−]+ \([^)]*\)", r'<span class="whole">\g<0></span>', safe))  # noqa: S704


def _context(results: Results) -> dict[str, Any]:
    sites = chosen_sites(results)
    everywhere = (*(site.name for site in results.sites), OVERALL)
    columns, cross = views.cross_rows(results)
    seen, view = views.view_rows(results)
    return {
        "r": results,
        "study": results.study,
        "metric": metric_of(results.study.metric).label,
        "summary": summary(results),
        "figures": views.key_figures(results),
        "arms": [(arm, arm.replace("_", "-"), arm_label(arm)) for arm in results.arms],
        "sites": sites,
        "note": selection_note(results),
        "headline": views.headline_rows(results, (*sites, OVERALL)),
        "all_sites": everywhere if len(results.sites) > len(sites) else (),
        "flat": lambda arm, place: views.flat(results, arm, place),
        "overall_metrics": views.metric_rows(results, OVERALL),
        "site_metrics": [(site, views.metric_rows(results, site)) for site in sites],
        "test_counts": {site.name: f"{site.test_patients:,}" for site in results.sites},
        "site_rows": views.site_rows(results),
        "features": views.feature_rows(results),
        "all_features": len({name for site in results.sites for name in site.features}),
        "privacy_rows": views.privacy_rows(results),
        "cross_columns": columns,
        "cross": cross,
        "seen": seen,
        "view": view,
        "glossary": glossary(results),
        "cross_metric": metric_of(results.cross_site.metric).label if results.cross_site else "",
        "arm_label": arm_label,
        "duration": duration_text,
        "seconds": duration_text(results.timing.seconds),
        "level": f"{results.study.confidence * 100:g} %",
        **_charts(results, sites),
    }


def _charts(results: Results, sites: tuple[str, ...]) -> dict[str, Any]:
    safe = Markup
    limits = charts.curve_limits(results)
    with_roc = [s for s in sites if any(s in by_site for by_site in results.roc.values())]
    with_bins = [s for s in sites if any(s in by_site for by_site in results.calibration.values())]
    return {
        "forest": safe(charts.forest(results)),
        "curves": [
            (arm, arm_label(arm), safe(charts.curve(results, arm, limits)))
            for arm in results.arms
            if results.curves.get(arm)
        ],
        "rocs": [(site, safe(charts.roc(results, site))) for site in with_roc],
        "calibrations": [(site, safe(charts.calibration(results, site))) for site in with_bins],
        "drifts": [safe(charts.drift(results, what)) for what in ("norm", "cosine")]
        if results.drift
        else [],
        "privacy_chart": safe(charts.privacy(results))
        if any(p.per_round for p in results.privacy.values())
        else "",
    }
