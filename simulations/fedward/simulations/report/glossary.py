"""What the numbers of the report mean, in plain words."""

from __future__ import annotations

from fedward.simulations.report.results import Results
from fedward.simulations.report.words import metric_names, metric_of

_METRICS = {
    "auroc": (
        "Take one patient with the finding and one without, at random: how often does the "
        "model give the first the higher score? 0.5 is a coin toss, 1 is perfect. It does not "
        "depend on how frequent the finding is."
    ),
    "auprc": (
        "How pure the alarms are, averaged over all thresholds. A model that guesses gets the "
        "share of patients with the finding, so compare it with that share, not with 0.5."
    ),
    "accuracy": (
        "The share of test patients whose predicted class is right. Misleading where one "
        "class is rare."
    ),
    "balanced_accuracy": (
        "The mean of the shares that are right in each class: accuracy as if all classes were "
        "equally frequent."
    ),
    "sensitivity": "Of the patients with the finding, the share that the model finds.",
    "specificity": "Of the patients without the finding, the share that the model clears.",
    "precision": "Of the patients whom the model flags, the share that have the finding.",
    "f1": "One number for precision and sensitivity together (their harmonic mean).",
    "brier": (
        "The mean squared distance between predicted risk and what happened. 0 is perfect; "
        "lower is better."
    ),
    "calibration_slope": (
        "Whether risks are spread rightly. 1 is ideal; below 1 the model is too sure of "
        "itself, above 1 too timid."
    ),
    "calibration_error": (
        "How far predicted risks are, on average, from the shares observed. 0 is perfect."
    ),
    "rmse": "The typical size of an error, in the unit of the target; large errors count more.",
    "mae": "The mean size of an error, in the unit of the target.",
    "r2": (
        "The share of the target's variation that the model explains. 0 is no better than "
        "always saying the mean; below 0 is worse than that."
    ),
}
_ALWAYS = {
    "Local only": "Each hospital trains on its own patients and is tested on its own.",
    "Federated": "Hospitals train together. Records stay where they are; only weights travel.",
    "Pooled": (
        "All records are put in one place and one model is trained. The comparison that a "
        "real federation cannot make."
    ),
    "Overall": "All hospitals' test patients together.",
}
_INTERVAL = (
    "The range in brackets. If the test patients were drawn anew many times, about {level} % of "
    "such ranges would hold the true value. Few patients make it wide. It does not cover the "
    "chance of training itself."
)
_ROC = (
    "ROC curve",
    (
        "Each threshold on the score gives one point: how many patients with the finding are "
        "found, at how many false alarms. The nearer to the top left corner, the better."
    ),
)
_CALIBRATION = (
    "Calibration",
    "Of patients with a predicted risk of 20 %, do 20 % have the finding? On the diagonal, yes.",
)
_DRIFT = (
    "Client drift",
    (
        "How differently hospitals pull the model. The norm is the size of a hospital's "
        "update; a cosine of 1 means that it agrees with the mean update, 0 that it is "
        "unrelated, below 0 that it opposes."
    ),
)
_PRIVACY = {
    "ε (epsilon)": (
        "The privacy loss. Whatever anyone concludes about a patient from the model can be at "
        "most e^ε times as likely as if that patient had never been in the data. Smaller is "
        "more private: 1 is strict, above 10 says little."
    ),
    "δ (delta)": (
        "The small probability with which the promise of ε may fail. It should be well below "
        "one in the number of patients."
    ),
    "Unit": "Whose data the promise covers: a patient with all rows, or only a single record.",
}


def glossary(results: Results) -> tuple[tuple[str, str], ...]:
    """`(term, meaning)` of everything that the report of these results shows."""
    level = round(results.study.confidence * 100, 1)
    entries = list(_ALWAYS.items())
    entries += [
        (_heading(metric_of(name).label), _METRICS[name.removeprefix("macro_")])
        for name in metric_names(results)
        if name.removeprefix("macro_") in _METRICS
    ]
    entries.append(("Confidence interval", _INTERVAL.format(level=f"{level:g}")))
    entries += [_ROC] if results.roc else []
    entries += [_CALIBRATION] if results.calibration else []
    entries += [_DRIFT] if results.drift else []
    entries += _PRIVACY.items() if results.privacy else []
    return tuple(entries)


def _heading(label: str) -> str:
    return label[0].upper() + label[1:]
