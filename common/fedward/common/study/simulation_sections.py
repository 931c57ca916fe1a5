"""`[simulation]`: what a simulation needs and a federation ignores."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from fedward.common.study.section import Count, Positive, Section


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
