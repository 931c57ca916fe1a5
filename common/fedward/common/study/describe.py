"""A study in plain words, for those who decide whether their hospital takes part.

Everything said here is computed from the study file; nothing is a promise that the code does not
keep. What a patient's privacy costs is in `describe_privacy`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from fedward.common.preprocess.layout import needs_federated
from fedward.common.study.describe_privacy import costs, protections
from fedward.common.study.load import study_hash
from fedward.common.study.schema import Feature, Study

WIDTH = 100
_ALGORITHMS = {
    "fedavg": "the weighted mean of the sites' models (FedAvg)",
    "fedprox": "the weighted mean of the sites' models, each held near the shared one (FedProx)",
    "fedadam": "an adaptive step towards the sites' mean model (FedAdam)",
    "fedyogi": "an adaptive step towards the sites' mean model (FedYogi)",
    "fedadagrad": "an adaptive step towards the sites' mean model (FedAdagrad)",
    "fedavgm": "a step with momentum towards the sites' mean model (FedAvgM)",
    "fedmedian": "the median of the sites' models, weight by weight (FedMedian)",
    "fedtrimmedavg": "the mean of the sites' models without the extremes (FedTrimmedAvg)",
}
_MISSING = {
    "impute": "may be missing",
    "indicator": "may be missing, which the model is told",
    "refuse": "must be present",
}


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands under it, one statement per line, without line breaks."""

    title: str
    lines: tuple[str, ...]

    def wrapped(self, line: str) -> str:
        """A line as a list item of at most `WIDTH` columns."""
        return textwrap.fill(
            line, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False
        )


def describe(study: Study) -> tuple[Chapter, ...]:
    """Explain a study.

    Returns:
        Chapters in reading order. Under differential privacy, costs are worked out for example
        sites, which takes seconds.
    """
    return (
        Chapter("The question", tuple(_question(study))),
        Chapter("Data that a hospital needs", tuple(_data(study))),
        Chapter("What happens", tuple(_procedure(study))),
        Chapter("What leaves a hospital", tuple(_leaves(study))),
        Chapter("What never leaves a hospital", tuple(_stays(study))),
        Chapter("What it costs in privacy", tuple(costs(study))),
        Chapter("What this protects against, and what not", tuple(protections(study))),
    )


def parameters(study: Study) -> int | None:
    """How many numbers the model consists of; None if the data decide (unlisted categories)."""
    from fedward.common.models.state import build_module, count_parameters  # loads torch

    shape = _input_shape(study)
    if shape is None:
        return None
    return count_parameters(build_module(study.model, shape, study.task.outputs, seed=0))


def _input_shape(study: Study) -> tuple[int, ...] | None:
    image = study.preprocess.image
    if image is not None:
        return (image.channels, image.height, image.width)
    if any(not feature.categories for feature in study.data.categorical):
        return None
    levels = sum(len(feature.categories) for feature in study.data.categorical)
    indicators = sum(feature.missing == "indicator" for feature in study.data.features)
    return (len(study.data.numeric) + levels + indicators,)


def _question(study: Study) -> Iterator[str]:
    about = study.study
    yield f"{about.title} ({about.name}, version {about.version})"
    yield f"Purpose: {about.purpose}"
    yield f"Contact: {about.contact}"
    yield f"To be predicted: {_task(study)}"
    yield f"Study hash, which names exactly this protocol: {study_hash(study)}"


def _task(study: Study) -> str:
    task = study.task
    if task.kind == "regression":
        limits = f" between {task.bounds[0]:g} and {task.bounds[1]:g}" if task.bounds else ""
        return f"the value of '{task.target}'{limits}"
    if task.kind == "binary":
        return f"the probability that '{task.target}' is '{task.labels[1]}', not '{task.labels[0]}'"
    return f"the probability of each value of '{task.target}': {', '.join(task.labels)}"


