"""Registration of derivatives that also work with ``torch.func`` and in forward mode.

``torch.library.register_autograd`` raises an error in transforms such as ``torch.func.grad``, and drops
forward-mode tangents silently.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import _choice, _deterministic, _torch_private
from ._arguments import memory_format
from ._backend import raise_out_of_memory
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
    """Register the derivatives of ``dcnzoo::name``, in the form of ``torch.autograd.Function``.

    Args:
        reference_impl: the operator in plain PyTorch, with the same arguments. Runs where
            :mod:`._choice` has no other kernel.
        forward_mode: likewise, in forward mode. Default: ``reference_impl``. Without either, forward mode
            raises an error.
    """
    operator = getattr(torch.ops.dcnzoo, name).default
    forward_mode = forward_mode or reference_impl
    if _torch_private.TRANSFORMS in _torch_private.missing:
        if reference_impl is not None:
            _choice.register(name, reference_impl)
        torch.library.register_autograd(f"dcnzoo::{name}", backward, setup_context=setup_context)
        return

    def below_autograd(*arguments):
        *arguments, keys = arguments
        # redispatch: a call of the operator would start at the top of the dispatcher, at autocast, again
        with AutoDispatchBelowAutograd():
            try:
                return operator.redispatch(keys & after_autograd_keyset, *arguments)
            except RuntimeError as error:
                raise_out_of_memory(error)
                raise

    def forward(*arguments):
        if not transforms_active():
            return below_autograd(*arguments)
        # Function.apply disables gradients, but it has recorded only the graph of this transform. The
        # transforms below still have to record theirs.
        with torch.enable_grad(), set_forward_grad_enabled(True):
            return below_autograd(*arguments)

    # It handles a single level: the current transform of torch.func, or plain autograd. The dispatcher calls
    # it again for each other level.
    function = type(
        f"dcnzoo_{name}",
        (SingleLevelFunction,),
        {
            "forward": staticmethod(forward),
            # the last input is the dispatch keys, which have no gradient
            "setup_context": staticmethod(
                lambda ctx, inputs, output: setup_context(ctx, inputs[:-1], output)
            ),
            "backward": staticmethod(lambda ctx, *grads: (*backward(ctx, *grads), None)),
        },
    )

    def autograd(keys, *arguments):
        has_tangents = in_dual_level() and any(tangent(argument) is not None for argument in arguments)
        if has_tangents and forward_mode is not None:
            below_autograd(*arguments, keys)  # to check the arguments
            return forward_mode(*arguments)
        if has_tangents or (torch.is_grad_enabled() and any_requires_grad(*arguments)):
            with enable_single_level_autograd_function():
                return function.apply(*arguments, keys)
        return below_autograd(*arguments, keys)

    _library.impl(name, autograd, "Autograd", with_keyset=True)
    if reference_impl is not None:
        _choice.register(name, reference_impl, node=autograd)


def tangent(argument: object) -> Tensor | None:
    """The forward-mode tangent of an argument that is a tensor and has one."""
    return unpack_dual(argument).tangent if isinstance(argument, Tensor) else None


def in_forward_mode(*tensors: Tensor | None) -> bool:
    """Whether a backward must be differentiable in forward mode, which the ``_backward`` operators are not.

    In a ``torch.func`` transform, the tangents of outer levels are not visible here. Any dual level counts
    then.
    """
    return in_dual_level() and (transforms_active() or any(tangent(t) is not None for t in tensors))


def reference_gradients(
    reference_impl: Callable, grad_output: Tensor, arguments: Sequence, places: Sequence[int]
) -> list[Tensor | None]:
    """The gradients of the arguments at positions ``places``, computed by differentiating the reference.

    They are deterministic and support forward mode. The gradient of an argument that is None is None.
    """
    forward, present, inputs = _of_tensors(reference_impl, arguments, places)
    gradients = dict(zip(present, torch.func.vjp(forward, *inputs)[1](grad_output), strict=True))
    return [gradients.get(place) for place in places]


def _of_tensors(
    reference_impl: Callable, arguments: Sequence, places: Sequence[int]
) -> tuple[Callable, list[int], list[Tensor]]:
    """The reference as a function of only the tensors at positions ``places``; None is left out.

    Returns:
        the function, the positions, and the tensors at these positions.
    """
    present = [place for place in places if arguments[place] is not None]

    def forward(*tensors: Tensor) -> Tensor:
        changed = dict(zip(present, tensors, strict=True))
        return reference_impl(*(changed.get(i, argument) for i, argument in enumerate(arguments)))

    return forward, present, [arguments[place] for place in present]


def _register_fake_backward(
    name: str, differentiable: Sequence[int], restore: Callable, keeps_format: bool
) -> None:
    """Register the fake kernel of a first derivative. Arguments: see :func:`register_derivatives`."""

    @torch.library.register_fake(f"dcnzoo::_{name}_backward")
    def _(grad_output, *arguments):
        *saved, needed = arguments
        inputs = restore(grad_output, *saved)
        gradients = [
            torch.empty_like(inputs[place], memory_format=torch.contiguous_format)
            if is_needed and inputs[place] is not None
            else inputs[0].new_empty(0)
            for place, is_needed in zip(differentiable, needed, strict=True)
        ]
        if keeps_format and needed[0]:
            gradients[0] = gradients[0].to(memory_format=memory_format(inputs[differentiable[0]]))
        return tuple(gradients) if len(gradients) > 1 else gradients[0]


def _register_plain_backward(
    name: str, reference_impl: Callable, restore: Callable, differentiable: Sequence[int], keeps_format: bool
) -> None:
    """Register the first derivative in plain PyTorch. Arguments: see :func:`register_derivatives`."""
    check = _choice.check_of(name)

    def plain_backward(grad_output, *arguments):
        *saved, needed = arguments
        inputs = restore(grad_output, *saved)
        gradients = reference_gradients(reference_impl, grad_output, inputs, differentiable)
        results = [
            grad_output.new_empty(0) if gradient is None or not is_needed else gradient.contiguous()
            for gradient, is_needed in zip(gradients, needed, strict=True)
        ]
        if keeps_format and needed[0]:
            results[0] = results[0].contiguous(memory_format=memory_format(inputs[differentiable[0]]))
        return tuple(results) if len(results) > 1 else results[0]

    def check_backward(grad_output, *arguments):
        check(*restore(grad_output, *arguments[:-1]), grad_output)

    _choice.register_backward(name, plain_backward, check_backward)


def _second_gradients(
    forward: Callable, present: Sequence[int], grad_output: Tensor, inputs: Sequence[Tensor], chosen: dict
) -> tuple[Tensor, list[Tensor]]:
    """Differentiate the first derivative of ``forward``, as a function of all its inputs.

    Args:
        chosen: position of a first gradient -> the gradient that arrives for it.

    Returns:
        The gradients of ``grad_output`` and of the inputs, on which the first gradients depend.
    """

    def backward(grad_output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        gradients = dict(zip(present, torch.func.vjp(forward, *inputs)[1](grad_output), strict=True))
        return tuple(gradients[place] for place in chosen)

    pull = torch.func.vjp(backward, grad_output, *inputs)[1]
    of_grad_output, *of_inputs = pull(tuple(chosen.values()))
    return of_grad_output, of_inputs


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
    """Register the first and second derivative of an operator, and the fake kernel of the first.

    The first derivative is the operator ``dcnzoo::_{name}_backward(grad_output, *arguments, output_mask)``.
    It returns the gradients of the arguments at positions ``differentiable``, and an empty tensor for each
    that ``output_mask`` excludes. The second derivative differentiates ``reference_impl`` twice, which is
    exact but slow.

    Args:
        tensors: number of tensors that the backward operator takes after ``grad_output``.
        differentiable: positions of the arguments that have gradients.
        recomputed: positions of the arguments that the backward operator does not take.
        restore: function that computes the operator's arguments from those of the backward operator.
        grad_input_in_order: function that computes a deterministic first gradient from the arguments of the
            backward operator, because the CUDA kernel adds atomically. Default: differentiate
            ``reference_impl``.
        has_order: whether the backward operator itself is deterministic if torch requires that.
        keeps_format: whether the first gradient has the memory format of its argument. Otherwise it is
            contiguous.
    """
    backward_operator = getattr(torch.ops.dcnzoo, f"_{name}_backward").default
    number = len(getattr(torch.ops.dcnzoo, name).default._schema.arguments)

    _register_fake_backward(name, differentiable, restore, keeps_format)

    def setup_context(ctx, inputs, output):
        saved = [argument for i, argument in enumerate(inputs) if i not in recomputed]
        ctx.save_for_backward(*saved[:tensors])
        ctx.arguments = saved[tensors:]

    def first_backward(ctx, grad_output):
        needed = [ctx.needs_input_grad[place] for place in differentiable]
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint raises an error the second time
        in_order = needed[0] and not has_order and _deterministic.deterministic(grad_output)
        if in_forward_mode(grad_output, *saved) or (in_order and grad_input_in_order is None):
            arguments = restore(grad_output, *saved, *ctx.arguments)
            gradients = reference_gradients(reference_impl, grad_output, arguments, differentiable)
        else:
            arguments = (grad_output, *saved, *ctx.arguments)
            gradients = backward_operator(*arguments, [needed[0] and not in_order, *needed[1:]])
            if len(differentiable) == 1:  # torch returns a single result without a tuple
                gradients = (gradients,)
            if in_order:
                gradients = (grad_input_in_order(*arguments), *gradients[1:])
        results = [None] * number
        for place, gradient, is_needed in zip(differentiable, gradients, needed, strict=True):
            results[place] = gradient if is_needed else None
        return tuple(results)

    def setup_backward_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[: tensors + 1])
        *ctx.arguments, ctx.needed = inputs[tensors + 1 :]

    def second_backward(ctx, *grads):
        grad_output, *saved = ctx.saved_tensors
        arguments = restore(grad_output, *saved, *ctx.arguments)
        forward, present, inputs = _of_tensors(reference_impl, arguments, differentiable)
        chosen = {place: grad for place, grad, w in zip(differentiable, grads, ctx.needed, strict=True) if w}

        of_grad_output, of_inputs = _second_gradients(forward, present, grad_output, inputs, chosen)
        results = [of_grad_output] + [None] * (tensors + len(ctx.arguments) + 1)
        for place, gradient in zip(present, of_inputs, strict=True):
            if place < tensors:  # otherwise the backward operator does not take this argument
                results[place + 1] = gradient
        return tuple(results)

    register_autograd(name, setup_context, first_backward, reference_impl)
    register_autograd(f"_{name}_backward", setup_backward_context, second_backward)
    _register_plain_backward(name, reference_impl, restore, differentiable, keeps_format)
