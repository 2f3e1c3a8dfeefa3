"""Registers derivatives, as ``torch.library.register_autograd`` does, and makes them ``torch.func``'s too.

torch's own registration refuses ``torch.func.grad`` and its kin, and lets forward-mode tangents vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import _backend
from ._deterministic import needs_order
from ._errors import raise_out_of_memory
from ._torch_private import (
    AutoDispatchBelowAutograd,
    SingleLevelFunction,
    after_autograd_keyset,
    any_requires_grad,
    enable_single_level_autograd_function,
    in_dual_level,
    set_forward_grad_enabled,
    transforms_active,
)

_library = torch.library.Library("dcnzoo", "IMPL")


def register_autograd(
    name: str,
    setup_context: Callable,
    backward: Callable,
    in_plain_torch: Callable | None = None,
    forward_mode: Callable | None = None,
) -> None:
    """Give the operator ``dcnzoo::name`` its derivatives, in the form of ``torch.autograd.Function``.

    Args:
        in_plain_torch: the operator in plain PyTorch, with the same arguments: for
            ``DCNZOO_BACKEND=reference``, and for forward mode.
        forward_mode: takes the operator's arguments with their tangents and returns its results with theirs.
            By default ``in_plain_torch``; without either, forward mode is an error.
    """
    operator = getattr(torch.ops.dcnzoo, name).default
    forward_mode = forward_mode or in_plain_torch

    def below_autograd(*arguments):
        *arguments, keys = arguments
        with AutoDispatchBelowAutograd():
            try:
                return operator.redispatch(keys & after_autograd_keyset, *arguments)
            except RuntimeError as error:
                raise_out_of_memory(error)
                raise

    if _backend.choice == "reference" and in_plain_torch is not None:
        _backend.use_reference(name, in_plain_torch, below_autograd)
        return

    def forward(*arguments):
        if not transforms_active():
            return below_autograd(*arguments)
        # Only this transform's graph is complete: the ones beneath it have theirs still to record.
        with torch.enable_grad(), set_forward_grad_enabled(True):
            return below_autograd(*arguments)

    # Of a single level: that of the transform which is being applied, or plain autograd's. The dispatcher
    # takes the tensors through the others.
    function = type(
        f"dcnzoo_{name}",
        (SingleLevelFunction,),
        {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(
                lambda ctx, inputs, output: setup_context(ctx, inputs[:-1], output)
            ),
            "backward": staticmethod(lambda ctx, *grads: (*backward(ctx, *grads), None)),
        },
    )

    def autograd(keys, *arguments):
        has_tangents = in_dual_level() and any(tangent(argument) is not None for argument in arguments)
        if has_tangents and forward_mode is not None:
            below_autograd(*arguments, keys)  # for its checks of the arguments
            return forward_mode(*arguments)
        if has_tangents or (torch.is_grad_enabled() and any_requires_grad(*arguments)):
            with enable_single_level_autograd_function():
                return function.apply(*arguments, keys)
        return below_autograd(*arguments, keys)

    _library.impl(name, autograd, "Autograd", with_keyset=True)


def tangent(argument: object) -> Tensor | None:
    """The forward-mode tangent of an argument that is a tensor and has one."""
    return unpack_dual(argument).tangent if isinstance(argument, Tensor) else None


def primal(argument: object) -> object:
    """An argument without its forward-mode tangent."""
    return unpack_dual(argument).primal if isinstance(argument, Tensor) else argument


def in_forward_mode(*tensors: Tensor | None) -> bool:
    """Whether a backward must be differentiable in forward mode, which the ``_backward`` operators are not.

    Within transforms of ``torch.func`` the tangents may belong to an outer one, where they cannot be seen.
    """
    return in_dual_level() and (transforms_active() or any(tangent(t) is not None for t in tensors))


def gradients_in_plain_torch(
    forward: Callable, grad_output: Tensor, inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of ``inputs``, for ``forward`` in plain PyTorch: in one order, and forward mode works."""
    pull = torch.func.vjp(forward, *inputs)[1]
    return pull(grad_output)


def differentiate_twice(
    forward: Callable,
    grad_output: Tensor,
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """What an operator's backward passes back to ``(grad_output, *inputs)``, for ``forward`` in plain torch.

    Args:
        wanted: which gradients the backward gave.
        grads: their gradients; those of others are not read.
    """
    chosen = [i for i, is_wanted in enumerate(wanted) if is_wanted]

    def backward(grad_output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        gradients = gradients_in_plain_torch(forward, grad_output, inputs)
        return tuple(gradients[i] for i in chosen)

    pull = torch.func.vjp(backward, grad_output, *inputs)[1]
    return pull(tuple(grads[i] for i in chosen))


def register_derivatives(
    name: str, tensors: int, differentiable: Sequence[int], in_plain_torch: Callable
) -> None:
    """Both derivatives of an operator whose first arguments are ``tensors`` tensors.

    The first is ``dcnzoo::_{name}_backward(grad_output, *arguments, output_mask)``, which returns the
    gradients of the arguments at the places ``differentiable``, of which the first is summed atomically on
    CUDA; where sums are to have one order, ``in_plain_torch`` is differentiated in its place. The second
    differentiates that twice: exact, not fast.
    """
    backward_operator = getattr(torch.ops.dcnzoo, f"_{name}_backward").default

    def of_differentiable(saved, arguments):
        def forward(*inputs):
            given = list(saved)
            for place, tensor in zip(differentiable, inputs, strict=True):
                given[place] = tensor
            return in_plain_torch(*given, *arguments)

        return forward

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.arguments = inputs[tensors:]

    def first_backward(ctx, grad_output):
        wanted = [ctx.needs_input_grad[place] for place in differentiable]
        # the kernel adds atomically, torch's gather in one order
        in_order = wanted[0] and needs_order(grad_output)
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint refuses a second time
        if in_order or in_forward_mode(grad_output, *saved):
            forward = of_differentiable(saved, ctx.arguments)
            gradients = gradients_in_plain_torch(forward, grad_output, [saved[i] for i in differentiable])
        else:
            gradients = backward_operator(grad_output, *saved, *ctx.arguments, wanted)
        results = [None] * (tensors + len(ctx.arguments))
        for place, gradient, is_wanted in zip(differentiable, gradients, wanted, strict=True):
            results[place] = gradient if is_wanted else None
        return tuple(results)

    def setup_backward_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[: tensors + 1])
        *ctx.arguments, ctx.wanted = inputs[tensors + 1 :]

    def second_backward(ctx, *grads):
        grad_output, *saved = ctx.saved_tensors
        forward = of_differentiable(saved, ctx.arguments)
        of_grad_output, *of_inputs = differentiate_twice(
            forward, grad_output, [saved[place] for place in differentiable], ctx.wanted, grads
        )
        results = [of_grad_output] + [None] * (tensors + len(ctx.arguments) + 1)
        for place, gradient in zip(differentiable, of_inputs, strict=True):
            results[place + 1] = gradient
        return tuple(results)

    register_autograd(name, setup_context, first_backward, in_plain_torch)
    register_autograd(f"_{name}_backward", setup_backward_context, second_backward)
