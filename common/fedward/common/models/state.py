"""Between a torch module and its named arrays, and from a specification to a module.

torch is imported inside the functions: `registry` imports every file here to find the models, and
checking a study file must not load torch.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from fedward.common.errors import ModelError
from fedward.common.models.registry import ModelSpec
from fedward.common.tensors import Weights, check_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

# torch draws first weights from one generator for the whole process.
_GENERATOR = threading.Lock()


def build_module(spec: ModelSpec, inputs: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """Make a module with reproducible first weights, on the CPU.

    Args:
        spec: the `[model]` of a study.
        inputs: shape of one example, without the batch dimension.
        outputs: length of the output, `TaskSection.outputs`.
        seed: decides the first weights, 0 … 2⁶³ - 1.

    Returns:
        The same weights for the same arguments, whatever other threads build meanwhile; torch's
        global generator is left as it was.
    """
    import torch

    # Not torch.manual_seed: it would also reseed the generators of accelerators, which
    # fork_rng(devices=[]) does not put back.
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return spec.build(inputs, outputs)


def get_weights(module: nn.Module) -> Weights:
    """A copy of all parameters and floating-point buffers, in `state_dict` order.

    Raises:
        ModelError: a tensor is floating point but not float32.
    """
    return {
        name: np.array(tensor.detach().cpu().numpy(), np.float32, order="C")
        for name, tensor in _float_tensors(module).items()
    }


def set_weights(module: nn.Module, weights: Weights) -> None:
    """Overwrite all parameters and floating-point buffers in place.

    Optimisers and hooks that hold the parameters keep working. Nothing is changed if a tensor does
    not fit.

    Raises:
        RoundError: names, order, shapes or types differ, or a value is not finite.
        ModelError: a tensor of the module is floating point but not float32.
    """
    import torch

    tensors = _float_tensors(module)
    # Zero-stride views: only the shapes are compared, so no second copy of the model is made.
    like = {
        name: np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    check_weights(weights, like)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(np.array(weights[name], np.float32)))


def count_parameters(module: nn.Module) -> int:
    """How many values are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _float_tensors(module: nn.Module) -> dict[str, Tensor]:
    import torch

    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.dtype != torch.float32:
            raise ModelError(
                f"tensor {name} has type {tensor.dtype}", hint="build the model in float32"
            )
        tensors[name] = tensor
    return tensors