def _data(study: Study) -> Iterator[str]:
    image = study.preprocess.image
    if image is not None:
        colour = "grey" if image.channels == 1 else "colour"
        yield f"Pictures, brought to {image.height} × {image.width} pixels, {colour}"
    for feature in study.data.features:
        yield _feature(feature)
    yield f"The outcome '{study.task.target}' of each patient"
    if study.privacy.unit == "patient":
        yield "An identifier that tells patients apart; it is used at the site only"
    yield (
        f"{study.evaluation.holdout:.0%} of a hospital's patients are kept for testing and never "
        "trained on, unless the hospital's data say which"
    )


def _feature(feature: Feature) -> str:
    unit = f" in {feature.unit}" if feature.unit else ""
    if feature.type == "categorical":
        listed = ", ".join(feature.categories) or "any that enough patients have"
        values = f"one of: {listed}"
    elif feature.type == "boolean":
        values = "yes or no"
    else:
        values = f"a number{unit}{_limits(feature)}"
    return f"{feature.name}: {values}; {_MISSING[feature.missing]}"


def _limits(feature: Feature) -> str:
    if feature.min is not None and feature.max is not None:
        return f" from {feature.min:g} to {feature.max:g}"
    if feature.min is not None:
        return f" of at least {feature.min:g}"
    return f" of at most {feature.max:g}" if feature.max is not None else ""


def _procedure(study: Study) -> Iterator[str]:
    training, size = study.training, parameters(study)
    model = f"{size:,} numbers" if size else "a size that the categories found decide"
    yield f"The model is '{study.model.name}', {model}"
    if training.local_steps is not None:
        local = f"{training.local_steps} steps"
    else:
        passes = "1 pass" if training.local_epochs == 1 else f"{training.local_epochs} passes"
        local = f"{passes} over its training patients"
    unit = "patients (on average)" if study.private else "rows"
    yield (
        f"In each of {training.rounds} rounds the server sends the shared model; a hospital trains "
        f"it for {local}, {training.batch_size} {unit} at a time, and sends it back"
    )
    yield f"The server combines them: {_ALGORITHMS[study.algorithm.name]}"
    size_or_equal = "by its size" if study.aggregation.weights == "size" else "the same"
    yield f"Each hospital counts {size_or_equal}"
    if study.aggregation.participation < 1:
        yield f"{study.aggregation.participation:.0%} of the hospitals are asked in each round"


def _leaves(study: Study) -> Iterator[str]:
    size = parameters(study)
    model = f"{size:,} model weights" if size else "The model weights"
    noised = ", trained with noise that hides each patient" if study.private else ""
    yield f"{model}, at most {study.training.rounds} times{noised}"
    released = tuple(_before_training(study))
    if released:
        how = "with noise" if study.private else f"{_rounded(study)}, {_enough(study)}"
        yield f"Once, before training: {' and '.join(released)}, {how}"
    if study.task.kind == "regression":
        what = "sums of errors"
    else:
        what = f"counts of its test patients by score (in {study.evaluation.bins} steps) and label"
    how = "with noise" if study.private else _enough(study)
    yield f"{_evaluations(study)}, for evaluation: {what}, {how}"
    yield "The hospital's name, and whether a round succeeded"


def _before_training(study: Study) -> Iterator[str]:
    if needs_federated(study):
        yield "sums, sums of squares and counts over all its training patients"
    if study.aggregation.weights == "size":
        yield "how many training patients it has"


def _enough(study: Study) -> str:
    return f"nothing about fewer than {study.evaluation.min_cell} patients"


def _rounded(study: Study) -> str:
    return f"counts rounded to multiples of {study.evaluation.min_cell}"


def _evaluations(study: Study) -> str:
    every = study.evaluation.every
    return "Once" if every == 0 else f"Every {every} rounds and at the end"


def _stays(study: Study) -> Iterator[str]:
    subject = "picture" if study.data.modality == "image" else "row of the table"
    yield f"Any {subject}, any patient identifier, any single prediction"
    exact = "Exact numbers" if study.private else f"Numbers below {study.evaluation.min_cell}"
    yield f"{exact} of patients or of labels; losses; gradients of single patients"
    yield "The data quality report, error texts that quote data, file names"
