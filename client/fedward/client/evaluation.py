"""Scores of a model on a site's rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedward.client.dataset import Dataset
from fedward.common.models.outputs import Kind, scores

BATCH = 4096
"""Rows per forward pass for tables; images are far larger per row, so they take a 16th."""


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset, kind: Kind) -> NDArray[np.float32]:
    """Scores `[rows, outputs]` of a model in evaluation mode; see `models.outputs.scores`.

    Scores may be NaN if the model is; whoever uses them says so.
    """
    model.eval()
    size = BATCH if len(dataset.inputs.shape) == 1 else BATCH // 16
    parts = []
    for start in range(0, max(len(dataset), 1), size):
        rows = np.arange(start, min(start + size, len(dataset)))
        parts.append(scores(kind, model(dataset.inputs.take(rows))).numpy())
    return np.concatenate(parts).astype(np.float32, copy=False)
