"""Registration of derivatives that also work with ``torch.func`` and in forward mode.

``torch.library.register_autograd`` raises an error in transforms such as ``torch.func.grad``, and drops
forward-mode tangents silently.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import run
from ._backward import Backward, reference_gradients
from ._library import implementations
from ._torch_private import (
    TRANSFORMS,
    AutoDispatchBelowAutograd,
    SingleLevelFunction,
    after_autograd_keyset,
    any_requires_grad,
    enable_single_level_autograd_function,
    in_dual_level,
    missing,
    set_forward_grad_enabled,
    transforms_active,
)
from .operator import Operator


def register_autograd(operator: Operator) -> None:
    """Register the derivative of an operator."""
    name, overload, Call = operator.name, operator.overload, operator.Call
    if TRANSFORMS in missing:
        setup_context = cast(Callable, operator.setup_context)
        torch.library.register_autograd(
            f"dcnzoo::{name}",
            cast(Callable, operator.backward),
            setup_context=lambda ctx, inputs, output: setup_context(ctx, Call(*inputs), output),
        )
        return
    function = _function(operator)

    def autograd(keys, *arguments):
        is_forward_mode = has_tangents(arguments)
        if not (is_forward_mode or (torch.is_grad_enabled() and any_requires_grad(*arguments))):
            return _below_autograd(overload, keys, arguments)
        if is_forward_mode and not operator.is_backward:
            return run.run_reference(operator, Call(*arguments))
        with enable_single_level_autograd_function():
            return function.apply(*Call(*arguments), keys)

    implementations.impl(name, autograd, "Autograd", with_keyset=True)


def _below_autograd(overload: torch._ops.OpOverload, keys: Any, arguments: Sequence) -> Any:
    with AutoDispatchBelowAutograd():
        try:
            if keys is None:
                return overload(*arguments)
            # redispatch, because an ordinary call would start at the top, with autocast, again
            return overload.redispatch(keys & after_autograd_keyset, *arguments)
        except RuntimeError as error:
            run.raise_out_of_memory(error)
            raise


def _function(operator: Operator) -> Any:
    """Return the derivative as an autograd function of the operator's arguments and the dispatch keys.

    It handles a single level: the current transform of ``torch.func``, or plain autograd. The dispatcher
    calls it again for each other level.
    """
    overload, Call = operator.overload, operator.Call
    setup_context, backward = cast(Callable, operator.setup_context), cast(Callable, operator.backward)

    class Function(SingleLevelFunction):
        @staticmethod
        def forward(*arguments):
            *arguments, keys = arguments
            if not transforms_active():
                return _below_autograd(overload, keys, arguments)
            # Function.apply disables gradients, but it has recorded only the graph of this transform. The
            # transforms below still have to record theirs.
            with torch.enable_grad(), set_forward_grad_enabled(True):
                return _below_autograd(overload, keys, arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup_context(ctx, Call(*inputs[:-1]), output)

        @staticmethod
        def backward(ctx, *grads):  # without autocast, as torch's derivatives; the keys have no gradient
            kind = grads[0].device.type
            if kind == "meta" or not torch.is_autocast_enabled(kind):
                return *backward(ctx, *grads), None
            with torch.autocast(kind, enabled=False):
                return *backward(ctx, *grads), None

    return type(f"dcnzoo_{operator.name}", (Function,), {})  # autograd names graph nodes after this class


def has_tangents(arguments: Sequence[Any]) -> bool:
    """Return whether an argument has a forward-mode tangent. Below autograd, torch hides tangents."""
    if not in_dual_level():
        return False
    return any(isinstance(a, Tensor) and unpack_dual(a).tangent is not None for a in arguments)


def in_forward_mode(*tensors: Tensor | None) -> bool:
    """Return whether a backward must support forward mode, which the ``_backward`` operators do not.

    In a ``torch.func`` transform, the tangents of outer levels are not visible here. There, any dual level
    counts.
    """
    return in_dual_level() and (transforms_active() or has_tangents(tensors))


def with_backward(
    forward: Operator,
    gradients: Sequence[str],
    *,
    saves: Mapping[str, str] | None = None,
    recompute: Callable[[Any], dict] = lambda call: {},
    is_linear: bool = False,
    in_order: Callable[[Any], Tensor] | None = None,
    keeps_format: bool = False,
    flops: Callable | None = None,
) -> tuple[Operator, Operator]:
    """Return ``forward`` with its derivative, and the record of its backward, ``_{name}_backward``.

    The backward takes ``grad_output``, tensors and numbers of the forward, and ``output_mask``. It returns
    the gradients of the arguments ``gradients``. Those that ``output_mask`` excludes are empty tensors.
    The second derivative differentiates ``reference`` twice, which is exact but slow.

    Args:
        saves: name of a backward argument that the forward lacks -> its path in the forward's call.
        recompute: returns the forward's arguments that the backward lacks, by name, from its call.
        is_linear: whether the operator is linear in the only argument that has a gradient. The second
            derivative then is the operator itself.
        in_order: computes a deterministic first gradient from a call of the backward, because the kernels on
            a GPU add atomically. Default: differentiate ``reference``.
        keeps_format: whether the first gradient has the memory format of its argument. Otherwise it is
            contiguous.
        flops: FLOPs of the backward. Default: the forward's for the first gradient, again for the others.
    """
    backward = Backward(forward, gradients, saves or {}, recompute, keeps_format)
    derivative = _Derivative(backward, is_linear)
    operator = Operator(
        backward.name,
        reference=partial(backward.run, backward.by_reference),
        plain=partial(backward.run, backward.by_plain),
        fake=partial(backward.run, backward.empty),
        check=backward.check,
        setup_context=derivative.setup_context_of_backward,
        backward=derivative.backward_of_backward,
        in_order=in_order or backward.in_order,
        batched=backward.batched(),
        flops=flops or backward.flops,
        rows=backward.rows,
        fused=forward.fused,
        fused_may_be_faster=forward.fused_may_be_faster,
    )
    forward = replace(forward, setup_context=derivative.setup_context, backward=derivative.backward)
    return forward, operator


class _Derivative:
    """The first derivative of an operator, a call of its backward, and the second one, of that call."""

    def __init__(self, record: Backward, is_linear: bool) -> None:
        self.record, self.forward, self.is_linear = record, record.forward, is_linear

    def setup_context(self, ctx: Any, call: Any, output: object) -> None:
        ctx.save_for_backward(*self.record.tensors_of(call))
        ctx.numbers = self.record.numbers_of(call)

    def backward(self, ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        record, needs = self.record, ctx.needs_input_grad
        needed = [needs[position] for position in record.positions]
        mask = [needed] if record.has_mask else []
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint raises an error the second time
        call = record.Call(grad_output, *saved, *ctx.numbers, *mask)
        if in_forward_mode(grad_output, *saved):
            gradients = record.by_reference(call, record.gradients)
        elif torch.is_grad_enabled() or transforms_active() or TRANSFORMS in missing:
            gradients = record.overload(*call)
        else:  # nothing differentiates the gradients
            gradients = _below_autograd(record.overload, None, call)
        if isinstance(gradients, Tensor):  # torch returns a single result without a tuple
            gradients = [gradients]
        results: list[Tensor | None] = [None] * len(self.forward.Call._fields)
        for position, gradient, is_needed in zip(record.positions, gradients, needed, strict=True):
            results[position] = gradient if is_needed else None
        return tuple(results)

    def setup_context_of_backward(self, ctx: Any, call: Any, output: object) -> None:
        tensors = self.record.tensors
        ctx.save_for_backward(*[getattr(call, name) for name in tensors])
        ctx.call = call._replace(**dict.fromkeys(tensors))  # autograd saves tensors, a call the numbers

    def backward_of_backward(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        record = self.record
        call = ctx.call._replace(**dict(zip(record.tensors, ctx.saved_tensors, strict=True)))
        of_gradients = dict(zip(record.gradients, grads, strict=True))
        if self.is_linear:
            inputs = record.forward_call(call)._replace(**of_gradients)
            second = {"grad_output": self.forward.overload(*inputs)}
        else:
            second = self._second_by_reference(call, of_gradients)
        return tuple(second.get(name) for name in call._fields)

    def _second_by_reference(self, call: Any, of_gradients: dict[str, Tensor]) -> dict[str, Tensor | None]:
        record = self.record
        needed = list(itertools.compress(record.gradients, call.output_mask))

        def gradients(*arguments: Any) -> tuple[Tensor | None, ...]:
            return tuple(record.by_reference(record.Call(*arguments), needed))

        names = ["grad_output", *(name for name in record.tensors if name in record.gradients)]
        grads = tuple(of_gradients[name] for name in needed)
        return dict(zip(names, reference_gradients(gradients, grads, call, names), strict=True))
