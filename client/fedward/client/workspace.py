"""One module per architecture, reused for every round and every site of a process.

Weights are loaded into it before each use; nothing of one site is left for the next.
"""

from __future__ import annotations

import torch
from torch import nn

from fedward.common.models.registry import ModelSpec
from fedward.common.models.state import build_module


class Workspace:
    """Builds a module once and hands out the same one again."""

    def __init__(self) -> None:
        self._modules: dict[tuple[str, tuple[int, ...], int, bool], nn.Module] = {}

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        """In another process it builds its own: what is in it is worth nothing."""
        return Workspace, ()

    def module(
        self, spec: ModelSpec, inputs: tuple[int, ...], outputs: int, *, private: bool
    ) -> nn.Module:
        """The module for a specification; its weights are whatever the last user left.

        Convolutions are a quarter faster with channels last in memory, but not if they are to be
        private: Opacus (1.6) then gives wrong gradients of single rows.
        """
        key = (spec.model_dump_json(), inputs, outputs, private)
        if key not in self._modules:
            made = build_module(spec, inputs, outputs, seed=0)
            last = torch.channels_last
            self._modules[key] = made if private else made.to(memory_format=last)  # type: ignore[call-overload]
        return self._modules[key]
