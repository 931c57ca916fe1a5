"""The study file as frozen, checked values: what decides anything stands here and nowhere else.

Unknown keys are errors, values are never coerced from other types, and nothing can be changed after
loading. Sections and their meaning are documented on the fields; `fedward study new` writes an
annotated template. Checks that involve several sections live in `Study`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedward.common.models.registry import ModelSpec, parse_model

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A short name that is safe in file names and logs: lower case, digits, `-` and `_`."""
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the study file: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        """TOML has arrays only; frozen values need tuples."""
        if isinstance(data, dict):
            return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return data


class StudySection(Section):
    """`[study]`: who asks what, and why."""

    name: Name
    title: str = Field(min_length=1, max_length=200)
    purpose: str = Field(min_length=1, description="shown to every data steward")
    contact: str = Field(min_length=1)
    version: str = Field(default="1", min_length=1, max_length=40)


class TaskSection(Section):
    """`[task]`: what is predicted.

    `labels` are the values of the target in class order; for `binary` the second one is the
    positive class. `regression` has no labels; `bounds` are the target's public limits, needed
    under differential privacy.
    """

    kind: Literal["binary", "multiclass", "regression"]
    target: Annotated[str, Field(min_length=1)]
    labels: tuple[str, ...] = ()
    bounds: tuple[Finite, Finite] | None = None

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> Self:
        count = len(self.labels)
        if len(set(self.labels)) != count:
            raise ValueError("labels must differ from each other")
        if self.kind == "binary" and count != 2:
            raise ValueError("a binary task needs exactly two labels, the positive one second")
        if self.kind == "multiclass" and count < 3:
            raise ValueError("a multiclass task needs at least three labels")
        if self.kind == "regression" and count:
            raise ValueError("a regression task has no labels")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError("bounds must be [low, high] with low < high")
        return self

    @property
    def outputs(self) -> int:
        """Length of the model's output: classes for `multiclass`, else 1."""
        return len(self.labels) if self.kind == "multiclass" else 1


