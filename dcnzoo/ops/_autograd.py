"""Registration of derivatives that also work with ``torch.func`` and in forward mode.

``torch.library.register_autograd`` raises an error in transforms such as ``torch.func.grad``, and drops
forward-mode tangents silently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from . import checks, choose
from ._arguments import arguments_of, memory_format
from ._library import implementations
from ._torch_private import (
    TRANSFORMS,
    AutoDispatchBelowAutograd,
    SingleLevelFunction,
    after_autograd_keyset,
    allow_transforms,
    any_requires_grad,
    enable_single_level_autograd_function,
    in_dual_level,
    missing,
    set_forward_grad_enabled,
    transforms_active,
)
from .operator import Operator


def register_autograd(record: Operator) -> None:
    """Register the derivative of an operator."""
    name, operator, named = record.name, record.overload, record.call
    if TRANSFORMS in missing:
        setup_context = cast(Callable, record.setup_context)
        torch.library.register_autograd(
            f"dcnzoo::{name}",
            cast(Callable, record.backward),
            setup_context=lambda ctx, inputs, output: setup_context(ctx, named(*inputs), output),
        )
        return
    function = _function(record)

    def autograd(keys, *arguments):
        has_tangents = choose.has_tangents(arguments)
        if not (has_tangents or (torch.is_grad_enabled() and any_requires_grad(*arguments))):
            return _below_autograd(operator, keys, arguments)
        if has_tangents and not record.is_backward:
            return choose.run_reference(record, named(*arguments))
        with enable_single_level_autograd_function():
            return function.apply(*named(*arguments), keys)

    implementations.impl(name, autograd, "Autograd", with_keyset=True)


def _below_autograd(operator: torch._ops.OpOverload, keys: Any, arguments: Sequence) -> Any:
    with AutoDispatchBelowAutograd():
        try:
            if keys is None:
                return operator(*arguments)
            # redispatch, because an ordinary call would start at the top, with autocast, again
            return operator.redispatch(keys & after_autograd_keyset, *arguments)
        except RuntimeError as error:
            choose.raise_out_of_memory(error)
            raise


def _function(record: Operator) -> Any:
    """Return the derivative as an autograd function of the operator's arguments and the dispatch keys.

    It handles a single level: the current transform of ``torch.func``, or plain autograd. The dispatcher
    calls it again for each other level.
    """
    operator, named = record.overload, record.call
    setup_context, backward = cast(Callable, record.setup_context), cast(Callable, record.backward)

    class Function(SingleLevelFunction):
        @staticmethod
        def forward(*arguments):
            *arguments, keys = arguments
            if not transforms_active():
                return _below_autograd(operator, keys, arguments)
            # Function.apply disables gradients, but it has recorded only the graph of this transform. The
            # transforms below still have to record theirs.
            with torch.enable_grad(), set_forward_grad_enabled(True):
                return _below_autograd(operator, keys, arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup_context(ctx, named(*inputs[:-1]), output)

        @staticmethod
        def backward(ctx, *grads):  # without autocast, as torch's derivatives; the keys have no gradient
            kind = grads[0].device.type
            if kind == "meta" or not torch.is_autocast_enabled(kind):
                return *backward(ctx, *grads), None
            with torch.autocast(kind, enabled=False):
                return *backward(ctx, *grads), None

    return type(f"dcnzoo_{record.name}", (Function,), {})  # autograd names graph nodes after this class


def in_forward_mode(*tensors: Tensor | None) -> bool:
    """Return whether a backward must support forward mode, which the ``_backward`` operators do not.

    In a ``torch.func`` transform, the tangents of outer levels are not visible here. There, any dual level
    counts.
    """
    return in_dual_level() and (transforms_active() or choose.has_tangents(tensors))


def reference_gradients(
    reference: Callable, grad_output: Any, arguments: Any, names: Sequence[str]
) -> list[Tensor | None]:
    """Return the gradients of the arguments called ``names``, by differentiating the reference.

    They are deterministic and support forward mode. The gradient of an argument that is None is None.

    Args:
        grad_output: a tensor or a tuple of tensors, like the reference's result.
        arguments: the reference's arguments, a named tuple.
    """
    present = [name for name in names if getattr(arguments, name) is not None]
    if not present:
        return [None] * len(names)

    def forward(*tensors: Tensor) -> Any:
        return reference(*arguments._replace(**dict(zip(present, tensors, strict=True))))

    with allow_transforms():
        pull = torch.func.vjp(forward, *(getattr(arguments, name) for name in present))[1]
        gradients = dict(zip(present, pull(grad_output), strict=True))
    return [gradients.get(name) for name in names]


def with_backward(
    forward: Operator,
    gradients: Sequence[str],
    *,
    saves: Mapping[str, Callable[[Any], Any]] | None = None,
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
        saves: name of a backward argument that the forward lacks -> function of the forward's call.
        recompute: returns the forward's arguments that the backward lacks, by name, from its call.
        is_linear: whether the operator is linear in the only argument that has a gradient. The second
            derivative then is the operator itself.
        in_order: computes a deterministic first gradient from a call of the backward, because the kernels on
            a GPU add atomically. Default: differentiate ``reference``.
        keeps_format: whether the first gradient has the memory format of its argument. Otherwise it is
            contiguous.
        flops: FLOPs of the backward. Default: the forward's for the first gradient, again for the others.
    """
    derivative = _Derivative(forward, gradients, saves or {}, recompute, is_linear, keeps_format)
    backward = Operator(
        f"_{forward.name}_backward",
        reference=partial(derivative.run, derivative.by_reference),
        plain=partial(derivative.run, derivative.by_plain),
        fake=partial(derivative.run, derivative.empty),
        check=derivative.check,
        setup_context=derivative.setup_context_of_backward,
        backward=derivative.backward_of_backward,
        in_order=in_order or derivative.in_order,
        batched=derivative.batched(),
        flops=flops or derivative.flops,
        rows=derivative.rows,
        fused=forward.fused,
        fused_may_be_faster=forward.fused_may_be_faster,
    )
    forward = replace(forward, setup_context=derivative.setup_context, backward=derivative.backward)
    return forward, backward


