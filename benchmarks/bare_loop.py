"""Federated averaging as one would write it by hand: what every engine is measured against.

The fastest honest sequential program: one process, one thread, one module and one optimizer for all
sites, the data as ready tensors, the global weights copied in place, local SGD over shuffled
batches, a weighted sum in place. Nothing is checked, kept, logged or evaluated between rounds.
With privacy, Opacus' hooks give the gradient of each row in one pass per step; a row is a patient,
batches are Poisson samples, and clipping, noise and the division by the expected batch are one
tensor expression for each parameter. It imports nothing of fedward.

    python benchmarks/bare_loop.py FOLDER

FOLDER is made by `fedward bench`. Prints JSON: seconds of each round, accuracy on the test rows.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Local = Callable[[Tensor, Tensor], None]
"""Trains the module at a site, from what it is: inputs and targets of all its rows."""


def build(model: dict[str, Any], inputs: tuple[int, ...]) -> nn.Sequential:
    """The model of a workload, one logit. Nothing is computed that would change nothing."""
    layers: list[nn.Module] = []
    width = inputs[0]
    if model["name"] == "cnn":
        side = inputs[1]
        for channels in model["channels"]:
            layers += [nn.Conv2d(width, channels, 3, padding=1)]
            layers += [nn.GroupNorm(channels // 8, channels), nn.MaxPool2d(2), nn.ReLU()]
            width, side = channels, side // 2
        if side != model["pool"]:
            layers += [nn.AdaptiveAvgPool2d(model["pool"])]
        layers += [nn.Flatten()]
        width *= model["pool"] ** 2
    for before, after in pairwise((width, *model["hidden"])):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((width, *model["hidden"])[-1], 1))


def plain(module: nn.Module, load: dict[str, Any]) -> Local:
    """Local SGD over shuffled batches."""
    optimizer = torch.optim.SGD(module.parameters(), lr=load["learning_rate"], foreach=False)
    loss, batch = functional.binary_cross_entropy_with_logits, load["batch_size"]

    def local(inputs: Tensor, target: Tensor) -> None:
        for _ in range(load["epochs"]):
            order = torch.randperm(len(target))
            batches = zip(
                torch.split(inputs[order], batch), torch.split(target[order], batch), strict=True
            )
            for x, y in batches:
                optimizer.zero_grad(set_to_none=True)
                loss(module(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    return local


def private(module: nn.Module, load: dict[str, Any]) -> Local:
    """Local DP-SGD; a row is a patient."""
    from opacus import GradSampleModule

    hooked = GradSampleModule(module, loss_reduction="sum")
    parameters: list[Any] = list(module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=load["learning_rate"], foreach=False)
    loss, expected = functional.binary_cross_entropy_with_logits, load["batch_size"]
    clip, deviation = load["max_grad_norm"], load["noise_multiplier"] * load["max_grad_norm"]

    def local(inputs: Tensor, target: Tensor) -> None:
        rows = len(target)
        for _ in range(load["epochs"] * -(-rows // expected)):
            chosen = torch.nonzero(torch.rand(rows) < expected / rows).squeeze(1)
            optimizer.zero_grad(set_to_none=True)
            for parameter in parameters:
                parameter.grad_sample = None
            if len(chosen):
                found = loss(hooked(inputs[chosen]), target[chosen], reduction="sum")
                found.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                step(parameters, len(chosen))
            optimizer.step()

    def step(parameters: list[Any], chosen: int) -> None:
        """The noisy mean gradient, from the gradients of the rows."""
        noise = [torch.randn_like(p).mul_(deviation) for p in parameters]
        if chosen:
            flat = [p.grad_sample.flatten(1) for p in parameters]
            norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in flat], 1)
            factors = (clip / (torch.linalg.vector_norm(norms, dim=1) + 1e-6)).clamp_(max=1.0)
            for total, rows in zip(noise, flat, strict=True):
                total += (factors @ rows).view_as(total)
        torch._foreach_div_(noise, float(expected))
        for parameter, gradient in zip(parameters, noise, strict=True):
            parameter.grad = gradient

    return local


def federate(load: dict[str, Any], inputs: Tensor, target: Tensor) -> tuple[nn.Module, list[float]]:
    """Train, and say how many seconds each round took.

    Args:
        load: the workload.
        inputs: `[sites, rows, …]`.
        target: `[sites, rows, 1]`.
    """
    module = build(load["model"], tuple(inputs.shape[2:]))
    # A quarter faster; with private steps Opacus 1.6 then gives wrong gradients of convolutions.
    if load["model"]["name"] == "cnn" and not load["private"]:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights: list[Tensor] = list(module.parameters())
    local = (private if load["private"] else plain)(module, load)
    sites = list(zip(inputs.unbind(), target.unbind(), strict=True))
    shares = [1.0 / len(sites)] * len(sites)
    shared = [w.detach().clone() for w in weights]
    total = [torch.zeros_like(w) for w in shared]
    seconds = []
    for _ in range(load["rounds"]):
        started = time.perf_counter()
        torch._foreach_zero_(total)
        for (own, its), share in zip(sites, shares, strict=True):
            with torch.no_grad():
                torch._foreach_copy_(weights, shared)
            local(own, its)
            with torch.no_grad():
                torch._foreach_add_(total, weights, alpha=share)
        shared, total = total, shared
        seconds.append(time.perf_counter() - started)
    with torch.no_grad():
        torch._foreach_copy_(weights, shared)
    return module, seconds


def tensors(values: np.ndarray[Any, Any], kind: str) -> Tensor:
    """Inputs as the study's public bounds make them: about -1 … 1."""
    if kind == "cnn":
        return torch.from_numpy(values).unsqueeze(1).float().div_(127.5).sub_(1.0)
    return torch.from_numpy(values).div_(4.0)


def main() -> None:
    """Run a workload."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    load = json.loads((folder / "workload.json").read_text())
    torch.manual_seed(load["seed"])
    with np.load(folder / "rows.npz") as rows:
        kind = load["model"]["name"]
        inputs, test_inputs = (tensors(rows[name], kind) for name in ("train_x", "test_x"))
        target = torch.from_numpy(rows["train_y"]).float()
        truth = torch.from_numpy(rows["test_y"]).bool()
    shape = (load["sites"], load["rows"])
    module, seconds = federate(load, inputs.view(*shape, *inputs.shape[1:]), target.view(*shape, 1))
    with torch.no_grad():
        right = (module(test_inputs)[:, 0] > 0) == truth
    print(json.dumps({"seconds": seconds, "accuracy": float(right.float().mean())}))


if __name__ == "__main__":
    main()
