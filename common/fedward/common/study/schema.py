"""The study file as frozen, checked values: what decides anything stands here and nowhere else.

Unknown keys are errors, values are never coerced from other types, and nothing can be changed after
loading. Sections and their meaning are documented on the fields; `fedward study new` writes an
annotated template. Checks that involve several sections live in `Study`; the sections themselves
live beside this file and are re-exported here.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import field_validator, model_validator

from fedward.common.models.registry import ModelSpec, parse_model
from fedward.common.study.data_sections import (
    DataSection,
    Feature,
    ImageSection,
    PreprocessSection,
    StudySection,
    TaskSection,
)
from fedward.common.study.section import Count, Finite, Fraction, Name, Positive, Section
from fedward.common.study.simulation_sections import Baselines, Partition, SimulationSection
from fedward.common.study.training_sections import (
    AggregationSection,
    Algorithm,
    EvaluationSection,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    PrivacySection,
    TrainingSection,
)

__all__ = [
    "AggregationSection",
    "Algorithm",
    "Baselines",
    "Count",
    "DataSection",
    "EvaluationSection",
    "Feature",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedMedian",
    "FedProx",
    "FedTrimmedAvg",
    "FedYogi",
    "Finite",
    "Fraction",
    "ImageSection",
    "Name",
    "Partition",
    "Positive",
    "PreprocessSection",
    "PrivacySection",
    "Section",
    "SimulationSection",
    "Study",
    "StudySection",
    "TaskSection",
    "TrainingSection",
]


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
        tabular = self.data.modality == "tabular"
        imputes = any(feature.missing != "refuse" for feature in self.data.features)
        if pre.standardise == "site" or (tabular and imputes and pre.impute == "site"):
            # One patient more or less would change every other patient's gradient.
            raise ValueError(
                "differential privacy cannot take exact values from a site's own rows: set "
                "[preprocess] standardise and impute to 'bounds' or 'federated'"
            )
        if "federated" in (pre.standardise, pre.impute):
            for feature in self.data.numeric:
                if not feature.bounded:
                    raise ValueError(
                        f"differential privacy needs public bounds: give feature {feature.name} "
                        "min and max, or set [preprocess] standardise = 'none'"
                    )
        for feature in self.data.categorical:
            if not feature.categories:
                raise ValueError(
                    f"differential privacy needs the categories of {feature.name} in the study file"
                )
        if self.task.kind == "regression" and self.task.bounds is None:
            raise ValueError("differential privacy needs [task] bounds of a regression target")
