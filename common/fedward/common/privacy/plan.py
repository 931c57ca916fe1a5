"""One value that both runs and is accounted: how a site keeps a study's promise to its patients.

`make_plan` turns the study's budget into noise. Sampler, clip and noise of DP-SGD are methods of
the plan, and so are the events that a ledger stores, so the two cannot come apart.

Guarantee:
    Take two data sets of a site that differ in one patient: all rows of that patient are there or
    not. With q, C, k, σ and the number of steps of the plan held fixed, everything the site
    releases in the study is (ε, δ)-indistinguishable between the two:

    - a patient kept for training is in the preprocessing statistics (once, everyone) and in the
      training steps (Poisson sampling, at most k rows each, clipped at C): together at most (ε, δ);
    - a patient kept for testing is only in the evaluations: together at most (ε, δ). Who tests is
      decided for each patient alone (by keyed hash), so no patient is ever in both, and adding one
      moves nobody else.

    q is fixed for the site before training. It comes from the number of patients there, as do the
    noise multiplier and the steps of a local epoch; all three are therefore facts about the site
    that the promise does not cover, and none may leave it in a form that gives an exact count away.

    Noise has standard deviation σ·C and is added to the sum, once a step, also when nobody was
    sampled. The sum is divided by the expected batch, a number from the study file, never by the
    number of patients that were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import PrivacyError
from fedward.common.preprocess.layout import needs_federated
from fedward.common.privacy.accounting import epsilon as epsilon_of
from fedward.common.privacy.calibration import gaussian_noise_multiplier, noise_multiplier_for
from fedward.common.privacy.events import GaussianRelease, PrivacyEvent, SampledGaussian
from fedward.common.privacy.mechanisms import (
    add_gaussian,
    add_gaussian_to_each,
    clip_factors,
    poisson_drawn,
    poisson_sample,
    sample_rows,
)
from fedward.common.privacy.randomness import Randomness
from fedward.common.study import Study


@dataclass(frozen=True)
class PrivacyPlan:
    """What a site does, and what that costs. Made by `make_plan`.

    Attributes:
        unit: whose data the promise protects: all rows of a patient, or one row.
        epsilon: ε of the whole study, for each unit.
        delta: δ of the whole study.
        max_grad_norm: C, the L2 bound on one patient's gradient.
        noise_multiplier: σ/C of each training step.
        sampling_probability: q, with which each patient is in a step.
        expected_batch: patients that a step's sum is divided by; public.
        steps_per_round: training steps at this site in one round.
        rounds: of the study.
        max_rows_per_patient: k, rows of one patient that a step uses at most.
        statistics_noise_multiplier: σ/C of the preprocessing statistics; None without any.
        evaluation_noise_multiplier: σ/C of one evaluation.
        evaluations: how many evaluations the study has.
    """

    unit: Literal["patient", "record"]
    epsilon: float
    delta: float
    max_grad_norm: float
    noise_multiplier: float
    sampling_probability: float
    expected_batch: int
    steps_per_round: int
    rounds: int
    max_rows_per_patient: int
    statistics_noise_multiplier: float | None
    evaluation_noise_multiplier: float
    evaluations: int

    def training_event(self) -> SampledGaussian:
        """Cost of one round of training."""
        return self._training_event

    @cached_property
    def _training_event(self) -> SampledGaussian:
        return SampledGaussian(
            self.sampling_probability, self.noise_multiplier, self.steps_per_round
        )

    def statistics_event(self) -> GaussianRelease:
        """Cost of the preprocessing statistics.

        Raises:
            PrivacyError: the study has none, so nothing was set aside for them.
        """
        if self.statistics_noise_multiplier is None:
            raise PrivacyError(
                "this study pays for no statistics before training",
                hint="do not release any, or make the plan from a study that needs them",
            )
        return GaussianRelease(self.statistics_noise_multiplier, 1, "statistics")

    def evaluation_event(self) -> GaussianRelease:
        """Cost of one evaluation, borne by the patients kept for testing."""
        return GaussianRelease(self.evaluation_noise_multiplier, 1, "evaluation")

    def total(self) -> tuple[PrivacyEvent, ...]:
        """All that the study releases about a patient kept for training."""
        training = SampledGaussian(
            self.sampling_probability, self.noise_multiplier, self.rounds * self.steps_per_round
        )
        if self.statistics_noise_multiplier is None:
            return (training,)
        return (self.statistics_event(), training)

    def evaluation_total(self) -> tuple[PrivacyEvent, ...]:
        """All that the study releases about a patient kept for testing."""
        return (GaussianRelease(self.evaluation_noise_multiplier, self.evaluations, "evaluation"),)

    def sample(self, patients: int, randomness: Randomness) -> NDArray[np.int64]:
        """The patients of one step, ascending; see `mechanisms.poisson_sample`."""
        return poisson_sample(patients, self.sampling_probability, randomness)

    def drawn(self, uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each patient is in a step, given a uniform number for each step and patient."""
        return poisson_drawn(uniform, self.sampling_probability)

    def sample_rows(self, patient: NDArray[np.int64], randomness: Randomness) -> NDArray[np.int64]:
        """Positions of at most k rows of each patient; see `mechanisms.sample_rows`."""
        return sample_rows(patient, self.max_rows_per_patient, randomness)

    def clip_factors(self, norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """What brings each patient's gradient to at most C; see `mechanisms.clip_factors`."""
        return clip_factors(norms, self.max_grad_norm)

    def privatise(self, total: NDArray[np.floating], randomness: Randomness) -> NDArray[np.float64]:
        """The noisy mean gradient of one step from the sum of the clipped ones.

        Guarantee:
            With `sample` and `clip_factors`, one step as `training_event` accounts for it. What is
            returned may be released and post-processed freely; `total` may not.
        """
        return add_gaussian(total, self.deviation, randomness) / self.expected_batch

    @property
    def deviation(self) -> float:
        """σ·C: the standard deviation of the noise of a training step."""
        return self.noise_multiplier * self.max_grad_norm


def privatise_each(
    plans: Sequence[PrivacyPlan], totals: NDArray[np.floating], sources: Sequence[Randomness]
) -> None:
    """`PrivacyPlan.privatise` at many sites at once, in place: each row by its own plan and noise.

    Args:
        plans: of each site.
        totals: `[sites, values]`: sums of clipped gradients; become noisy means, or NaN where a
            sum is not finite.
        sources: of each site's noise.
    """
    add_gaussian_to_each(totals, [plan.deviation for plan in plans], sources)
    totals /= np.array([plan.expected_batch for plan in plans], totals.dtype)[:, None]


def needs_statistics(study: Study) -> bool:
    """Whether a private study releases sums over its patients before training.

    True if preprocessing takes values from the sites together, and if sites weigh by size, which
    needs a count of patients. (Exact values of a site's own rows are refused with the study file:
    through the inputs, one patient would move everyone's gradients.)
    """
    return needs_federated(study) or study.aggregation.weights == "size"


def evaluations(study: Study) -> int:
    """How often sites evaluate: every `evaluation.every` rounds, and after the last."""
    every = study.evaluation.every
    return 1 if every == 0 else math.ceil(study.training.rounds / every)


def make_plan(study: Study, patients: int) -> PrivacyPlan:
    """Calibrate a study's noise for one site.

    Guarantee:
        `total()` and `evaluation_total()` of the plan each cost at most the study's (ε, δ) by
        `accounting.epsilon`. See the module for what that promises.

    Args:
        study: with `[privacy] mode = "dp"`.
        patients: patients kept for training at this site (rows, if the unit is `record`); private.

    Raises:
        PrivacyError: the study has no promise to keep, the site has too few patients for the batch
            size or for δ, or the budget cannot be met.
    """
    privacy, training = study.privacy, study.training
    if not study.private or privacy.epsilon is None or privacy.delta is None:
        raise PrivacyError(
            "this study promises no privacy, so there is nothing to calibrate",
            hint="set [privacy] mode = 'dp' with epsilon and delta",
        )
    _check_site(patients, training.batch_size, privacy.delta, privacy.unit)
    steps = training.local_steps or (training.local_epochs or 1) * math.ceil(
        patients / training.batch_size
    )
    q = training.batch_size / patients
    statistics = None
    if needs_statistics(study):
        share = privacy.statistics_share
        statistics = gaussian_noise_multiplier(
            epsilon=share * privacy.epsilon, delta=share * privacy.delta, count=1
        )
    count = evaluations(study)
    return PrivacyPlan(
        unit=privacy.unit,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=_training_noise(study, q, training.rounds * steps, statistics),
        sampling_probability=q,
        expected_batch=training.batch_size,
        steps_per_round=steps,
        rounds=training.rounds,
        max_rows_per_patient=1 if privacy.unit == "record" else privacy.max_rows_per_patient,
        statistics_noise_multiplier=statistics,
        evaluation_noise_multiplier=gaussian_noise_multiplier(
            epsilon=privacy.epsilon, delta=privacy.delta, count=count
        ),
        evaluations=count,
    )


def _check_site(patients: int, batch: int, delta: float, unit: str) -> None:
    """Refuse a site whose size rules a meaningful promise out, without saying its size."""
    if patients < 2:
        raise PrivacyError(
            f"this site has fewer than two {unit}s to train on",
            hint="leave it out of the study, or widen the study's inclusion criteria",
        )
    if batch > patients:
        raise PrivacyError(
            f"[training] batch_size is larger than the number of {unit}s this site trains on",
            hint="take a smaller batch_size, or leave this site out of the study",
        )
    # δ = 1/n allows a mechanism that publishes one patient of n, picked at random, in full.
    if delta * patients >= 1.0:
        raise PrivacyError(
            f"[privacy] delta is too large for the number of {unit}s at this site",
            hint="take a delta well below one over that number",
        )


def _training_noise(study: Study, q: float, steps: int, statistics: float | None) -> float:
    """σ/C of a training step: the study's own if it fits the budget, else calibrated."""
    privacy = study.privacy
    budget, delta = privacy.epsilon or 0.0, privacy.delta or 0.0
    also = () if statistics is None else (GaussianRelease(statistics),)
    sigma = privacy.noise_multiplier
    if (
        sigma is not None
        and (cost := epsilon_of((*also, SampledGaussian(q, sigma, steps)), delta)) > budget
    ):
        fitting = noise_multiplier_for(
            epsilon=budget, delta=delta, sampling_probability=q, steps=steps, also=also
        )
        raise PrivacyError(
            f"[privacy] noise_multiplier = {sigma:g} would cost epsilon = {cost:.2f} at this site, "
            f"above the study's {budget:g}",
            hint=f"take a noise_multiplier of at least {math.ceil(fitting * 100) / 100:.2f}, "
            "or leave it out to have it calibrated",
        )
    if sigma is not None:
        return sigma
    return noise_multiplier_for(
        epsilon=budget, delta=delta, sampling_probability=q, steps=steps, also=also
    )
