"""The sections that say how the model is trained, protected, combined and judged."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from fedward.common.study.section import Count, Fraction, Positive, Section


class TrainingSection(Section):
    """`[training]`: local training at a site, and how many rounds.

    Exactly one of `local_epochs` and `local_steps`. `batch_size` counts rows; under differential
    privacy it is the *expected* number of patients of a Poisson-sampled batch.
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)]
    local_epochs: Count | None = None
    local_steps: Count | None = None
    batch_size: Count
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("give exactly one of local_epochs and local_steps")
        if self.optimiser == "adam" and self.momentum:
            raise ValueError("momentum is for optimiser = 'sgd'")
        return self


class FedAvg(Section):
    """Weighted mean of the sites' weights (McMahan et al. 2017)."""

    name: Literal["fedavg"]


class FedProx(Section):
    """FedAvg whose local loss has a proximal term mu/2·‖w - w_global‖² (Li et al. 2020)."""

    name: Literal["fedprox"]
    mu: Positive


class _TwoMoments(Section):
    """What Adam and Yogi share."""

    server_learning_rate: Positive
    beta_1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta_2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    tau: Positive = 1e-3


class FedAdam(_TwoMoments):
    """Adam at the server (Reddi et al. 2021, algorithm 2).

    Algorithm 2 has no bias correction, and Flower's implementation has one. With
    `bias_correction = false` the server takes the steps of the paper: with beta_2 = 0.999 the
    first of them is about four times as long.
    """

    name: Literal["fedadam"]
    bias_correction: bool = True


class FedYogi(_TwoMoments):
    """Yogi at the server (Reddi et al. 2021, algorithm 2)."""

    name: Literal["fedyogi"]


class FedAdagrad(Section):
    """Adagrad at the server (Reddi et al. 2021, algorithm 2)."""

    name: Literal["fedadagrad"]
    server_learning_rate: Positive
    tau: Positive = 1e-3


class FedAvgM(Section):
    """Momentum at the server (Hsu et al. 2019)."""

    name: Literal["fedavgm"]
    server_learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9


class FedMedian(Section):
    """Coordinate-wise median of the sites' weights (Yin et al. 2018)."""

    name: Literal["fedmedian"]


class FedTrimmedAvg(Section):
    """Coordinate-wise mean after cutting `cut` of both tails (Yin et al. 2018)."""

    name: Literal["fedtrimmedavg"]
    cut: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2


Algorithm = Annotated[
    FedAvg | FedProx | FedAdam | FedYogi | FedAdagrad | FedAvgM | FedMedian | FedTrimmedAvg,
    Field(discriminator="name"),
]


def algorithm_keys(name: str) -> frozenset[str] | None:
    """The keys that `[algorithm]` may have beside `name`; None if there is no such algorithm.

    >>> sorted(algorithm_keys("fedprox") or ())
    ['mu']
    """
    kinds: tuple[type[Section], ...] = get_args(get_args(Algorithm)[0])
    for kind in kinds:
        if name in get_args(kind.model_fields["name"].annotation):
            return frozenset(kind.model_fields) - {"name"}
    return None


class PrivacySection(Section):
    """`[privacy]`: the promise to each patient.

    With `mode = "dp"` the whole study, at each site, is (`epsilon`, `delta`)-differentially private
    under adding or removing one `unit`. The noise is calibrated to that; an explicit
    `noise_multiplier` (σ/C of the training noise) is taken as given, and the study is refused
    where it would cost more than `epsilon`. `statistics_share` of the budget goes to the sums of
    federated preprocessing, if the study has any.
    """

    mode: Literal["none", "dp"]
    unit: Literal["patient", "record"] = "patient"
    epsilon: Positive | None = None
    delta: Fraction | None = None
    max_grad_norm: Positive = 1.0
    noise_multiplier: Positive | None = None
    max_rows_per_patient: Count = 10
    statistics_share: Fraction = 0.1
    sampling: Literal["poisson"] = "poisson"

    @model_validator(mode="after")
    def _promise_is_complete(self) -> Self:
        if self.mode == "dp" and (self.epsilon is None or self.delta is None):
            raise ValueError("mode = 'dp' needs epsilon and delta")
        return self


class AggregationSection(Section):
    """`[aggregation]`: how updates of the sites become one."""

    secure: bool = False
    weights: Literal["equal", "size"] = "size"
    participation: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    min_sites: Count = 1
    deadline_s: Positive = 3600.0
    max_update_norm: Positive | None = None


class EvaluationSection(Section):
    """`[evaluation]`: how models are judged.

    `holdout` is the share of patients kept for testing, chosen by keyed hash (unless the site's
    data say which). Counts leave a site only in cells of at least `min_cell` patients. `bins` is
    the resolution of score histograms. `every` evaluates at the sites after that many rounds, 0
    only after the last; under differential privacy every evaluation costs.
    """

    holdout: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    metric: Literal[
        "auroc", "auprc", "accuracy", "balanced_accuracy", "f1", "brier", "rmse", "mae", "r2"
    ] = "auroc"
    min_cell: Count = 10
    bins: Annotated[int, Field(ge=10, le=10_000, multiple_of=2)] = 100
    every: Annotated[int, Field(ge=0)] = 0
    bootstrap: Annotated[int, Field(ge=0, le=100_000)] = 1000
    confidence: Fraction = 0.95
