"""SHA-256 of a model: what registry, audit log, checkpoint and release know it by."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from fedward.common.tensors import Weights

MODEL = "model"
"""Note in a checkpoint: SHA-256 of the weights after the round."""


def model_hash(weights: Weights) -> str:
    """SHA-256 of names, shapes and values of the weights, hexadecimal; copies nothing."""
    layout = [[name, list(array.shape)] for name, array in weights.items()]
    found = hashlib.sha256(json.dumps(layout).encode())
    for array in weights.values():
        found.update(np.ascontiguousarray(array, np.dtype("<f4")).data)
    return found.hexdigest()
