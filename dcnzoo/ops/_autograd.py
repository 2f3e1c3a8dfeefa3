"""Registration of derivatives that also work with ``torch.func`` and in forward mode.

``torch.library.register_autograd`` raises an error in transforms such as ``torch.func.grad``, and drops
forward-mode tangents silently.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import _choice, _torch_private
from ._arguments import arguments_of, memory_format
from ._library import implementations
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


def register_autograd(
    name: str,
    setup_context: Callable,
    backward: Callable,
    reference: Callable | None = None,
    forward_mode: Callable | None = None,
) -> None:
    """Register the derivatives of ``dcnzoo::name``, in the form of ``torch.autograd.Function``.

    Args:
        reference: the operator in plain PyTorch, with the same arguments. Runs where :mod:`._choice` has no
            other kernel.
        forward_mode: likewise, in forward mode. Default: ``reference``. Without either, forward mode raises
            an error.
    """
    operator = getattr(torch.ops.dcnzoo, name).default
    named = arguments_of(name)
    forward_mode = forward_mode or reference
    if _torch_private.TRANSFORMS in _torch_private.missing:
        if reference is not None:
            _choice.register(name, reference)
        torch.library.register_autograd(
            f"dcnzoo::{name}",
            backward,
            setup_context=lambda ctx, inputs, output: setup_context(ctx, named(*inputs), output),
        )
        return

    def below_autograd(*arguments):
        *arguments, keys = arguments
        # redispatch: a call of the operator would start at the top of the dispatcher, at autocast, again
        with AutoDispatchBelowAutograd():
            try:
                return operator.redispatch(keys & after_autograd_keyset, *arguments)
            except RuntimeError as error:
                _choice.raise_out_of_memory(error)
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
                lambda ctx, inputs, output: setup_context(ctx, named(*inputs[:-1]), output)
            ),
            "backward": staticmethod(lambda ctx, *grads: (*backward(ctx, *grads), None)),
        },
    )

    def autograd(keys, *arguments):
        arguments = named(*arguments)
        has_tangents = in_dual_level() and any(tangent(argument) is not None for argument in arguments)
        if has_tangents and forward_mode is not None:
            below_autograd(*arguments, keys)  # to check the arguments
            return forward_mode(*arguments)
        if has_tangents or (torch.is_grad_enabled() and any_requires_grad(*arguments)):
            with enable_single_level_autograd_function():
                return function.apply(*arguments, keys)
        return below_autograd(*arguments, keys)

    implementations.impl(name, autograd, "Autograd", with_keyset=True)
    if reference is not None:
        _choice.register(name, reference, node=autograd)


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
    reference: Callable, grad_output: Any, arguments: Any, names: Sequence[str]
) -> list[Tensor | None]:
    """The gradients of the arguments with these names, computed by differentiating the reference.

    They are deterministic and support forward mode. The gradient of an argument that is None is None.

    Args:
        grad_output: a tensor, or a tuple of them like the reference's result.
        arguments: a named tuple.
    """
    present = [name for name in names if getattr(arguments, name) is not None]
    if not present:
        return [None] * len(names)

    def forward(*tensors: Tensor) -> Any:
        return reference(*arguments._replace(**dict(zip(present, tensors, strict=True))))

    pull = torch.func.vjp(forward, *(getattr(arguments, name) for name in present))[1]
    gradients = dict(zip(present, pull(grad_output), strict=True))
    return [gradients.get(name) for name in names]


class _Backward:
    """The operator of a first derivative, and the relation of its arguments to those of the operator."""

    def __init__(self, name: str, recompute: Callable[[Tensor], dict]) -> None:
        self.name = f"_{name}_backward"
        self.operator = getattr(torch.ops.dcnzoo, self.name).default
        self.forward_named, self.named = arguments_of(name), arguments_of(self.name)
        self.recompute = recompute
        types = {argument.name: str(argument.type) for argument in self.operator._schema.arguments}
        self.tensors = [name for name, type in types.items() if type in ("Tensor", "Optional[Tensor]")]
        self.shared = {*self.forward_named._fields} & {*self.named._fields}

    def forward_arguments(self, arguments: Any) -> Any:
        """The arguments of the operator, from those of its backward."""
        shared = {name: getattr(arguments, name) for name in self.shared}
        return self.forward_named(**shared, **self.recompute(arguments.grad_output))


def register_derivatives(
    name: str,
    differentiable: Sequence[str],
    reference: Callable,
    *,
    recompute: Callable[[Tensor], dict] = lambda grad_output: {},
    grad_input_in_order: Callable | None = None,
    for_every_call: bool = False,
    keeps_format: bool = False,
) -> None:
    """Register the first and second derivative of an operator, and the kernels of the first in Python.

    The first derivative is the operator ``dcnzoo::_{name}_backward``. It takes ``grad_output``, arguments of
    ``dcnzoo::name`` and ``output_mask``. It returns the gradients of the arguments ``differentiable``, and an
    empty tensor for each that ``output_mask`` excludes. The second derivative differentiates ``reference``
    twice, which is exact but slow.

    Args:
        recompute: function that computes the arguments that the backward operator does not take, by name,
            from ``grad_output``.
        grad_input_in_order: function that computes a deterministic first gradient from the arguments of the
            backward operator, because the CUDA kernel adds atomically. Default: differentiate ``reference``.
        for_every_call: whether that also applies where the backward operator is not called by autograd.
        keeps_format: whether the first gradient has the memory format of its argument. Otherwise it is
            contiguous.
    """
    backward = _Backward(name, recompute)
    forward_names, tensors = backward.forward_named._fields, backward.tensors[1:]  # without grad_output
    positions = [forward_names.index(argument) for argument in differentiable]

    def save(ctx, inputs, names):
        ctx.save_for_backward(*(getattr(inputs, name) for name in names))
        numbers = [name for name in backward.named._fields if name in inputs._fields and name not in names]
        ctx.numbers = {name: getattr(inputs, name) for name in numbers}

    def first_backward(ctx, grad_output):
        needed = [ctx.needs_input_grad[position] for position in positions]
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint raises an error the second time
        in_order = needed[0] and not for_every_call and _choice.is_deterministic(grad_output)
        mask = [needed[0] and not in_order, *needed[1:]]
        by_name = dict(zip(tensors, saved, strict=True), grad_output=grad_output, output_mask=mask)
        arguments = backward.named(**by_name, **ctx.numbers)
        if in_forward_mode(grad_output, *saved) or (in_order and grad_input_in_order is None):
            inputs = backward.forward_arguments(arguments)
            gradients = reference_gradients(reference, grad_output, inputs, differentiable)
        else:
            gradients = backward.operator(*arguments)
            if len(differentiable) == 1:  # torch returns a single result without a tuple
                gradients = (gradients,)
            if in_order:
                gradients = (grad_input_in_order(arguments), *gradients[1:])
        results = [None] * len(forward_names)
        for position, gradient, is_needed in zip(positions, gradients, needed, strict=True):
            results[position] = gradient if is_needed else None
        return tuple(results)

    def second_backward(ctx, *grads):
        arguments = backward.named(
            **dict(zip(backward.tensors, ctx.saved_tensors, strict=True)), **ctx.numbers
        )
        needed = zip(differentiable, grads, arguments.output_mask, strict=True)
        chosen = {name: grad for name, grad, is_needed in needed if is_needed}

        def first(*arguments):
            arguments = backward.named(*arguments)
            inputs = backward.forward_arguments(arguments)
            return tuple(reference_gradients(reference, arguments.grad_output, inputs, list(chosen)))

        names = [name for name in backward.tensors if name == "grad_output" or name in differentiable]
        gradients = reference_gradients(first, tuple(chosen.values()), arguments, names)
        by_name = dict(zip(names, gradients, strict=True))
        return tuple(by_name.get(name) for name in backward.named._fields)

    register_autograd(name, lambda ctx, inputs, _: save(ctx, inputs, tensors), first_backward, reference)
    register_autograd(
        backward.name, lambda ctx, inputs, _: save(ctx, inputs, backward.tensors), second_backward
    )
    kernel, check = _backward_kernel(backward, differentiable, reference, keeps_format)
    in_order = grad_input_in_order if for_every_call else None
    _choice.register(backward.name, kernel, check=check, differentiable=False, grad_input_in_order=in_order)


def _backward_kernel(
    backward: _Backward, differentiable: Sequence[str], reference: Callable, keeps_format: bool
) -> tuple[Callable, Callable]:
    """Register a first derivative's fake kernel. Return the derivative in plain PyTorch, and its check."""

    def kernel(compute: Callable[[Tensor, Any, list[str]], list[Tensor | None]]) -> Callable:
        def kernel(*arguments):
            arguments = backward.named(*arguments)
            inputs = backward.forward_arguments(arguments)
            mask = zip(differentiable, arguments.output_mask, strict=True)
            needed = [name for name, is_needed in mask if is_needed]
            gradients = dict(zip(needed, compute(arguments.grad_output, inputs, needed), strict=True))
            results = []
            for name in differentiable:
                gradient, tensor = gradients.get(name), getattr(inputs, name)
                like = arguments.grad_output if tensor is None else tensor
                results.append(like.new_empty(0) if gradient is None else gradient.contiguous())
            if keeps_format and arguments.output_mask[0]:
                results[0] = results[0].to(memory_format=memory_format(inputs[0]))
            return tuple(results) if len(results) > 1 else results[0]

        return kernel

    def empty(grad_output, inputs, names):
        tensors = [getattr(inputs, name) for name in names]
        return [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]

    def check(*arguments):
        arguments = backward.named(*arguments)
        check_of_forward(*backward.forward_arguments(arguments), arguments.grad_output)

    check_of_forward = _choice.check_of(backward.name.removesuffix("_backward").strip("_"))
    torch.library.register_fake(f"dcnzoo::{backward.name}", kernel(empty))
    return kernel(partial(reference_gradients, reference)), check
