"""A site's part in a study, free of any transport: statistics, training, evaluation.

Flower's `ClientApp` (`flower_app.py`) turns messages into calls of these methods; the simulation
makes a `Site` per virtual hospital. All that leaves a site is what these methods return.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.client.dataset import Dataset
from fedward.client.evaluation import predict
from fedward.client.rows import SiteRows
from fedward.client.spending import MemorySpending, Spending, SpendingFor
from fedward.client.statistics import local_statistics
from fedward.client.training import (
    GradientSource,
    LocalSettings,
    ShuffledBatches,
    steps_per_round,
    train,
)
from fedward.client.workspace import Workspace
from fedward.common.errors import PrivacyError, RoundError, TrainingError
from fedward.common.metrics import Counts, count
from fedward.common.models.state import set_weights
from fedward.common.preprocess import Statistics, Transform, check_transform
from fedward.common.privacy.plan import PrivacyPlan, make_plan
from fedward.common.privacy.randomness import Randomness
from fedward.common.study.schema import Study
from fedward.common.tensors import Weights

RandomnessFor = Callable[[str, int], Randomness]
"""`(purpose, round)` to randomness: seeded in simulations, cryptographic at a hospital."""
Purpose = Literal["training", "evaluation"]
"""What a site is asked for in a round."""

LARGEST_WEIGHT = 1e6
"""A model whose weights are larger computes overflows, not predictions."""


@dataclass(frozen=True)
class LocalRound:
    """What a site computes in one round.

    Attributes:
        dataset: rows that train.
        settings: how they do.
        randomness: of sampling, noise and shuffling, for this round.
    """

    dataset: Dataset
    settings: LocalSettings
    randomness: Randomness


class Site:
    """One hospital in one run of a study.

    Usually it has one cohort. A pooled baseline is a site with the cohorts of all sites: what is
    fitted per site (`standardise = "site"`) stays fitted per cohort.

    Args:
        name: the site's name.
        study: the study that it takes part in.
        cohorts: the site's patients, at least one cohort, cleaned by the study's rules.
        randomness: where sampling, noise and shuffling come from.
        workspace: modules to compute with, may be shared between sites of one process.
        spending: makes the record of what this run charges its patients, from the site's plan.
        for_release: results leave the hospital. Then randomness that can be repeated is refused
            wherever it would have to hide a patient; a simulation's hides nothing, see
            `randomness`.

    Raises:
        PrivacyError: the study's privacy promise cannot be kept with this cohort.
    """

    def __init__(
        self,
        name: str,
        study: Study,
        cohorts: tuple[Cohort, ...],
        *,
        randomness: RandomnessFor,
        workspace: Workspace,
        spending: SpendingFor = MemorySpending,
        for_release: bool = False,
    ) -> None:
        self.name = name
        self.study = study
        self._rows = SiteRows(study, cohorts)
        self._randomness = randomness
        self._workspace = workspace
        self.plan: PrivacyPlan | None = None
        if study.private:
            patients = sum(cohort.patients for cohort in self._rows.training())
            self.plan = make_plan(study, patients)
        self.spending: Spending = spending(self.plan)
        self._for_release = for_release
        self._accepted: Transform | None = None

    @property
    def rows(self) -> int:
        """Training rows: how much work the site is. Stays at the site."""
        return len(self._rows)

    def statistics(self) -> Statistics:
        """Sums over the training patients for federated preprocessing, noised under DP."""
        sources = [self.randomness("statistics", index) for index in range(self._rows.cohorts)]
        if self.plan is not None:
            self.spending.charge(0, "training", self.plan.statistics_event())
        parts = [
            local_statistics(
                self.study,
                cohort.features,
                cohort.patient,
                plan=self.plan,
                randomness=source if self.plan else None,
            )
            for cohort, source in zip(self._rows.training(), sources, strict=True)
        ]
        return sum(parts[1:], start=parts[0])

    def train(
        self, weights: Weights, transform: Transform, *, round_number: int, proximal_mu: float
    ) -> Weights:
        """One round of local training; under DP its cost is recorded before a row is looked at.

        Returns:
            The new weights, names and shapes as given.

        Raises:
            PrivacyError: the study's budget does not hold this round.
            RoundError: transform or round are not what this study can lead to.
            TrainingError: training diverged.
        """
        self.admit(weights, transform, round_number=round_number)
        work = self.local_round(transform, round_number=round_number, proximal_mu=proximal_mu)
        source = self.gradients(work)
        return train(self.module(work.dataset), weights, source, work.settings)

    def admit(
        self,
        weights: Weights,
        transform: Transform,
        *,
        round_number: int,
        purpose: Purpose = "training",
        largest: float | None = None,
    ) -> None:
        """Check what is asked and pay for it: what must come before it, whoever computes it.

        Args:
            weights: that training starts from, or that are evaluated.
            transform: the frozen preprocessing.
            round_number: from 1.
            purpose: what is asked.
            largest: `largest_weight(weights)`, if it is known: many sites may be asked the same.

        Raises:
            PrivacyError, RoundError, TrainingError: as `train` and `evaluate`; then nothing was
                paid.
        """
        self._accept(weights, transform, round_number, largest)
        if self.plan is None:
            return
        if self._for_release:
            self.randomness(purpose, round_number)
        if purpose == "training":
            self.spending.charge(round_number, "training", self.plan.training_event())
        else:
            self.spending.charge(round_number, "testing", self.plan.evaluation_event())

    def local_round(
        self, transform: Transform, *, round_number: int, proximal_mu: float
    ) -> LocalRound:
        """What the site computes in a round that was admitted."""
        return LocalRound(
            dataset=self.training(transform),
            settings=self.settings(proximal_mu=proximal_mu),
            randomness=self.randomness("training", round_number),
        )

    def settings(self, *, proximal_mu: float) -> LocalSettings:
        """How the site trains in any round."""
        training = self.study.training
        steps = self.plan.steps_per_round if self.plan else steps_per_round(training, self.rows)
        return LocalSettings.of(training, steps=steps, proximal_mu=proximal_mu)

    def evaluate(
        self, weights: Weights, transform: Transform, *, round_number: int
    ) -> Counts | None:
        """Counts of scores on the test patients that may leave the site; charged first, under DP.

        Returns:
            Coarsened to the minimum cell, or noised under DP; None if the site has
            too few test patients to release anything.

        Raises:
            PrivacyError: the study's budget does not hold this evaluation.
            RoundError: transform or round are not what this study can lead to.
            TrainingError: training diverged.
        """
        self.admit(weights, transform, round_number=round_number, purpose="evaluation")
        dataset = self.testing(transform)
        return self.release(self.scores(weights, dataset), dataset, round_number=round_number)

    def release(
        self, scores: NDArray[np.float32], dataset: Dataset, *, round_number: int
    ) -> Counts | None:
        """What may leave the site of an evaluation that `admit` let in; see `evaluate`.

        Nothing is charged here: at a hospital, the gate stops what was not paid.

        Args:
            scores: of the test rows, `[rows, outputs]`.
            dataset: the test rows.
            round_number: of the evaluation.
        """
        study = self.study
        counts = count(
            study.task.kind,
            dataset.target.numpy(),
            scores if self.plan is None else _told_nothing(study, scores),
            outputs=study.task.outputs,
            bins=study.evaluation.bins,
            bounds=study.task.bounds,
            patient=dataset.patient,
            per="row" if self.plan is None else "patient",
        )
        if self.plan is None:
            return counts.coarsen(study.evaluation.min_cell)
        randomness = self.randomness("evaluation", round_number)
        return counts.noised(self.plan.evaluation_noise_multiplier, randomness)

    def scores(self, weights: Weights, dataset: Dataset) -> NDArray[np.float32]:
        """Scores `[rows, outputs]` of the given weights; stays at the site."""
        module = self.module(dataset)
        set_weights(module, weights)
        return predict(module, dataset, self.study.task.kind)

    def training(self, transform: Transform) -> Dataset:
        """Rows that train as the model sees them; kept until the transform changes.

        Test rows are prepared as well: what cannot be used of them is found before a round, not
        after the last.
        """
        dataset = self._rows.prepared("training", transform)
        self._rows.prepared("testing", transform)
        return dataset

    def testing(self, transform: Transform) -> Dataset:
        """Test rows as the model sees them; kept until the transform changes."""
        return self._rows.prepared("testing", transform)

    def forget(self) -> None:
        """Keep no prepared rows that train: somebody else has them."""
        self._rows.forget()

    def randomness(self, purpose: str, number: int) -> Randomness:
        """Randomness for a purpose, asked for before anything is charged.

        Raises:
            PrivacyError: it can be repeated, and results that it should protect leave the site.
        """
        randomness = self._randomness(purpose, number)
        if self._for_release and self.plan is not None and randomness.reproducible:
            raise PrivacyError(
                "noise that can be repeated protects nobody, so nothing is released with it",
                hint="run the study without seeded randomness, as `fedward client run` does",
            )
        return randomness

    def _accept(
        self,
        weights: Weights,
        transform: Transform,
        round_number: int,
        largest: float | None = None,
    ) -> None:
        """Refuse what this study cannot lead to, judged without looking at a patient.

        What the server sends decides what a site computes: were anything accepted, it could ask
        questions with it and read the answers from refusals.
        """
        rounds = self.study.training.rounds
        if not 1 <= round_number <= rounds:
            raise RoundError(
                f"round {round_number} does not exist", hint=f"the study has {rounds} rounds"
            )
        if self._accepted is None:
            check_transform(self.study, transform)
            self._accepted = transform
        elif transform is not self._accepted and transform != self._accepted:
            raise RoundError(
                "the server sent another preprocessing than before",
                hint="it is frozen for a run; start the run again",
            )
        if self.plan is not None:
            largest = largest_weight(weights) if largest is None else largest
            if not largest <= LARGEST_WEIGHT:
                raise TrainingError(
                    "training diverged: the server's weights are beyond all use",
                    hint="lower [training] learning_rate",
                )

    def gradients(self, work: LocalRound) -> GradientSource:
        """Where the gradients of a round come from, one site at a time."""
        dataset, randomness = work.dataset, work.randomness
        kind = self.study.task.kind
        if self.plan is not None:
            # Imported here: opacus takes seconds to load, and a study without privacy needs none.
            from fedward.client.private import PrivateGradients

            return PrivateGradients(dataset, self.plan, kind, randomness)
        batch_size = self.study.training.batch_size
        return ShuffledBatches(dataset, kind, batch_size=batch_size, randomness=randomness)

    def module(self, dataset: Dataset) -> torch.nn.Module:
        """The workspace's module for this study's model; its weights are anybody's."""
        task = self.study.task
        return self._workspace.module(
            self.study.model, dataset.inputs.shape, task.outputs, private=self.plan is not None
        )


def largest_weight(weights: Weights) -> float:
    """Magnitude of the largest weight; NaN if one is."""
    return max((float(np.abs(w).max()) for w in weights.values() if w.size), default=0.0)


def _told_nothing(study: Study, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores with a guess in place of what is not finite, row by row.

    Whether a patient's score overflows is about that patient: a refusal would tell it unnoised.
    """
    low, high = study.task.bounds or (0.0, 2.0 / scores.shape[1] if scores.shape[1] > 1 else 1.0)
    finite = np.isfinite(scores).all(axis=1, keepdims=True)
    return np.where(finite, scores, np.float32((low + high) / 2))
