"""Whatever went wrong without ending the run, in words: it is reported, never hidden.

A run can go wrong quietly: sites drop out of rounds, a baseline diverges, or the weights grow until
every score is 0 or 1 while an AUROC still looks like something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedward.common.study.schema import Study
from fedward.simulations.arms import ArmResult
from fedward.simulations.judging import Judgement

MOST_WARNINGS = 20
_SATURATED = 1e-6
"""A score this close to 0 or 1 says that odds are a million to one, which no such data can show."""
_NEARLY_ALL = 0.99


def warnings_of(
    study: Study, arms: Sequence[ArmResult], judgements: Mapping[str, Mapping[str, Judgement]]
) -> tuple[str, ...]:
    """What a reader of the results must know before believing them; one line each.

    At most `MOST_WARNINGS` lines; the last one then says how many more there are.
    """
    found = [line for arm in arms for line in _left_out(arm)]
    for arm in arms:
        judged = judgements.get(arm.name, {})
        if judged:
            found += [f"{arm.name}: {sign}" for sign in _signs(study, list(judged.values()))]
    if len(found) > MOST_WARNINGS:
        more = len(found) - MOST_WARNINGS + 1
        found = [*found[: MOST_WARNINGS - 1], f"and {more} more warnings of this kind"]
    return tuple(found)


def _left_out(arm: ArmResult) -> Iterator[str]:
    for site, reason in arm.failed.items():
        yield f"{arm.name}{', ' + site if site else ''}: could not be trained: {reason}"
    for outcome in arm.outcomes.values():
        rounds = len(outcome.history)
        empty = [str(record.round) for record in outcome.history if not record.participants]
        if empty:
            yield (
                f"{arm.name}: nobody took part in {len(empty)} of {rounds} rounds, so the model "
                f"stayed as it was in round {', '.join(empty)}"
            )
        refusals = [pair for record in outcome.history for pair in record.refused.items()]
        for (site, reason), times in Counter(refusals).items():
            yield f"{arm.name}, {site}: left out of {times} of {rounds} rounds: {reason}"


def _signs(study: Study, judged: Sequence[Judgement]) -> Iterator[str]:
    """Signs that a model is worthless, from its scores on everybody's test patients."""
    truth = np.concatenate([one.truth for one in judged]).astype(np.float64)
    scores = np.concatenate([one.scores for one in judged]).astype(np.float64)
    if study.task.kind == "regression":
        if _squared_error(truth, scores[:, 0]) > _squared_error(truth, truth.mean()):
            yield "its values are further from the truth than the mean of all would be; " + _ADVICE
        return
    if _share_saturated(scores) >= _NEARLY_ALL:
        yield (
            "nearly every score is exactly 0 or 1: training diverged; "
            "lower [training] learning_rate and do not use this model"
        )
    elif _brier(truth, scores) > _brier_of_shares(truth, scores.shape[1]):
        yield (
            "its scores are further from the truth than the share of each class would be; "
            + _ADVICE
        )


_ADVICE = (
    "change [training] learning_rate or rounds, or, under differential privacy, allow a larger "
    "epsilon or gather more patients"
)


def _squared_error(truth: NDArray[np.float64], guess: NDArray[np.float64] | float) -> float:
    return float(np.square(truth - guess).mean())


def _share_saturated(scores: NDArray[np.float64]) -> float:
    edge = np.minimum(scores, 1.0 - scores)
    return float((edge < _SATURATED).all(axis=1).mean())


def _brier(truth: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    return float(np.square(_one_hot(truth, scores.shape[1]) - scores).sum(axis=1).mean())


def _brier_of_shares(truth: NDArray[np.float64], outputs: int) -> float:
    hot = _one_hot(truth, outputs)
    return float(np.square(hot - hot.mean(axis=0)).sum(axis=1).mean())


def _one_hot(truth: NDArray[np.float64], outputs: int) -> NDArray[np.float64]:
    """`[rows, outputs]`; of the positive class alone if there is one output."""
    if outputs == 1:
        return truth[:, None]
    return np.asarray(truth[:, None] == np.arange(outputs), dtype=np.float64)
