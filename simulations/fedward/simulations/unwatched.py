"""An observer for runs of which only the result is wanted."""

from __future__ import annotations

from typing import Any

from fedward.common.preprocess import Transform
from fedward.common.tensors import Weights
from fedward.server.checkpoints import RoundRecord, RunState


class Unwatched:
    """Sees everything and keeps nothing."""

    def on_prepared(self, transform: Transform, weights: Weights) -> dict[str, Any]:
        """Nothing to keep."""
        del transform, weights
        return {}

    def on_resumed(self, state: RunState) -> None:
        """Nothing to keep."""

    def on_evaluating(self, number: int) -> None:
        """Nothing to keep."""

    def on_round(self, record: RoundRecord, weights: Weights) -> dict[str, Any]:
        """Nothing to keep."""
        del record, weights
        return {}
