"""Local training of a chunk of sites at once: what `client.training.train` does, for all of them.

The gradient of a step is either the mean over a batch, or patient-level private: norms of patients'
gradients from the layers (`layers.py`), then one weighted sum. Who is drawn, the bound, the noise
and what it is divided by come from each site's `PrivacyPlan`, as in `client.private`.

Guarantee of the private gradient:
    That of `client.private`, edge cases included, for each site by itself: sites share nothing but
    the call that computes them. A row counts as not finite already when its squared norm, or the
    square of what goes into a layer, overflows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedward.client.training import LocalSettings
from fedward.common.models.outputs import Kind, loss_gradient
from fedward.common.privacy.plan import PrivacyPlan, privatise_each
from fedward.common.privacy.randomness import Randomness
from fedward.simulations.engines.stacked.layers import Trained
from fedward.simulations.engines.stacked.optimisers import Optimiser, is_plain
from fedward.simulations.engines.stacked.program import Program, Stack
from fedward.simulations.engines.stacked.schedule import Step
from fedward.simulations.engines.table import Table


@dataclass(frozen=True)
class Privacy:
    """How the gradients of a chunk are kept private.

    Attributes:
        plans: of each site.
        sources: of each site's noise.
    """

    plans: Sequence[PrivacyPlan]
    sources: Sequence[Randomness]


@dataclass(frozen=True)
class Chunk:
    """Sites that are trained together.

    Attributes:
        program: their model.
        table: the rows of all sites.
        kind: of the task.
        settings: of all; the number of steps is in `steps`.
        sites: how many.
        steps: the batches.
        privacy: None without.
    """

    program: Program
    table: Table
    kind: Kind
    settings: LocalSettings
    sites: int
    steps: Iterable[Step]
    privacy: Privacy | None


@torch.no_grad()
def train_chunk(chunk: Chunk, weights: list[Tensor]) -> Stack:
    """Train all sites of a chunk from the same weights.

    Args:
        chunk: the sites.
        weights: global ones, in the order of `chunk.program.names`.

    Returns:
        What each site's weights became; not finite where training diverged.
    """
    stack = chunk.program.stack(weights, chunk.sites)
    if chunk.privacy is None and is_plain(chunk.settings):
        for step in chunk.steps:
            _add_mean_gradient(chunk, step, stack, stack, -chunk.settings.learning_rate)
        return stack
    flat = torch.empty(chunk.sites, sum(w.numel() for w in weights), dtype=weights[0].dtype)
    gradients = chunk.program.views(flat, weights)
    optimiser = Optimiser(chunk.settings, stack, weights)
    for step in chunk.steps:
        flat[: step.active].zero_()
        if chunk.privacy is None:
            _add_mean_gradient(chunk, step, stack, gradients, 1.0)
        else:
            _add_clipped_sum(chunk, chunk.privacy, step, stack, gradients)
            plans, sources = chunk.privacy.plans, chunk.privacy.sources
            active = step.active
            privatise_each(plans[:active], flat[:active].numpy(), sources[:active])
        optimiser.step(gradients, step.active)
    return stack


def _add_mean_gradient(chunk: Chunk, step: Step, stack: Stack, into: Stack, scale: float) -> None:
    """Add `scale` times the mean gradient of a step to the first sites of `into`."""
    gradient, own, contexts = _output_gradient(chunk, step, stack)
    gradient *= step.weight.to(gradient.dtype).unsqueeze(2)
    target = own if into is stack else _first(into, step.active)
    for index, layer, context, arrived in chunk.program.backward(gradient, own, contexts):
        layer.add_gradient(target[index], context, arrived, scale=scale, rows=None)


def _add_clipped_sum(chunk: Chunk, privacy: Privacy, step: Step, stack: Stack, into: Stack) -> None:
    """Add the sum over patients of their clipped mean gradients."""
    gradient, own, contexts = _output_gradient(chunk, step, stack)
    same = _same(step.owner, gradient.dtype)
    counted = step.weight.to(gradient.dtype)
    rows = counted if same is None else (same * counted.unsqueeze(1)).sum(2)
    taps = list(chunk.program.backward(gradient, own, contexts))
    squares = _squares(taps, same)
    if same is not None:
        squares += _SLACK * torch.finfo(squares.dtype).eps * _most(taps, same).square()
    if not bool(torch.isfinite(squares).all()):
        # Found out by single rows: a row that is not finite is NaN in sums with others, too.
        finite = _of_patients(torch.isfinite(_squares(taps, None)), same)
        taps = [(i, layer, _only(c, finite), _only(g, finite)) for i, layer, c, g in taps]
        squares = _squares(taps, same)
        finite &= torch.isfinite(squares)  # rows may be finite, and their sum not
        squares = torch.where(finite, squares, torch.zeros((), dtype=squares.dtype))
        counted = counted * finite
    norms = squares.clamp(min=0.0).sqrt() / rows.clamp(min=1.0)
    bounded = privacy.plans[0].clip_factors(norms.double().numpy())
    factors = torch.from_numpy(bounded).to(norms.dtype) * counted / rows.clamp(min=1.0)
    target = _first(into, step.active)
    for index, layer, context, arrived in taps:
        layer.add_gradient(target[index], context, arrived, scale=1.0, rows=factors)


Tap = tuple[int, Trained, Any, Tensor]
"""What `Program.backward` yields."""


def _squares(taps: list[Tap], same: Tensor | None) -> Tensor:
    """Squared norms of patients' summed gradients, for each of their rows: `[active, B]`."""
    inner = torch.stack([layer.squares(context, g, same) for _, layer, context, g in taps]).sum(0)
    return inner if same is None else torch.bmm(same, inner.unsqueeze(2)).squeeze(2)


