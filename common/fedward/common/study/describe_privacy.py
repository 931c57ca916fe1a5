"""The privacy of a study in plain words: what (ε, δ) means, costs and does not cover."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedward.common.errors import PrivacyError
from fedward.common.study.schema import Study

if TYPE_CHECKING:
    from fedward.common.privacy.plan import PrivacyPlan

EXAMPLE_SITES = (200, 1000)
"""Training patients of the sites for which costs are worked out."""
_SHARES = (0.25, 0.5)


def costs(study: Study) -> Iterator[str]:
    """What the study costs a patient, and how noisy it makes sites of different size."""
    privacy = study.privacy
    if privacy.epsilon is None or privacy.delta is None or not study.private:
        yield "There is no privacy guarantee: the study says mode = 'none'"
        return
    who = "patient" if privacy.unit == "patient" else "single record (not patient)"
    yield (
        f"Each {who} has the promise ε = {privacy.epsilon:g}, δ = {privacy.delta:g} over the whole "
        "study, training and evaluation together"
    )
    yield (
        "In words: whoever sees everything that the hospital sent, and knows all its other "
        f"patients, can guess whether one {privacy.unit} is among the data with odds at most "
        f"{_factor(privacy.epsilon)} times better than before; a chance of about 1 in "
        f"{1 / privacy.delta:,.0f} of a worse outcome is left"
    )
    rows = f" and to {privacy.max_rows_per_patient} rows" if privacy.unit == "patient" else ""
    yield (
        f"A {privacy.unit}'s influence on each step is cut to {privacy.max_grad_norm:g}{rows}; "
        "then noise of σ times that is added"
    )
    for patients in EXAMPLE_SITES:
        yield _example(study, patients)
    yield (
        "A hospital that takes part in other studies with the same patients adds up what they cost"
    )


def _factor(epsilon: float) -> str:
    if epsilon > 20:
        return f"e^{epsilon:g}"
    factor = math.exp(epsilon)
    return f"e^{epsilon:g} = {factor:,.0f}" if factor >= 100 else f"e^{epsilon:g} = {factor:.1f}"


def _example(study: Study, patients: int) -> str:
    """σ, and ε against the number of rounds, at a site with so many training patients."""
    from fedward.common.privacy.plan import make_plan  # loads the accountants

    try:
        plan = make_plan(study, patients)
    except PrivacyError as refusal:
        return f"A site of {patients:,} training patients would be refused: {refusal.problem}"
    return (
        f"A site of {patients:,} training patients: σ = {plan.noise_multiplier:.2f}, each step "
        f"draws a patient with probability {plan.sampling_probability:.3g}; ε after "
        f"{', '.join(_progress(plan))}"
    )


def _progress(plan: PrivacyPlan) -> Iterator[str]:
    from fedward.common.privacy.accounting import epsilon

    before = plan.total()[:-1]  # what comes before training: preprocessing, if it is paid for
    for share in _SHARES:
        rounds = math.floor(plan.rounds * share)
        if rounds:
            spent = epsilon((*before, *(plan.training_event(),) * rounds), plan.delta)
            yield f"{rounds * plan.steps_per_round:,} steps {spent:.2f}"
    total = plan.rounds * plan.steps_per_round
    yield f"all {total:,} steps {epsilon(plan.total(), plan.delta):.2f}"


def protections(study: Study) -> Iterator[str]:
    """What the study's settings protect against, and what stays possible."""
    if study.private:
        yield (
            f"Protects each {study.privacy.unit} against anyone who sees the updates, the counts "
            "or the released model, the server and the other hospitals included"
        )
        yield (
            "Does not hide what is true of patients in general: a model may reveal that smokers "
            "fall ill more often"
        )
        yield (
            "Does not cover that a hospital takes part, or refuses to: where the study says "
            '"refuse" (missing values, values out of range, one class only), a single patient may '
            "decide that"
        )
        if study.privacy.unit == "record":
            yield "Does not promise anything to a patient who has several records"
    else:
        yield (
            "Raw data stay in the hospital, and that is all: from updates and from the model, "
            "someone with skill may reconstruct or recognise single patients"
        )
    yield (
        "The server sees each hospital's update by itself (secure aggregation is off), so it can "
        "tell hospitals apart"
    )
    if study.algorithm.name in ("fedmedian", "fedtrimmedavg"):
        yield "A minority of broken or hostile hospitals cannot take over the model"
    elif study.aggregation.max_update_norm is not None:
        yield (
            "A broken or hostile hospital can move the model by a limited amount only "
            f"(norm {study.aggregation.max_update_norm:g} per round)"
        )
    else:
        yield "A broken or hostile hospital can spoil the model: its update is not limited"
