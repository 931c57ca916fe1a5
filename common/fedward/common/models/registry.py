"""Models by name: a study file says `[model] name = "mlp"`, and this finds what that is.

A model is one file in this package: a frozen `ModelSpec` with the hyper-parameters as fields, and
a `build` that makes the torch module. Importing a specification does not import torch, so that a
study can be checked and hashed in milliseconds.

    >>> parse_model({"name": "mlp", "hidden": [32]}).hidden
    (32,)
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fedward.common.validation import explain

if TYPE_CHECKING:
    from torch import nn

_SPECS: dict[str, type[ModelSpec]] = {}


class ModelSpec(BaseModel):
    """What a study file says about its model.

    Subclasses set `name: Literal["..."]` with a default, `modalities`, and `build`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    modalities: ClassVar[tuple[str, ...]] = ()
    name: str

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return data

    def build(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:  # noqa: ARG002
        """Make the module.

        Args:
            inputs: shape of one example: `(features,)` or `(channels, height, width)`.
            outputs: length of the output: 1 logit or value, or one logit per class.

        Returns:
            A module that maps float32 `[batch, *inputs]` to `[batch, outputs]`, without BatchNorm
            (its statistics would leave the site). Weights are drawn from torch's global generator;
            the caller seeds it.
        """
        raise TypeError(f"{type(self).__name__} does not say how to build its module")


def register(spec: type[ModelSpec]) -> type[ModelSpec]:
    """Class decorator: make a specification known by its `name`; a taken name is refused."""
    name = str(spec.model_fields["name"].default)
    if name in _SPECS and _SPECS[name].__qualname__ != spec.__qualname__:
        raise ValueError(f"two models are called '{name}'")
    _SPECS[name] = spec
    return spec


@cache
def _discover() -> None:
    package = importlib.import_module("fedward.common.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"fedward.common.models.{module.name}")


def model_names() -> tuple[str, ...]:
    """Names of all models, sorted."""
    _discover()
    return tuple(sorted(_SPECS))


def model_keys(name: str) -> frozenset[str] | None:
    """The keys that `[model]` may have beside `name`; None if there is no such model.

    >>> sorted(model_keys("mlp") or ())
    ['hidden']
    """
    _discover()
    spec = _SPECS.get(name)
    return None if spec is None else frozenset(spec.model_fields) - {"name"}


def parse_model(table: Any) -> ModelSpec:
    """Check the `[model]` table of a study file.

    Raises:
        ValueError: no such model, or a hyper-parameter that it does not have.
    """
    known = ", ".join(model_names())
    name = table.get("name") if isinstance(table, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"a name is missing, choose one of {known}")
    if name not in _SPECS:
        raise ValueError(f"there is no model of that name, choose one of {known}")
    try:
        return _SPECS[name].model_validate(table)
    except ValidationError as error:
        # Said here, because only here is it known which hyper-parameters this model has.
        raise ValueError(": ".join(explain(error, _SPECS[name]))) from error
