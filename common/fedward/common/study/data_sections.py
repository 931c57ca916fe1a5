"""What is predicted from what: `[study]`, `[task]`, `[data]` and `[preprocess]`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedward.common.study.section import Finite, Name, Section


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
