"""Modules and their named arrays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fedward.common.errors import ModelError, RoundError
from fedward.common.models.cnn import SmallCNN
from fedward.common.models.logistic import LogisticRegression
from fedward.common.models.mlp import MLP
from fedward.common.models.registry import ModelSpec
from fedward.common.models.state import build_module, count_parameters, get_weights, set_weights

CASES: dict[str, tuple[ModelSpec, tuple[int, ...], int]] = {
    "logistic": (LogisticRegression(), (7,), 4 * (7 + 1)),
    "mlp": (MLP(hidden=(5, 3)), (7,), 5 * 8 + 3 * 6 + 4 * 4),
    "cnn": (
        SmallCNN(channels=(8,), pool=2),
        (1, 8, 8),
        8 * (9 + 1) + 2 * 8 + 4 * (8 * 4 + 1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip_through_names(name: str) -> None:
    spec, inputs, parameters = CASES[name]
    first, second = (build_module(spec, inputs, 4, seed) for seed in (1, 2))
    assert count_parameters(first) == parameters
    weights = get_weights(first)
    assert list(weights) == list(first.state_dict())
    kept = [p.data_ptr() for p in second.parameters()]
    set_weights(second, weights)
    assert [p.data_ptr() for p in second.parameters()] == kept
    x = torch.rand(3, *inputs)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("name", CASES)
def test_building_depends_on_the_seed_alone(name: str) -> None:
    spec, inputs, _ = CASES[name]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = get_weights(build_module(spec, inputs, 4, 2**63 - 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    two = get_weights(build_module(spec, inputs, 4, 2**63 - 1))
    other = get_weights(build_module(spec, inputs, 4, 0))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert any(not np.array_equal(one[k], other[k]) for k in one)


def test_weights_are_copies_both_ways() -> None:
    module = build_module(MLP(), (3,), 1, 0)
    weights = get_weights(module)
    set_weights(module, weights)
    for array in weights.values():
        array += 1
    assert all(not np.array_equal(get_weights(module)[k], weights[k]) for k in weights)


def test_read_only_and_transposed_arrays_are_accepted() -> None:
    module = build_module(LogisticRegression(), (3,), 3, 0)
    weights = get_weights(module)
    weights["weight"] = weights["weight"].T
    weights["bias"].setflags(write=False)
    set_weights(module, weights)
    assert np.array_equal(get_weights(module)["weight"], weights["weight"])


def test_a_misfit_changes_nothing() -> None:
    module = build_module(LogisticRegression(), (3,), 1, 0)
    before = get_weights(module)
    bad = {"weight": before["weight"] + 1, "bias": np.array([np.nan], np.float32)}
    with pytest.raises(RoundError, match="bias"):
        set_weights(module, bad)
    assert np.array_equal(get_weights(module)["weight"], before["weight"])


class Mixed(nn.Module):
    """A buffer of floats travels, one of integers does not, frozen values are not counted."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("scale", torch.ones(1, dtype=dtype))
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))


def test_buffers() -> None:
    module = Mixed()
    assert list(get_weights(module)) == ["trained", "frozen", "scale"]
    assert count_parameters(module) == 2
    with pytest.raises(ModelError, match=r"scale has type torch\.float64"):
        get_weights(Mixed(torch.float64))


def test_finding_the_models_does_not_load_torch() -> None:
    code = (
        "import sys; from fedward.common.models.registry import model_names; "
        "model_names(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