_SLACK = 64.0
"""Rounding of a sum of inner products, in units of the last place of its largest term."""


def _most(taps: list[Tap], same: Tensor) -> Tensor:
    """The norm that a patient's summed gradient has at most: the sum of the rows' norms.

    Where rows cancel, their inner products do too, and what is left of them is rounding. With
    some of this added, a norm is never taken for smaller than it is.
    """
    return torch.bmm(same, _squares(taps, None).sqrt().unsqueeze(2)).squeeze(2)


def _of_patients(finite: Tensor, same: Tensor | None) -> Tensor:
    """Rows of patients whose rows are all finite."""
    if same is None:
        return finite
    return torch.bmm(same, (~finite).to(same.dtype).unsqueeze(2)).squeeze(2) == 0.0


def _output_gradient(chunk: Chunk, step: Step, stack: Stack) -> tuple[Tensor, Stack, list[Any]]:
    """Gradient of each row's loss by the model's output, `[active, B, outputs]`."""
    own = _first(stack, step.active)
    inputs, target = chunk.table.batch(step.rows)
    shape = step.weight.shape
    outputs, contexts = chunk.program.forward(inputs.reshape(*shape, *inputs.shape[1:]), own)
    found = loss_gradient(chunk.kind, outputs.flatten(0, 1), target)
    return found.reshape(*shape, -1), own, contexts


def _first(stack: Stack, active: int) -> Stack:
    if len(stack[0][0]) == active:
        return stack
    return [[weight[:active] for weight in layer] for layer in stack]


def _same(owner: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`[S, B, B]`: 1 where two rows belong to one patient."""
    if owner is None:
        return None
    return (owner.unsqueeze(2) == owner.unsqueeze(1)).to(dtype)


def _only(values: Any, finite: Tensor) -> Any:
    """Rows that are not finite are as if they were not there; 0 · ∞ would be NaN."""
    kept = finite.view(*finite.shape, *(1,) * (values.dim() - 2))
    return torch.where(kept, values, torch.zeros((), dtype=values.dtype))
