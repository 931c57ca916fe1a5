"""What the programs of other projects share: the rows of a workload's folder, and how to judge.

The model, the inputs and, where a project leaves the local steps to its user, these steps are those
of `bare_loop.py`, so that all programs do the same work. It imports nothing of fedward.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bare_loop import build, tensors
from torch import Tensor, nn


class Rows(NamedTuple):
    """All rows of a workload.

    Attributes:
        load: the workload.
        inputs: of training, `[sites, rows, …]`.
        target: 0 or 1, `[sites, rows, 1]`.
        test_inputs: `[test rows, …]`.
        truth: whether a test row is positive, `[test rows]`.
    """

    load: dict[str, Any]
    inputs: Tensor
    target: Tensor
    test_inputs: Tensor
    truth: Tensor


@cache
def read(folder: str) -> Rows:
    """The rows of a workload's folder; read once in a process."""
    load = json.loads((Path(folder) / "workload.json").read_text())
    kind, shape = load["model"]["name"], (load["sites"], load["rows"])
    with np.load(Path(folder) / "rows.npz") as rows:
        inputs = tensors(rows["train_x"], kind)
        return Rows(
            load,
            inputs.view(*shape, *inputs.shape[1:]),
            torch.from_numpy(rows["train_y"]).float().view(*shape, 1),
            tensors(rows["test_x"], kind),
            torch.from_numpy(rows["test_y"]).bool(),
        )


def module_of(rows: Rows) -> nn.Sequential:
    """The model of a workload, in the memory format in which it is fastest."""
    module = build(rows.load["model"], tuple(rows.inputs.shape[2:]))
    if rows.load["model"]["name"] == "cnn":
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def tell(rows: Rows, module: nn.Module, seconds: list[float]) -> None:
    """Print what a run found: seconds of each round, accuracy on the test rows."""
    with torch.no_grad():
        right = (module(rows.test_inputs)[:, 0] > 0) == rows.truth
    print(json.dumps({"seconds": seconds, "accuracy": float(right.float().mean())}))
