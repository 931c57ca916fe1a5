"""The file `site.toml`: where a site's data are, and how they map to the study's schema.

It stays at the site. The study says what a feature *means* (name, unit, bounds, categories); this
file says which local column that is, in which local unit, and what local codes stand for. Unknown
keys are errors. Paths are relative to the file, and `${NAME}` in them is an environment variable.

    >>> config = SiteConfig.model_validate({
    ...     "site": {"name": "north"},
    ...     "source": {"kind": "csv", "path": "patients.csv"},
    ...     "patients": {"column": "mrn"},
    ...     "features": {"weight": {"column": "WEIGHT_LB", "scale": 0.4536}},
    ... })
    >>> config.feature("weight").column, config.feature("age").column
    ('WEIGHT_LB', 'age')
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from fedward.common.errors import SiteConfigError
from fedward.common.study import Study
from fedward.common.study.schema import Finite, Name, Section
from fedward.common.validation import explain

Text = Annotated[str, Field(min_length=1)]
_FILES = ("csv", "parquet", "images", "medmnist")
_KEYS = {
    "labels": ("images",),
    "file": ("images",),
    "name": ("sklearn",),
    "subset": ("medmnist",),
    "columns": ("csv", "images"),
    "has_header": ("csv", "images"),
    "separator": ("csv", "images"),
    "path": _FILES,
}
"""Which kinds of source a key of `[source]` is for."""


class SiteSection(Section):
    """`[site]`: who this is."""

    name: Name


class SourceSection(Section):
    """`[source]`: where the rows are.

    `kind` is one of: csv (also `.csv.gz`), parquet, images (a folder, with a table `labels` that
    has a column `file`), medmnist (a `.npz` archive in the MedMNIST layout), sklearn (a data set
    that scikit-learn carries, for trying things out). `filter` is an SQL condition over the
    source's columns. Cells equal to one of `null_values`, and empty ones, are missing.
    """

    kind: Literal["csv", "parquet", "images", "medmnist", "sklearn"]
    path: Text | None = None
    name: Literal["breast-cancer", "diabetes", "wine"] | None = None
    labels: Text | None = None
    file: Text | None = None
    subset: Literal["all", "train", "val", "test"] | None = None
    null_values: tuple[str, ...] = ()
    has_header: bool | None = None
    columns: tuple[Text, ...] = ()
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    decimal_comma: bool = False
    filter: Text | None = None

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Self:
        for key, kinds in _KEYS.items():
            if self.kind not in kinds and getattr(self, key) not in (None, ()):
                raise ValueError(f"{key} is for kind {' or '.join(kinds)}, this is {self.kind}")
        if self.kind in _FILES and self.path is None:
            raise ValueError(f"kind '{self.kind}' needs path")
        if self.kind == "sklearn" and self.name is None:
            raise ValueError("kind 'sklearn' needs name = breast-cancer, diabetes or wine")
        if self.kind == "images" and self.labels is None:
            raise ValueError("kind 'images' needs labels: the table of files and their labels")
        if self.has_header is False and not self.columns:
            raise ValueError("has_header = false needs columns = [..], the names of all columns")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("columns must differ from each other")
        return self


class PatientsSection(Section):
    """`[patients]`: whose row it is. Exactly one of the two keys."""

    column: Text | None = None
    one_row_per_patient: bool = False

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.column is None) != self.one_row_per_patient:
            raise ValueError("give exactly one of column and one_row_per_patient = true")
        return self


class SplitSection(Section):
    """`[split]`: a published division into training and testing rows, kept as it is."""

    column: Text = "split"
    train: tuple[Text, ...] = ("train",)
    test: tuple[Text, ...] = ("test",)

    @field_validator("train", "test", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if set(self.train) & set(self.test):
            raise ValueError("a value of the split column cannot mean both train and test")
        return self


class TargetSection(Section):
    """`[target]`: which column is the outcome, and what its local values mean.

    `values` maps local values to the study's labels. With `threshold`, a number above it is the
    second label of a binary task and any other number the first.
    """

    column: Text | None = None
    values: dict[str, str] | None = None
    threshold: Finite | None = None

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        if self.values is not None and self.threshold is not None:
            raise ValueError("give values or threshold, not both")
        return self


class FeatureMap(Section):
    """`[features.NAME]`: how one feature of the study is called and coded here.

    The study's value is `scale` × local value + `offset`; `values` maps local codes of a
    categorical or boolean feature to the study's categories, or to true and false.
    """

    column: Text | None = None
    scale: Finite = 1.0
    offset: Finite = 0.0
    values: dict[str, str | bool] | None = None


class SiteConfig(Section):
    """A whole `site.toml`, checked for itself; `check_fit` checks it against a study."""

    site: SiteSection
    source: SourceSection
    patients: PatientsSection | None = None
    split: SplitSection | None = None
    target: TargetSection = TargetSection()
    features: dict[str, FeatureMap] = Field(default_factory=dict)
    _directory: Path = PrivateAttr(default_factory=Path)

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.site.name

    @property
    def directory(self) -> Path:
        """Folder that relative paths start from."""
        return self._directory

    def locate(self, path: str) -> Path:
        """A path of the file as one that can be opened."""
        return self._directory / Path(path).expanduser()

    def feature(self, name: str) -> FeatureMap:
        """The mapping of a study feature, with its column filled in."""
        given = self.features.get(name, FeatureMap())
        return given if given.column else given.model_copy(update={"column": name})

    def check_fit(self, study: Study) -> None:
        """Check the file against a study, before any data are opened.

        Raises:
            SiteConfigError: it maps features that the study does not have, maps them in a way that
                does not fit their type, or leaves open whose rows they are.
        """
        _check_source(self, study)
        _check_patients(self, study)
        _check_features(self, study)
        if self.target.threshold is not None and study.task.kind != "binary":
            raise SiteConfigError(
                f"[target] threshold does not fit a {study.task.kind} task",
                hint="remove it; only a binary task can be cut at a threshold",
            )
        for label in (self.target.values or {}).values():
            if study.task.kind == "regression" or label not in study.task.labels:
                raise SiteConfigError(
                    "[target] values maps to something that is not a label of the study",
                    hint=f"labels are {', '.join(study.task.labels) or 'not used in regression'}",
                )


def load_site_config(path: Path) -> SiteConfig:
    """Read and check a `site.toml`.

    Raises:
        SiteConfigError: the file is missing, is not TOML, breaks the schema, or names an
            environment variable that is not set.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SiteConfigError(
            f"cannot read site file {path.name}", hint="check the path and its permissions"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SiteConfigError(f"{path.name} is not valid TOML", hint=str(error)) from error
    try:
        config = SiteConfig.model_validate(_expand(table))
    except ValidationError as error:
        problem, hint = explain(error, SiteConfig)
        raise SiteConfigError(f"{path.name}: {problem}", hint=hint) from error
    config._directory = path.parent
    return config


def _expand(table: dict[str, Any]) -> dict[str, Any]:
    """Replace environment variables in the paths of `[source]`."""
    source = table.get("source")
    if not isinstance(source, dict):
        return table
    paths = {
        key: re.sub(r"\$\{(\w+)\}", _variable, value)
        for key, value in source.items()
        if key in ("path", "labels") and isinstance(value, str)
    }
    return {**table, "source": {**source, **paths}}


def _variable(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if value is None:
        raise SiteConfigError(
            f"environment variable {match[1]}, used in [source], is not set",
            hint=f"set it, as in: export {match[1]}=/path/to/data",
        )
    return value


def _check_source(config: SiteConfig, study: Study) -> None:
    pictures = config.source.kind in ("images", "medmnist")
    if pictures != (study.data.modality == "image"):
        allowed = "images or medmnist" if study.data.modality == "image" else "csv or parquet"
        raise SiteConfigError(
            f"[source] kind '{config.source.kind}' does not fit a study on "
            f"{study.data.modality} data",
            hint=f"use kind {allowed}",
        )


def _check_patients(config: SiteConfig, study: Study) -> None:
    if config.patients is None and study.privacy.unit == "patient":
        raise SiteConfigError(
            "[patients] is missing, so it is unknown which rows belong to one patient",
            hint="give column, the patient identifier, or one_row_per_patient = true",
        )


def _check_features(config: SiteConfig, study: Study) -> None:
    known: Mapping[str, str] = {feature.name: feature.type for feature in study.data.features}
    for name, mapping in config.features.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise SiteConfigError(
                f"[features.{name}] is not a feature of the study",
                hint=f"did you mean {close[0]}?" if close else "remove it",
            )
        if known[name] == "numeric" and mapping.values is not None:
            raise SiteConfigError(
                f"[features.{name}] has values, but the feature is numeric",
                hint="use scale and offset, or remove values",
            )
        if known[name] != "numeric" and (mapping.scale, mapping.offset) != (1.0, 0.0):
            raise SiteConfigError(
                f"[features.{name}] has scale or offset, but the feature is {known[name]}",
                hint="use values, or remove scale and offset",
            )
