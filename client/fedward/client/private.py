"""Patient-level DP-SGD: the gradient of a step, safe to follow (Abadi et al. 2016, algorithm 1).

One step: sample patients; take at most k rows of each; average the gradients of a patient's rows;
clip that average to L2 norm C over all parameters together; sum over patients; add Gaussian noise
of standard deviation σ·C; divide by the expected batch. Gradients of single rows come from Opacus'
hooks (`GradSampleHooks`); sampling, clipping and noise from the site's `PrivacyPlan`.

Guarantee:
    Each `fill` is one step of `PrivacyPlan.training_event`: adding or removing one patient, with
    all their rows, moves the sum before noise by at most C (up to float32 rounding, a few parts in
    10⁷). The layers must treat each row alone, which is checked as far as Opacus can tell.
    What `fill` leaves behind in the model is the noisy gradient alone.

Edge cases:
    - Nobody sampled: a step of pure noise, which looks like any other from outside.
    - A patient whose gradient is zero: contributes zero; nothing is divided by the norm.
    - A patient with more than k rows: k of them at random, others next time.
    - A patient whose gradient is not finite: contributes zero. To stop instead would be an answer
      about a patient that ε does not cover. That training diverged shows in the noisy weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks
from opacus.validators import ModuleValidator
from torch import nn

from fedward.client.dataset import Dataset
from fedward.client.patient_rows import PatientRows
from fedward.common.errors import PrivacyError
from fedward.common.models.outputs import Kind, loss_per_example
from fedward.common.privacy.plan import PrivacyPlan
from fedward.common.privacy.randomness import Randomness


class PrivateGradients:
    """The gradient source of a private study; see the module for its guarantee.

    Args:
        dataset: training rows of one site.
        plan: what was promised; made for this site.
        kind: of the task, decides the loss.
        randomness: for sampling and for noise. Bit-identical gradients for the same
            `SeededRandomness`, model and thread count.
        physical_batch: rows whose gradients are held in memory at once, ≥ 1; changes speed and
            memory only. Memory is about 8 bytes · rows · parameters.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: PrivacyPlan,
        kind: Kind,
        randomness: Randomness,
        physical_batch: int = 256,
    ) -> None:
        self._dataset = dataset
        self._plan = plan
        self._kind = kind
        self._randomness = randomness
        self._physical_batch = physical_batch
        self._patients = PatientRows(dataset, plan)
        self._checked: nn.Module | None = None

    def fill(self, model: nn.Module) -> None:
        """Set `.grad` of every trainable parameter to the noisy mean gradient of the next step.

        Args:
            model: in training mode. No hooks and no single-row gradients stay in it.

        Raises:
            PrivacyError: the model mixes patients (BatchNorm) or cannot give single-row gradients.
        """
        self._check(model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        rows, owner = self._patients.draw(self._randomness)
        try:
            total = self._clipped_sum(model, parameters, rows, owner)
        finally:
            # Backward also left the exact gradient, which nobody may follow.
            for parameter in parameters:
                parameter.grad = None
        noisy = torch.from_numpy(self._plan.privatise(total.numpy(), self._randomness))
        parts = torch.split(noisy, [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def _check(self, model: nn.Module) -> None:
        if not model.training:
            # In evaluation mode Opacus gives no gradients at all, which would pass for zeros.
            raise PrivacyError("the model is not in training mode", hint="call model.train() first")
        if model is self._checked:
            return
        problems = [
            *ModuleValidator.validate(model, strict=False),
            *GradSampleHooks.validate(model, strict=False),
        ]
        if problems:
            raise PrivacyError(
                "the model has a layer that cannot be trained with patient-level privacy",
                hint="use GroupNorm instead of BatchNorm, and layers that Opacus supports",
            )
        self._checked = model

    def _clipped_sum(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        rows: NDArray[np.int64],
        owner: NDArray[np.int64],
    ) -> torch.Tensor:
        """Sum over patients of their clipped mean gradients: float64 `[all parameters]`.

        Rows are taken a physical batch at a time. A patient whose rows continue in the next one is
        carried over, so that every patient is clipped once, whole.
        """
        total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
        sizes = np.bincount(owner).astype(np.float32)
        carry: torch.Tensor | None = None
        with _row_gradients(model) as hooks:
            for start in range(0, len(rows), self._physical_batch):
                stop = min(start + self._physical_batch, len(rows))
                gradient = self._gradients(model, hooks, parameters, rows[start:stop])
                local = owner[start:stop] - owner[start]
                sums = _sum_by(gradient, local)
                if carry is not None:
                    sums[0] += carry
                    carry = None
                if stop < len(rows) and owner[stop] == owner[stop - 1]:
                    carry, sums = sums[-1].clone(), sums[:-1]
                patients = np.arange(owner[start], owner[start] + len(sums))
                total += self._clip_and_add(sums, sizes[patients])
        return total

    def _gradients(
        self,
        model: nn.Module,
        hooks: GradSampleHooks,
        parameters: list[nn.Parameter],
        rows: NDArray[np.int64],
    ) -> torch.Tensor:
        """Gradient of each row's loss: `[rows, all parameters]`."""
        inputs, target = self._dataset.batch(rows)
        # Opacus (1.6) reads convolutions' inputs by the strides of this layout, whatever they are:
        # pictures with one channel have others, and got wrong gradients. `contiguous` keeps them.
        inputs = inputs.clone(memory_format=torch.contiguous_format)
        loss_per_example(self._kind, model(inputs), target).sum().backward()  # type: ignore[no-untyped-call]
        found = [vars(p)["grad_sample"] for p in parameters]
        flat = [
            torch.zeros(len(rows), p.numel())
            if gradient is None  # a parameter that the output does not depend on
            else gradient.reshape(len(rows), -1)
            for p, gradient in zip(parameters, found, strict=True)
        ]
        hooks.set_grad_sample_to_none()
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def _clip_and_add(self, sums: torch.Tensor, rows: NDArray[np.float32]) -> torch.Tensor:
        """`sums` over rows, `[patients, parameters]`, to the sum of clipped means."""
        size = torch.from_numpy(rows)
        norms = torch.linalg.vector_norm(sums, dim=1) / size
        finite = torch.isfinite(norms)
        if not bool(finite.all()):
            sums = torch.where(finite[:, None], sums, torch.zeros(()))
            norms = torch.where(finite, norms, torch.zeros(()))
        factors = torch.from_numpy(self._plan.clip_factors(norms.double().numpy()))
        return (factors.float() / size) @ sums


def _sum_by(gradient: torch.Tensor, owner: NDArray[np.int64]) -> torch.Tensor:
    """Sum rows of the same owner (0, 1, … ascending): `[owners, parameters]`."""
    owners = int(owner[-1]) + 1
    if owners == len(owner):
        return gradient
    sums = torch.zeros(owners, gradient.shape[1])
    return sums.index_add_(0, torch.from_numpy(owner), gradient)


@contextmanager
def _row_gradients(model: nn.Module) -> Iterator[GradSampleHooks]:
    """Let backward leave each row's gradient in `grad_sample`; then make the model plain again."""
    with warnings.catch_warnings():
        # Torch notes that a first layer's input needs no gradient, which is as it should be.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        hooks = GradSampleHooks(model, loss_reduction="sum")
        try:
            yield hooks
        finally:
            hooks.cleanup()
            for module in model.modules():
                for name in ("activations", "max_batch_len"):
                    vars(module).pop(name, None)
