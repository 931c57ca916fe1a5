"""One module per architecture, reused for every round and every site of a process.

Weights are loaded into it before each use; nothing of one site is left for the next.
"""

from __future__ import annotations

from torch import nn

from fedward.common.models.registry import ModelSpec
from fedward.common.models.state import build_module


class Workspace:
    """Builds a module once and hands out the same one again."""

    def __init__(self) -> None:
        self._modules: dict[tuple[str, tuple[int, ...], int], nn.Module] = {}

    def module(self, spec: ModelSpec, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """The module for a specification; its weights are whatever the last user left."""
        key = (spec.model_dump_json(), inputs, outputs)
        if key not in self._modules:
            self._modules[key] = build_module(spec, inputs, outputs, seed=0)
        return self._modules[key]