class Feature(Section):
    """`[[data.features]]`: one column of the schema.

    `min` and `max` are *public* bounds: from medical knowledge, never from the data.
    `missing` says what an absent value means: `impute` a value, impute and add a 0/1 `indicator`
    input, or `refuse` the site. Without `categories`, a categorical feature takes those that enough
    patients of some site have (never under differential privacy).
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    type: Literal["numeric", "categorical", "boolean"] = "numeric"
    unit: str = ""
    min: Finite | None = None
    max: Finite | None = None
    categories: tuple[str, ...] = ()
    missing: Literal["impute", "indicator", "refuse"] = "refuse"

    @model_validator(mode="after")
    def _keys_fit_type(self) -> Self:
        if self.type != "numeric" and (self.min is not None or self.max is not None):
            raise ValueError(f"min and max are for numeric features, {self.name} is {self.type}")
        if self.type != "categorical" and self.categories:
            raise ValueError(f"categories are for categorical features, {self.name} is {self.type}")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"categories of {self.name} must differ from each other")
        if self.min is not None and self.max is not None and not self.min < self.max:
            raise ValueError(f"min of {self.name} must be below its max")
        return self

    @property
    def bounded(self) -> bool:
        """Whether both public bounds are known (boolean features always are: 0 and 1)."""
        return self.type == "boolean" or (self.min is not None and self.max is not None)


class DataSection(Section):
    """`[data]`: what a site must provide, and how rows are cleaned before anything else."""

    modality: Literal["tabular", "image"]
    features: tuple[Feature, ...] = ()
    duplicates: Literal["refuse", "drop", "keep"] = "drop"
    out_of_range: Literal["refuse", "clip", "missing"] = "refuse"
    unknown_category: Literal["refuse", "missing"] = "refuse"
    single_class: Literal["refuse", "allow"] = "refuse"

    @model_validator(mode="after")
    def _features_fit_modality(self) -> Self:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("features must have different names")
        if self.modality == "tabular" and not names:
            raise ValueError("a tabular study needs at least one [[data.features]]")
        if self.modality == "image" and names:
            raise ValueError("an image study has no [[data.features]]")
        return self

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """Numeric and boolean features, in study order: the columns of `FeatureTable.numeric`."""
        return tuple(f for f in self.features if f.type != "categorical")

    @property
    def categorical(self) -> tuple[Feature, ...]:
        """Categorical features, in study order: the columns of `FeatureTable.codes`."""
        return tuple(f for f in self.features if f.type == "categorical")


class ImageSection(Section):
    """`[preprocess.image]`: what every picture becomes before training."""

    height: Annotated[int, Field(ge=8, le=1024)]
    width: Annotated[int, Field(ge=8, le=1024)]
    channels: Literal[1, 3] = 1
    denoise: Literal["none", "median"] = "none"
    contrast: Literal["none", "stretch", "equalise"] = "none"


class PreprocessSection(Section):
    """`[preprocess]`: how cleaned values become the model's input.

    `federated` takes means and deviations from sums and counts over all sites, `bounds` from the
    schema's public limits (costs no privacy), `site` from each site's own rows (they stay there).
    """

    standardise: Literal["federated", "bounds", "site", "none"] = "federated"
    impute: Literal["federated", "bounds", "site"] = "federated"
    image: ImageSection | None = None


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


class FedAdaptive(Section):
    """Adaptive server optimisers (Reddi et al. 2021, algorithm 2)."""

    name: Literal["fedadam", "fedyogi"]
    server_learning_rate: Positive
    beta_1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta_2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    tau: Positive = 1e-3


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
    FedAvg | FedProx | FedAdaptive | FedAdagrad | FedAvgM | FedMedian | FedTrimmedAvg,
    Field(discriminator="name"),
]


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


class Partition(Section):
    """`[simulation.partition]`: how one table becomes many virtual sites.

    `column` (real hospitals), `iid`, `dirichlet` (label skew with concentration `alpha`),
    `quantity` (sizes from a Dirichlet with `alpha`), `feature-shift` (sites are slices along one
    feature, blurred by `alpha`).
    """

    kind: Literal["column", "iid", "dirichlet", "quantity", "feature-shift"]
    sites: Count | None = None
    column: str | None = None
    alpha: Positive = 0.5
    min_patients: Count = 10

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Self:
        if self.kind == "column":
            if self.column is None or self.sites is not None:
                raise ValueError("partition kind 'column' needs column, and sites come from it")
        elif self.sites is None:
            raise ValueError(f"partition kind '{self.kind}' needs sites")
        if self.kind == "feature-shift" and self.column is None:
            raise ValueError("partition kind 'feature-shift' needs column: the feature to sort by")
        return self


class Baselines(Section):
    """`[simulation.baselines]`: other training settings for local-only and pooled training.

    Absent keys are those of `[training]`. `epochs` replaces rounds and local length altogether.
    """

    epochs: Count | None = None
    optimiser: Literal["sgd", "adam"] | None = None
    learning_rate: Positive | None = None
    batch_size: Count | None = None


class SimulationSection(Section):
    """`[simulation]`: ignored by a federation and not part of the study's hash.

    Either `sites`, a site.toml for each virtual hospital, or `source`, one site.toml that
    `partition` divides. Paths are relative to the study file.
    """

    sites: tuple[str, ...] = ()
    source: str | None = None
    partition: Partition | None = None
    compare: tuple[Literal["local", "federated_no_dp", "pooled"], ...] = ("local", "pooled")
    cross_site: bool = False
    baselines: Baselines = Baselines()

    @model_validator(mode="after")
    def _one_kind_of_sites(self) -> Self:
        if bool(self.sites) == (self.source is not None):
            raise ValueError("give either sites (a list of site.toml) or source (one to divide)")
        if (self.source is None) != (self.partition is None):
            raise ValueError("source and [simulation.partition] belong together")
        return self


class Study(Section):
    """A whole study file, checked."""

    study: StudySection
    task: TaskSection
    data: DataSection
    preprocess: PreprocessSection = PreprocessSection()
    model: ModelSpec
    training: TrainingSection
    algorithm: Algorithm
    privacy: PrivacySection
    aggregation: AggregationSection = AggregationSection()
    evaluation: EvaluationSection = EvaluationSection()
    simulation: SimulationSection | None = None

    @field_validator("model", mode="wrap")
    @classmethod
    def _model_from_registry(cls, value: Any, _handler: Any) -> ModelSpec:
        return value if isinstance(value, ModelSpec) else parse_model(value)

    @property
    def private(self) -> bool:
        """Whether the study promises differential privacy."""
        return self.privacy.mode == "dp"

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.aggregation.secure:
            raise ValueError("[aggregation] secure = true is not available yet; set it to false")
        if self.data.modality not in self.model.modalities:
            allowed = ", ".join(self.model.modalities)
            raise ValueError(f"[model] {self.model.name} takes {allowed} data")
        self._check_preprocess()
        self._check_metric()
        if self.private:
            self._check_private()
        return self

    def _check_preprocess(self) -> None:
        image = self.data.modality == "image"
        if image != (self.preprocess.image is not None):
            word = "needs" if image else "has no"
            raise ValueError(
                f"a study with modality '{self.data.modality}' {word} [preprocess.image]"
            )
        if image:
            return
        unbounded = [f.name for f in self.data.numeric if not f.bounded]
        if unbounded and "bounds" in (self.preprocess.standardise, self.preprocess.impute):
            raise ValueError(f"[preprocess] 'bounds' needs min and max of feature {unbounded[0]}")

    def _check_metric(self) -> None:
        regression = self.evaluation.metric in ("rmse", "mae", "r2")
        if regression != (self.task.kind == "regression"):
            raise ValueError(
                f"[evaluation] metric '{self.evaluation.metric}' does not fit "
                f"a {self.task.kind} task"
            )

    def _check_private(self) -> None:
        pre = self.preprocess
        if "federated" in (pre.standardise, pre.impute):
            for feature in self.data.numeric:
                if not feature.bounded:
                    raise ValueError(
                        f"differential privacy needs public bounds: give feature {feature.name} "
                        "min and max, or take [preprocess] standardise and impute from 'site'"
                    )
        for feature in self.data.categorical:
            if not feature.categories:
                raise ValueError(
                    f"differential privacy needs the categories of {feature.name} in the study file"
                )
        if self.task.kind == "regression" and self.task.bounds is None:
            raise ValueError("differential privacy needs [task] bounds of a regression target")