class _Derivative:
    """The derivatives of an operator; :func:`with_backward` describes the parameters.

    Attributes:
        operator, call: the operator ``_{name}_backward``, and the class of its calls.
        positions: positions of the ``gradients`` among the forward's arguments.
        tensors: names of the backward's first arguments: ``grad_output`` and the other tensors. After them
            come numbers and, if ``has_mask``, ``output_mask``.
        stored: names of the backward's arguments that the forward stores.
    """

    def __init__(self, forward: Operator, gradients, saves, recompute, is_linear, keeps_format):
        self.forward, self.gradients, self.saves = forward, gradients, saves
        self.recompute, self.is_linear = recompute, is_linear
        self.keeps_format = keeps_format
        self.rows = ("grad_output", *forward.rows) if forward.rows else ()
        self.operator = getattr(torch.ops.dcnzoo, f"_{forward.name}_backward").default
        self.call = arguments_of(f"_{forward.name}_backward")
        types = {argument.name: str(argument.type) for argument in self.operator._schema.arguments}
        self.tensors = [name for name, kind in types.items() if kind in ("Tensor", "Optional[Tensor]")]
        self.stored = [name for name in types if name not in ("grad_output", "output_mask")]
        self.has_mask = "output_mask" in types
        self.positions = [forward.call._fields.index(name) for name in gradients]

    def forward_call(self, call: Any) -> Any:
        """Return the forward's call for a call of the backward."""
        names = [name for name in self.forward.call._fields if name in self.call._fields]
        return self.forward.call(**{name: getattr(call, name) for name in names}, **self.recompute(call))

    # The first derivative

    def setup_context(self, ctx: Any, call: Any, output: object) -> None:
        values = [self.saves[n](call) if n in self.saves else getattr(call, n) for n in self.stored]
        ctx.save_for_backward(*values[: len(self.tensors) - 1])  # without grad_output
        ctx.numbers = values[len(self.tensors) - 1 :]

    def backward(self, ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        needed = [needs[position] for position in self.positions]
        mask = [needed] if self.has_mask else []
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint raises an error the second time
        call = self.call(grad_output, *saved, *ctx.numbers, *mask)
        if in_forward_mode(grad_output, *saved):
            gradients = self.by_reference(call, self.gradients)
        elif torch.is_grad_enabled() or transforms_active() or TRANSFORMS in missing:
            gradients = self.operator(*call)
        else:  # nothing differentiates the gradients
            gradients = _below_autograd(self.operator, None, call)
        if isinstance(gradients, Tensor):  # torch returns a single result without a tuple
            gradients = [gradients]
        results: list[Tensor | None] = [None] * len(self.forward.call._fields)
        for position, gradient, is_needed in zip(self.positions, gradients, needed, strict=True):
            results[position] = gradient if is_needed else None
        return tuple(results)

    def by_reference(self, call: Any, names: Sequence[str]) -> list[Tensor | None]:
        """Differentiate the reference: return the gradients ``names`` for a call of the backward."""
        return reference_gradients(self.forward.reference, call.grad_output, self.forward_call(call), names)

    def by_plain(self, call: Any, names: Sequence[str]) -> list[Tensor | None]:
        """Differentiate the faster form of the reference, which has no other derivatives."""
        return reference_gradients(self.forward.plain, call.grad_output, self.forward_call(call), names)

    def in_order(self, call: Any) -> Tensor:
        """Compute the first gradient in a fixed order, so that it is bitwise identical at every call.

        It adds up one region of interest at a time, which bounds the memory.
        """
        name, dtype = self.gradients[0], call.grad_output.dtype
        if not self.rows:
            return cast(Tensor, self.by_reference(call, [name])[0]).contiguous()
        exact = torch.promote_types(dtype, torch.float32)
        wide = {n: getattr(call, n).to(exact) for n in ("grad_output", name) if n in call._fields}
        call = call._replace(**wide)
        total = torch.zeros_like(getattr(self.forward_call(call), name))
        for row in range(len(call.grad_output)):
            region = {n: getattr(call, n)[row : row + 1] for n in self.rows}
            total = total + cast(Tensor, self.by_reference(call._replace(**region), [name])[0])
        return total.to(dtype)

    # The second derivative

    def setup_context_of_backward(self, ctx: Any, call: Any, output: object) -> None:
        ctx.save_for_backward(*call[: len(self.tensors)])
        ctx.numbers = call[len(self.tensors) :]  # and output_mask

    def backward_of_backward(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call = self.call(*ctx.saved_tensors, *ctx.numbers)
        if self.is_linear:
            return self.forward.overload(*grads, *self.forward_call(call)[1:]), *[None] * (len(call) - 1)
        needed = zip(self.gradients, grads, call.output_mask, strict=True)
        chosen = {name: grad for name, grad, is_needed in needed if is_needed}

        def gradients(*arguments: Any) -> tuple[Tensor | None, ...]:
            return tuple(self.by_reference(self.call(*arguments), list(chosen)))

        names = ["grad_output", *(name for name in self.tensors if name in self.gradients)]
        second = reference_gradients(gradients, tuple(chosen.values()), call, names)
        by_name = dict(zip(names, second, strict=True))
        return tuple(by_name.get(name) for name in self.call._fields)

    # Other fields of the backward's record

    def batched(self) -> str:
        """Return ``Operator.batched`` of the backward: the kinds of its tensors and of its gradients."""
        if not self.forward.batched:
            return ""
        inputs = self.forward.batched.split("->")[0]
        kinds = {"grad_output": "m", **dict(zip(self.forward.call._fields, inputs, strict=False))}
        return "->".join("".join(kinds[name] for name in names) for names in (self.tensors, self.gradients))

    def needed(self, call: Any) -> list[bool]:
        return call.output_mask if self.has_mask else [True]

    def flops(self, call: Any, _: object) -> int:
        first, *others = self.needed(call)
        return (first + any(others)) * self.forward.flops(call, call.grad_output)

    def check(self, call: Any) -> None:
        inputs = self.forward_call(call)
        self.forward.check(inputs)
        shapes = (value.to("meta") if isinstance(value, Tensor) else value for value in inputs)
        output = self.forward.fake(*shapes)
        checks.require_gradient(self.forward.name, call.grad_output, output, inputs[0])

    def empty(self, call: Any, names: Sequence[str]) -> list[Tensor | None]:
        tensors = [getattr(self.forward_call(call), name) for name in names]
        return [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]

    def run(self, compute: Callable[[Any, list[str]], list[Tensor | None]], *arguments: Any) -> Any:
        """Return the backward's results: ``compute`` returns the needed ones, the others are empty."""
        call = self.call(*arguments)
        inputs, mask = self.forward_call(call), self.needed(call)
        names = [name for name, is_needed in zip(self.gradients, mask, strict=True) if is_needed]
        gradients = dict(zip(names, compute(call, names), strict=True))
        results = []
        for name in self.gradients:
            gradient, tensor = gradients.get(name), getattr(inputs, name)
            like = call.grad_output if tensor is None else tensor
            results.append(like.new_empty(0) if gradient is None else gradient.contiguous())
        if self.keeps_format and mask[0]:
            results[0] = results[0].to(memory_format=memory_format(inputs[0]))
        return tuple(results) if len(results) > 1 else results[0]
