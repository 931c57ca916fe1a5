"""Models by name: found, checked, built to the right shape, and free of batch statistics."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from fedward.common.models.registry import ModelSpec, model_names, parse_model, register
from fedward.common.models.state import build_module, count_parameters, get_weights

SHAPES = {"tabular": (7,), "image": (3, 28, 20)}


def test_the_models_of_the_first_release_are_there() -> None:
    assert {"cnn", "logistic", "mlp"} <= set(model_names())
    assert list(model_names()) == sorted(model_names())


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("outputs", [1, 5])
def test_shapes(name: str, outputs: int) -> None:
    spec = parse_model({"name": name})
    assert spec.modalities
    for modality in spec.modalities:
        shape = SHAPES[modality]
        module = build_module(spec, shape, outputs, seed=1)
        for batch in (0, 1, 3):
            assert module(torch.zeros(batch, *shape)).shape == (batch, outputs)


@pytest.mark.parametrize("name", model_names())
def test_an_example_is_scored_by_itself(name: str) -> None:
    """No statistics over a batch: in training mode, too, other examples change nothing."""
    spec = parse_model({"name": name})
    shape = SHAPES[spec.modalities[0]]
    module = build_module(spec, shape, 2, seed=1).train()
    batch = torch.randn(4, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        alone = torch.cat([module(batch[i : i + 1]) for i in range(4)])
        np.testing.assert_allclose(module(batch).numpy(), alone.numpy(), atol=1e-5)


def test_first_weights_do_not_depend_on_what_other_threads_build() -> None:
    """torch draws them from one generator for the whole process."""
    spec = parse_model({"name": "mlp", "hidden": [64, 64, 64, 64]})

    def made(seed: int) -> bytes:
        weights = get_weights(build_module(spec, (30,), 2, seed))
        return b"".join(array.tobytes() for array in weights.values())

    alone = {seed: made(seed) for seed in range(4)}
    with ThreadPoolExecutor(4) as threads:
        beside = list(threads.map(made, [seed for _ in range(50) for seed in range(4)]))
    assert beside == [alone[seed] for _ in range(50) for seed in range(4)]


@pytest.mark.parametrize("name", model_names())
def test_no_batch_norm_and_no_state_besides_parameters(name: str) -> None:
    spec = parse_model({"name": name})
    module = build_module(spec, SHAPES[spec.modalities[0]], 2, seed=1)
    assert not [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    assert list(module.buffers()) == []
    assert all(p.dtype == torch.float32 and p.requires_grad for p in module.parameters())


def test_sizes_are_what_the_formulas_say() -> None:
    logistic = build_module(parse_model({"name": "logistic"}), (7,), 1, seed=0)
    assert count_parameters(logistic) == 7 + 1
    mlp = build_module(parse_model({"name": "mlp", "hidden": [4, 3]}), (7,), 2, seed=0)
    assert count_parameters(mlp) == (7 * 4 + 4) + (4 * 3 + 3) + (3 * 2 + 2)
    cnn = build_module(parse_model({"name": "cnn", "channels": [8], "pool": 2}), (1, 16, 16), 1, 0)
    assert count_parameters(cnn) == (9 * 8 + 8) + 2 * 8 + (8 * 4 + 1)


@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3]))
def test_cnn_takes_any_size_of_picture(height: int, width: int, channels: int) -> None:
    module = build_module(parse_model({"name": "cnn"}), (channels, height, width), 1, seed=0)
    assert module(torch.zeros(2, channels, height, width)).shape == (2, 1)


@pytest.mark.parametrize(("side", "pools"), [(28, False), (29, False), (32, True), (14, True)])
def test_cnn_pools_only_what_has_another_size(side: int, pools: bool) -> None:
    """With the same names of weights, and the same outputs to the bit."""
    spec = parse_model({"name": "cnn", "pool": 7})
    module = build_module(spec, (1, side, side), 1, seed=0)
    always = build_module(spec, (1, 64, 64), 1, seed=0)
    assert any(isinstance(m, nn.AdaptiveAvgPool2d) for m in module.modules()) is pools
    assert list(module.state_dict()) == list(always.state_dict())
    always.load_state_dict(module.state_dict())
    pictures = torch.rand(3, 1, side, side)
    assert torch.equal(module(pictures), always(pictures))


@pytest.mark.parametrize("values", [2, 5, 10_000])
def test_cnn_cuts_off_after_pooling_as_it_would_before(values: int) -> None:
    """To the bit, gradients too, and where several values of a window are the largest."""
    spec = parse_model({"name": "cnn", "channels": [8, 16], "pool": 3})
    module = build_module(spec, (1, 20, 24), 2, seed=3)
    assert isinstance(module, nn.Sequential)
    layers = list(module)
    places = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    assert len(places) == 2
    for place in places:
        assert isinstance(layers[place + 1], nn.ReLU)
        layers[place : place + 2] = [nn.ReLU(), nn.MaxPool2d(2)]
    before = nn.Sequential(*layers)  # the same weights
    generator = torch.Generator().manual_seed(values)
    pictures = torch.randint(values, (6, 1, 20, 24), generator=generator) / values
    found = []
    for each in (module, before):
        outputs = each(pictures)
        own = torch.autograd.grad(outputs.square().sum(), list(module.parameters()))
        found.append([outputs, *own])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert all(gradient.any() for gradient in found[0])


def test_cnn_may_have_linear_layers_between() -> None:
    spec = parse_model({"name": "cnn", "channels": [8], "pool": 2, "hidden": [10, 6]})
    cnn = build_module(spec, (3, 16, 12), 4, 0)
    linear = [tuple(m.weight.shape) for m in cnn.modules() if isinstance(m, nn.Linear)]
    assert linear == [(10, 8 * 4), (6, 10), (4, 6)]
    assert [type(m) for m in list(cnn.children())[-5:]] == [nn.Linear, nn.ReLU] * 2 + [nn.Linear]
    assert cnn(torch.zeros(2, 3, 16, 12)).shape == (2, 4)
    without = build_module(parse_model({"name": "cnn", "channels": [8]}), (3, 16, 12), 4, 0)
    assert sum(isinstance(m, nn.Linear) for m in without.modules()) == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "a name is missing"),
        ("mlp", "a name is missing"),
        ({"name": 3}, "a name is missing"),
        ({"name": "resnet"}, "choose one of cnn, logistic, mlp"),
        ({"name": "logistic", "hidden": [3]}, "unknown key hidden"),
        ({"name": "mlp", "hidden": ["3"]}, r"hidden\[0\] is a string"),
        ({"name": "mlp", "hidden": [True]}, r"hidden\[0\] is a boolean"),
        ({"name": "cnn", "channels": [12]}, r"multiple of 8"),
        ({"name": "cnn", "channels": [8] * 7}, "at most 6"),
        ({"name": "cnn", "hidden": [0]}, r"hidden\[0\]"),
        ({"name": "cnn", "hidden": [4097]}, r"hidden\[0\]"),
    ],
)
def test_what_is_refused(table: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_model(table)


def test_a_taken_name_is_refused() -> None:
    class Impostor(ModelSpec):
        name: Literal["mlp"] = "mlp"

    with pytest.raises(ValueError, match="two models are called 'mlp'"):
        register(Impostor)
    assert type(parse_model({"name": "mlp"})).__name__ == "MLP"


def test_a_specification_is_frozen_and_must_say_how_to_build() -> None:
    spec = parse_model({"name": "mlp"})
    with pytest.raises(ValidationError):
        spec.name = "other"
    with pytest.raises(TypeError, match="does not say how"):
        ModelSpec(name="nothing").build((1,), 1)
