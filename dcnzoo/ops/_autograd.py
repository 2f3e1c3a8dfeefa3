"""Registers derivatives, as ``torch.library.register_autograd`` does, and makes them ``torch.func``'s too.

torch's own registration refuses ``torch.func.grad`` and its kin, and lets forward-mode tangents vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _backend
from ._deterministic import needs_order
from ._errors import raise_out_of_memory

_library = torch.library.Library("dcnzoo", "IMPL")


def register_autograd(
    name: str, setup_context: Callable, backward: Callable, in_plain_torch: Callable | None = None
) -> None:
    """Give the operator ``dcnzoo::name`` its derivatives, in the form of ``torch.autograd.Function``.

    Forward mode goes through ``in_plain_torch``, which takes the same arguments; without it, it is an error.
    """
    operator = getattr(torch.ops.dcnzoo, name).default
    if _backend.choice == "reference" and in_plain_torch is not None:
        for key in ("Autograd", "CPU", "CUDA", "XPU"):  # the first is passed over in inference mode
            _backend.override(name, in_plain_torch, key)
        return

    def below_autograd(*arguments):
        *arguments, keys = arguments
        with torch._C._AutoDispatchBelowAutograd():
            try:
                return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)
            except RuntimeError as error:
                raise_out_of_memory(error)
                raise

    def forward(*arguments):
        if not torch._C._are_functorch_transforms_active():
            return below_autograd(*arguments)
        # Only this transform's graph is complete: the ones beneath it have theirs still to record.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return below_autograd(*arguments)

    # Of a single level: that of the transform which is being applied, or plain autograd's. The dispatcher
    # takes the tensors through the others.
    function = type(
        f"dcnzoo_{name}",
        (_SingleLevelFunction,),
        {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(
                lambda ctx, inputs, output: setup_context(ctx, inputs[:-1], output)
            ),
            "backward": staticmethod(lambda ctx, *grads: (*backward(ctx, *grads), None)),
        },
    )

    def autograd(keys, *arguments):
        forward_mode = forward_ad._current_level >= 0
        if forward_mode and in_plain_torch is not None:
            return in_plain_torch(*arguments)
        if forward_mode or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            with enable_single_level_autograd_function():
                return function.apply(*arguments, keys)
        return below_autograd(*arguments, keys)

    _library.impl(name, autograd, "Autograd", with_keyset=True)


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
        _, pull = torch.func.vjp(forward, *inputs)
        gradients = pull(grad_output)
        return tuple(gradients[i] for i in chosen)

    _, pull = torch.func.vjp(backward, grad_output, *inputs)
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
        if wanted[0] and needs_order(grad_output):  # the kernel adds atomically, torch's gather in one order
            forward = of_differentiable(ctx.saved_tensors, ctx.arguments)
            _, pull = torch.func.vjp(forward, *(ctx.saved_tensors[place] for place in differentiable))
            gradients = pull(grad_output)
        else:
            gradients = backward_operator(grad_output, *ctx.saved_tensors, *ctx.arguments, wanted)
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
