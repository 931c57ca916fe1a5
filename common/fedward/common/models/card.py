"""The model card: what a model is for, how well it does, and what it promises, in plain words.

Its sections follow Mitchell et al. 2019 (Model Cards for Model Reporting, section 4): details,
intended use, factors, metrics, evaluation and training data, quantitative analyses, ethical
considerations, caveats. It says nothing about patients that the caller did not put in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedward.common.models.provenance import Provenance
from fedward.common.study.schema import Feature, Study

OVERALL = "overall"
MAX_SITES = 20
"""Sites listed by name in a table; a simulation may have thousands."""

Metrics = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | None]]]]
"""`[arm][site or "overall"][metric]` → `{"value", "low", "high"}`, as in `results.json`."""

_ARM_WORDS = {
    "local": "each hospital alone",
    "federated": "this model (federated)",
    "federated_no_dp": "federated without DP",
    "pooled": "all data in one place",
}
_NONE = "–"


@dataclass(frozen=True)
class CardFacts:
    """What is known about a model besides its study.

    Attributes:
        sites: names of the hospitals that trained it.
        empty_rounds: rounds in which nobody took part.
        others: invited hospitals about which a reader has to know more, such as "withdrew".
        patients: by site, how many patients in words the caller answers for, such as "about 300";
            never computed here, so that no exact small count slips out.
        metrics: results on test patients.
        privacy: by site, `{"epsilon", "delta", "unit"}` as really spent; more keys are ignored.
    """

    sites: Sequence[str] = ()
    empty_rounds: Sequence[int] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    privacy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def render_card(study: Study, provenance: Provenance, facts: CardFacts) -> str:
    """The text of MODEL_CARD.md; the same arguments give the same text."""
    parts = (
        f"# Model card: {_line(study.study.title)}",
        f"> **{_capital(provenance.notice)}.**" if provenance.notice else "",
        _details(study),
        _intended_use(study),
        _inputs(study),
        _training_data(study, facts),
        _performance(study, facts),
        _privacy(study, provenance, facts),
        _limitations(study),
        _how_to_use(study),
        _origin(provenance),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _details(study: Study) -> str:
    task = study.task
    what = {
        "binary": lambda: (
            f"the probability that *{_line(task.target)}* is "
            f"*{_line(task.labels[1])}* rather than *{_line(task.labels[0])}*"
        ),
        "multiclass": lambda: (
            f"a probability for each value of *{_line(task.target)}*: "
            + ", ".join(map(_line, task.labels))
        ),
        "regression": lambda: f"the value of *{_line(task.target)}*",
    }[task.kind]()
    settings = ", ".join(
        f"{key} = {_line(str(value))}"
        for key, value in study.model.model_dump(mode="json").items()
        if key != "name"
    )
    return (
        f"## What this is\n\nA model that estimates {what}.\n\n"
        f"- Model: {study.model.name}" + (f" ({settings})" if settings else "") + "\n"
        f"- Trained by federated learning ({study.algorithm.name}, {study.training.rounds} rounds):"
        " patient records stayed in their hospitals, model weights travelled\n"
        f"- Study: {study.study.name}, version {_line(study.study.version)}\n"
        f"- Contact: {_line(study.study.contact)}"
    )


def _intended_use(study: Study) -> str:
    return (
        f"## Intended use\n\n{_line(study.study.purpose)}\n\n"
        "It is meant for people who can judge its scores: researchers, and clinicians who take part"
        " in its evaluation.\n\n"
        "## Not for\n\n"
        "- Decisions about a patient without a clinician: it is not a medical device and was not"
        " approved as one.\n"
        "- Patients unlike those it was trained on: other age groups, devices, laboratories or"
        " care.\n"
        "- Inputs outside the ranges below; `fedward predict` refuses them or treats them as the"
        " study says."
    )


def _inputs(study: Study) -> str:
    image = study.preprocess.image
    if image is not None:
        kind = "grey-scale" if image.channels == 1 else "colour"
        return (
            f"## Inputs\n\nOne {kind} image per row, resized to {image.height} × {image.width}"
            f" pixels (denoise: {image.denoise}, contrast: {image.contrast})."
        )
    rows = [
        (f.name, f.type, f.unit or _NONE, _allowed(f), _MISSING[f.missing])
        for f in study.data.features
    ]
    head = ("column", "type", "unit", "allowed", "if missing")
    return "## Inputs\n\n" + _table(head, rows)


_MISSING = {"impute": "filled in", "indicator": "filled in and marked", "refuse": "refused"}


def _allowed(feature: Feature) -> str:
    if feature.type == "boolean":
        return "0 or 1"
    if feature.type == "categorical":
        return ", ".join(feature.categories) or "as found at the sites"
    low = _NONE if feature.min is None else f"{feature.min:g}"
    high = _NONE if feature.max is None else f"{feature.max:g}"
    return "any" if (low, high) == (_NONE, _NONE) else f"{low} to {high}"


def _training_data(study: Study, facts: CardFacts) -> str:
    lines = [
        f"- {_line(site)}"
        + (f": {_line(facts.patients[site])} patients" if site in facts.patients else "")
        for site in facts.sites[:MAX_SITES]
    ]
    if len(facts.sites) > MAX_SITES:
        lines.append(f"- … and {len(facts.sites) - MAX_SITES} more")
    others = [f"- {_line(site)}: {_line(why)}" for site, why in sorted(facts.others.items())]
    unit = "patients" if study.privacy.unit == "patient" else "records"
    empty = (
        f"In {len(facts.empty_rounds)} of {study.training.rounds} rounds nobody took part, and the"
        f" model stayed as it was: round {', '.join(map(str, facts.empty_rounds))}.\n\n"
        if facts.empty_rounds
        else ""
    )
    return (
        "## Training and test data\n\n"
        + ("Hospitals that trained the model:\n\n" + "\n".join(lines) + "\n\n" if lines else "")
        + ("To be known of invited hospitals:\n\n" + "\n".join(others) + "\n\n" if others else "")
        + empty
        + f"At each hospital, {unit} were divided into training and test sets"
        f" ({study.evaluation.holdout:.0%} for testing, unless the data say which). The figures"
        " below are for test sets only."
    )


def _performance(study: Study, facts: CardFacts) -> str:
    if not facts.metrics:
        return "## Performance\n\nNo results were recorded with this model."
    headline = study.evaluation.metric
    arms = [arm for arm in _ARM_WORDS if arm in facts.metrics]
    arms += sorted(set(facts.metrics) - set(arms))
    places = _places(facts.metrics.values())
    text = (
        f"## Performance\n\nIn brackets: {study.evaluation.confidence:.0%} intervals."
        f" {_NONE} means that it cannot be computed there.\n\n**{headline}**, by way of"
        " training\n\n"
        + _table(
            ("hospital", *(_ARM_WORDS.get(arm, arm) for arm in arms)),
            [(p, *(_estimate(facts.metrics[a], p, headline) for a in arms)) for p in places],
        )
    )
    own = facts.metrics.get("federated", {})
    names = sorted({name for figures in own.values() for name in figures} - {headline})
    if names:
        rows = [(p, *(_estimate(own, p, name) for name in names)) for p in _places([own])]
        text += "\n\n**All other figures** of this model\n\n" + _table(("hospital", *names), rows)
    return text


def _places(arms: Iterable[Mapping[str, object]]) -> list[str]:
    found = dict.fromkeys(place for arm in arms for place in arm)
    sites = [place for place in found if place != OVERALL][:MAX_SITES]
    return sites + ([OVERALL] if OVERALL in found else [])


def _estimate(
    arm: Mapping[str, Mapping[str, Mapping[str, float | None]]], place: str, metric: str
) -> str:
    found = arm.get(place, {}).get(metric, {})
    value, low, high = (found.get(key) for key in ("value", "low", "high"))
    if value is None or not math.isfinite(value):
        return _NONE
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _privacy(study: Study, provenance: Provenance, facts: CardFacts) -> str:
    if not study.private:
        return (
            "## Privacy\n\nPatient records did not leave the hospitals, but the model was trained"
            " **without differential privacy**. Weights can reveal details of single patients."
            " Share the model only with people who may see the data."
        )
    unit = study.privacy.unit
    rows = [
        (site, _up(spent.get("epsilon")), f"{spent['delta']:g}", str(spent["unit"]))
        for site, spent in list(facts.privacy.items())[:MAX_SITES]
    ]
    table = _table(("hospital", "ε spent", "δ", "unit"), rows) + "\n\n" if rows else ""
    level = (
        "A patient's every row counts together."
        if unit == "patient"
        else "This is **record-level**: a patient with several rows is protected less."
    )
    unsafe = (
        "\n\n**This model was simulated.** Its noise can be repeated by anyone who knows the seed,"
        " so the figures show what a real run would promise; they protect nobody here."
    )
    return (
        f"## Privacy\n\nThe study allows ε = {study.privacy.epsilon:g} at δ ="
        f" {study.privacy.delta:g} for each {unit} at each hospital, over the whole study (adding"
        f" or removing one {unit}). {level}\n\n{table}"
        "- It protects against learning from the model whether a given person took part, or what"
        " their record holds beyond what others' records teach. Smaller ε protects more; above"
        " about 10 the promise is weak.\n"
        "- It does not hide what is true of the whole group, it does not protect a person whose"
        " records are in several hospitals at once (the ε add up), and it does not protect data"
        " that leave a hospital in another way." + (unsafe if provenance.simulated else "")
    )


def _up(epsilon: float | None) -> str:
    """ε rounded up: a rounded promise must never be stronger than the real one."""
    if epsilon is None or not math.isfinite(epsilon):
        return "unlimited"
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def _limitations(study: Study) -> str:
    noise = " Noise for privacy hits small groups hardest." if study.private else ""
    return (
        "## Limitations and fairness\n\n"
        "- Results differ between hospitals; look at the row that is most like yours.\n"
        "- Small hospitals have wide intervals: a difference within them means little.\n"
        "- It was not tested here by sex, age, origin or device. Do so before use: groups with few"
        f" patients may be served worse.{noise}\n"
        "- Medicine changes: test again on recent patients, and calibrate the scores to yours."
    )


def _how_to_use(study: Study) -> str:
    source = "patients.csv" if study.data.modality == "tabular" else "images/"
    reference = ""
    if "site" in (study.preprocess.standardise, study.preprocess.impute):
        reference = " --reference our_table.csv"
    return (
        "## How to use it\n\n```\npip install 'fedward[client]'\n"
        f"fedward predict MODEL_FOLDER {source}{reference}\n```\n\n"
        "The command verifies every file of the model first."
    )


def _origin(provenance: Provenance) -> str:
    versions = ", ".join(f"{name} {_line(v)}" for name, v in sorted(provenance.versions.items()))
    seed = "none" if provenance.seed is None else str(provenance.seed)
    return (
        f"## Provenance\n\n- Study hash: `{provenance.study_hash}`\n- Seed: {seed}\n"
        f"- Versions: {versions or 'not recorded'}\n"
        "- `manifest.json` holds the SHA-256 of every file."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_line, line)) + " |" for line in lines)


def _line(text: str) -> str:
    """One line that cannot break out of its table cell or become markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
