"""Operators of ``mmcv._ext`` in vectorised PyTorch, by kind, with mmcv's names and arguments.

As in mmcv, tensors named ``output``, ``ious`` and ``argmax``, and ``grad_…`` of inputs, belong to the caller
and are written in place. Half precision is computed in float32. mmcv passes all arguments except tensors by
keyword: the ``**options`` of a function are the arguments of the private function that it calls. A family
of models that ``docs/coverage.md`` lists uses each of the functions.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of ``function(*inputs)`` with respect to ``inputs``."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = function(*leaves)
    return torch.autograd.grad(output, leaves, grad_output.to(output.dtype), materialize_grads=True)


def forward_and_backward(function: Callable[..., Tensor]) -> tuple[Callable[..., None], Callable[..., None]]:
    """mmcv's functions for ``function(input, *tensors, **options)``, which must be linear in ``input``."""

    def forward(*tensors: Tensor, **options: float) -> None:
        *inputs, output = tensors
        output.copy_(function(*inputs, **options))

    def backward(grad_output: Tensor, *tensors: Tensor, **options: float) -> None:
        *others, grad_input = tensors
        zeros = torch.zeros_like(grad_input)  # the gradient does not depend on the input
        (gradient,) = gradients(lambda input: function(input, *others, **options), [zeros], grad_output)
        grad_input.add_(gradient)

    return forward, backward
