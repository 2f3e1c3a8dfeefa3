"""Registers derivatives, as ``torch.library.register_autograd`` does, and makes them ``torch.func``'s too.

torch's own registration refuses ``torch.func.grad`` and its kin, and lets forward-mode tangents vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import _backend, _deterministic, _plain
from ._arguments import memory_format
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
    reference_impl: Callable | None = None,
    forward_mode: Callable | None = None,
) -> None:
    """Give the operator ``dcnzoo::name`` its derivatives, in the form of ``torch.autograd.Function``.

    Args:
        reference_impl: the operator in plain PyTorch, with the same arguments: for
            ``DCNZOO_BACKEND=reference``, for devices without compiled kernels, and for forward mode.
        forward_mode: takes the operator's arguments with their tangents and returns its results with theirs.
            By default ``reference_impl``; without either, forward mode is an error.
    """
    operator = getattr(torch.ops.dcnzoo, name).default
    forward_mode = forward_mode or reference_impl

    def below_autograd(*arguments):
        *arguments, keys = arguments
        with AutoDispatchBelowAutograd():
            try:
                return operator.redispatch(keys & after_autograd_keyset, *arguments)
            except RuntimeError as error:
                raise_out_of_memory(error)
                raise

    if _backend.backend == "reference" and reference_impl is not None:
        _backend.use_reference(name, reference_impl, below_autograd)
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
    if reference_impl is not None:
        _plain.register(name, reference_impl)


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


def reference_gradients(
    reference_impl: Callable, grad_output: Tensor, arguments: Sequence, places: Sequence[int]
) -> list[Tensor | None]:
    """The gradients of the arguments at ``places``, by differentiating the reference.

    The sums have one order, and forward mode works. None for an argument that is None.
    """
    forward, given, inputs = _of_tensors(reference_impl, arguments, places)
    gradients = dict(zip(given, torch.func.vjp(forward, *inputs)[1](grad_output), strict=True))
    return [gradients.get(place) for place in places]


def _of_tensors(
    reference_impl: Callable, arguments: Sequence, places: Sequence[int]
) -> tuple[Callable, list[int], list[Tensor]]:
    """The reference as a function of the tensors at ``places``. Places of None are left out."""
    given = [place for place in places if arguments[place] is not None]

    def forward(*tensors: Tensor) -> Tensor:
        changed = dict(zip(given, tensors, strict=True))
        return reference_impl(*(changed.get(i, argument) for i, argument in enumerate(arguments)))

    return forward, given, [arguments[place] for place in given]


def register_derivatives(
    name: str,
    tensors: int,
    differentiable: Sequence[int],
    reference_impl: Callable,
    *,
    recomputed: Sequence[int] = (),
    restore: Callable = lambda grad_output, *saved: saved,
    grad_input_in_order: Callable | None = None,
    has_order: bool = False,
    keeps_format: bool = False,
) -> None:
    """Both derivatives of an operator, and the fake kernel of the first.

    The first is ``dcnzoo::_{name}_backward(grad_output, *arguments, output_mask)``, which returns the
    gradients of the arguments at the places ``differentiable``; of those that ``output_mask`` leaves out, an
    empty tensor. The second differentiates ``reference_impl`` twice: exact, not fast.

    Args:
        tensors: the backward's first arguments after ``grad_output`` are so many tensors.
        recomputed: the places of arguments that the backward does not take.
        restore: the operator's arguments, from ``grad_output`` and those that the backward takes.
        grad_input_in_order: the first gradient, summed in one order, from the backward's arguments. On CUDA
            the kernel adds it up atomically. By default ``reference_impl`` is differentiated.
        has_order: the backward operator itself sums in one order where that is asked for.
        keeps_format: the first gradient has the memory format of its argument; else it is contiguous.
    """
    backward_operator = getattr(torch.ops.dcnzoo, f"_{name}_backward").default

    @torch.library.register_fake(f"dcnzoo::_{name}_backward")
    def _(grad_output, *arguments):
        *saved, wanted = arguments
        given = restore(grad_output, *saved)
        gradients = [
            torch.empty_like(given[place], memory_format=torch.contiguous_format)
            if is_wanted and given[place] is not None
            else given[0].new_empty(0)
            for place, is_wanted in zip(differentiable, wanted, strict=True)
        ]
        if keeps_format and wanted[0]:
            gradients[0] = gradients[0].to(memory_format=memory_format(given[differentiable[0]]))
        return tuple(gradients)

    def setup_context(ctx, inputs, output):
        saved = [argument for i, argument in enumerate(inputs) if i not in recomputed]
        ctx.save_for_backward(*saved[:tensors])
        ctx.arguments = saved[tensors:]

    def first_backward(ctx, grad_output):
        wanted = [ctx.needs_input_grad[place] for place in differentiable]
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint refuses a second time
        in_order = wanted[0] and not has_order and _deterministic.deterministic(grad_output)
        if in_forward_mode(grad_output, *saved) or (in_order and grad_input_in_order is None):
            arguments = restore(grad_output, *saved, *ctx.arguments)
            gradients = reference_gradients(reference_impl, grad_output, arguments, differentiable)
        else:
            arguments = (grad_output, *saved, *ctx.arguments)
            gradients = backward_operator(*arguments, [wanted[0] and not in_order, *wanted[1:]])
            if in_order:
                gradients = (grad_input_in_order(*arguments), *gradients[1:])
        results = [None] * len(ctx.needs_input_grad[:-1])
        for place, gradient, is_wanted in zip(differentiable, gradients, wanted, strict=True):
            results[place] = gradient if is_wanted else None
        return tuple(results)

    def setup_backward_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[: tensors + 1])
        *ctx.arguments, ctx.wanted = inputs[tensors + 1 :]

    def second_backward(ctx, *grads):
        grad_output, *saved = ctx.saved_tensors
        arguments = restore(grad_output, *saved, *ctx.arguments)
        forward, given, inputs = _of_tensors(reference_impl, arguments, differentiable)
        chosen = {place: grad for place, grad, w in zip(differentiable, grads, ctx.wanted, strict=True) if w}

        def backward(grad_output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            gradients = dict(zip(given, torch.func.vjp(forward, *inputs)[1](grad_output), strict=True))
            return tuple(gradients[place] for place in chosen)

        pull = torch.func.vjp(backward, grad_output, *inputs)[1]
        of_grad_output, *of_inputs = pull(tuple(chosen.values()))
        results = [of_grad_output] + [None] * (tensors + len(ctx.arguments) + 1)
        for place, gradient in zip(given, of_inputs, strict=True):
            if place < tensors:  # else it is recomputed: the backward does not take it
                results[place + 1] = gradient
        return tuple(results)

    register_autograd(name, setup_context, first_backward, reference_impl)
    register_autograd(f"_{name}_backward", setup_backward_context, second_backward)
