"""Registration of derivatives that also work with ``torch.func`` and in forward mode.

``torch.library.register_autograd`` raises an error in transforms such as ``torch.func.grad``, and drops
forward-mode tangents silently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from . import _torch_private, checks, choose
from ._arguments import arguments_of, can_read, memory_format
from ._library import implementations
from ._torch_private import (
    AutoDispatchBelowAutograd,
    SingleLevelFunction,
    after_autograd_keyset,
    allow_transforms,
    any_requires_grad,
    enable_single_level_autograd_function,
    in_dispatch_mode,
    in_dual_level,
    set_forward_grad_enabled,
    transforms_active,
)
from .operator import Operator, key_of


def register_autograd(record: Operator) -> None:
    """Register the derivative of an operator."""
    name, operator, named = record.name, record.overload, record.call
    if _torch_private.TRANSFORMS in _torch_private.missing:
        setup_context = cast(Callable, record.setup_context)
        torch.library.register_autograd(
            f"dcnzoo::{name}",
            cast(Callable, record.backward),
            setup_context=lambda ctx, inputs, output: setup_context(ctx, named(*inputs), output),
        )
        return
    function = _function(record)
    plain = {key for key in choose.DEVICES if choose.kernels_on(record, key)[0] == (choose.REFERENCE,)}

    def autograd(keys, *arguments):
        has_tangents = choose.has_tangents(arguments)
        if not (has_tangents or (torch.is_grad_enabled() and any_requires_grad(*arguments))):
            return _below_autograd(operator, keys, arguments)
        # autograd then differentiates what runs, in half of the time of the operator's derivative; a trace,
        # a transform and a mode, such as torch's FLOP counter, see the operator
        key = key_of(arguments[0])
        is_plain = key in plain and can_read(arguments[0]) and not in_dispatch_mode()
        if (has_tangents or is_plain) and not record.is_backward:
            result = choose.run_plain(record, key, named(*arguments))
            if has_tangents or any_requires_grad(result):
                return result  # without RoIs, it has no graph
        with enable_single_level_autograd_function():
            return function.apply(*named(*arguments), keys)

    implementations.impl(name, autograd, "Autograd", with_keyset=True)


def _below_autograd(operator: torch._ops.OpOverload, keys: Any, arguments: Sequence) -> Any:
    # redispatch: a call of the operator would start at the top of the dispatcher, at autocast, again
    with AutoDispatchBelowAutograd():
        try:
            return operator.redispatch(keys & after_autograd_keyset, *arguments)
        except RuntimeError as error:
            choose.raise_out_of_memory(error)
            raise


def _function(record: Operator) -> Any:
    """The derivative as an autograd function of the operator's arguments and the dispatch keys.

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

    return type(f"dcnzoo_{record.name}", (Function,), {})  # which names the nodes of its graphs


def in_forward_mode(*tensors: Tensor | None) -> bool:
    """Whether a backward must be differentiable in forward mode, which the ``_backward`` operators are not.

    In a ``torch.func`` transform, the tangents of outer levels are not visible here. Any dual level counts
    then.
    """
    return in_dual_level() and (transforms_active() or choose.has_tangents(tensors))


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

    with allow_transforms():
        pull = torch.func.vjp(forward, *(getattr(arguments, name) for name in present))[1]
        gradients = dict(zip(present, pull(grad_output), strict=True))
    return [gradients.get(name) for name in names]


def with_backward(
    forward: Operator,
    gradients: Sequence[str],
    *,
    saves: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType({}),
    recompute: Callable[[Any], dict] = lambda call: {},
    linear: Callable[[Any, Callable], Callable] | None = None,
    rows: Sequence[str] = (),
    in_order: Callable[[Any], Tensor] | None = None,
    keeps_format: bool = False,
    flops: Callable | None = None,
) -> tuple[Operator, Operator]:
    """The record with its derivative, and the record of its backward, the operator ``_{name}_backward``.

    The backward takes ``grad_output``, tensors and numbers of the forward, and ``output_mask``. It returns
    the gradients of the arguments ``gradients``, and an empty tensor for each that ``output_mask`` excludes.
    The second derivative differentiates ``reference`` twice, which is exact but slow.

    Args:
        saves: arguments of the backward that the forward does not have, by functions of the forward's call
            and output.
        recompute: computes the arguments that the backward does not take, by name, from its call.
        linear: of an operator that is linear in its only gradient's argument: for a call of the backward and
            the forward's kernel, the function of the forward's arguments whose derivative that call is. The
            second derivative then is this function.
        rows: tensors of the backward with a row per region. The deterministic gradient then is the sum of
            one region at a time, which bounds the memory.
        in_order: computes a deterministic first gradient from a call of the backward, because the kernels on
            a GPU add atomically. Default: differentiate ``reference``.
        keeps_format: whether the first gradient has the memory format of its argument. Otherwise it is
            contiguous.
        flops: of the backward. Default: those of the forward for the first gradient, and for the others.
    """
    derivative = _Derivative(forward, gradients, saves, recompute, linear, rows, keeps_format)
    backward = Operator(
        f"_{forward.name}_backward",
        reference=derivative.kernel(derivative.by_reference),
        fake=derivative.kernel(_empty),
        check=derivative.check,
        setup_context=derivative.save_backward,
        backward=derivative.second,
        in_order=in_order or derivative.in_order,
        batched=derivative.batched(),
        flops=flops or derivative.flops,
        fused=forward.fused,
        fused_may_be_faster=forward.fused_may_be_faster,
    )
    return replace(forward, setup_context=derivative.save_forward, backward=derivative.first), backward


def _empty(call: Any, inputs: Any, names: Sequence[str]) -> list[Tensor | None]:
    tensors = [getattr(inputs, name) for name in names]
    return [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]


class _Derivative:
    """The derivatives of an operator; :func:`with_backward` describes the parameters.

    The arguments of a backward are ``grad_output``, the other tensors, the numbers and ``output_mask``.
    """

    def __init__(self, forward: Operator, gradients, saves, recompute, linear, rows, keeps_format):
        self.forward, self.gradients, self.saves = forward, gradients, saves
        self.recompute, self.linear, self.rows, self.keeps_format = recompute, linear, rows, keeps_format
        self.operator = getattr(torch.ops.dcnzoo, f"_{forward.name}_backward").default
        self.call = arguments_of(f"_{forward.name}_backward")
        types = [str(argument.type) for argument in self.operator._schema.arguments]
        self.tensors = sum(type in ("Tensor", "Optional[Tensor]") for type in types)
        self.has_mask = self.call._fields[-1] == "output_mask"
        fields = self.call._fields[1 : -1 if self.has_mask else None]  # that the forward stores
        values = (*forward.call._fields, *saves)
        self.stored = [values.index(name) for name in fields]
        self.positions = [forward.call._fields.index(name) for name in gradients]
        self.shared = {*forward.call._fields} & {*self.call._fields}

    def forward_call(self, call: Any) -> Any:
        """The call of the operator, from one of its backward."""
        shared = {name: getattr(call, name) for name in self.shared}
        return self.forward.call(**shared, **self.recompute(call))

    def save_forward(self, ctx: Any, inputs: Any, output: Any) -> None:
        if self.saves:
            inputs = (*inputs, *(value(inputs, output) for value in self.saves.values()))
        stored = [inputs[i] for i in self.stored]
        ctx.save_for_backward(*stored[: self.tensors - 1])
        ctx.numbers = stored[self.tensors - 1 :]

    def save_backward(self, ctx: Any, inputs: Any, output: object) -> None:
        ctx.save_for_backward(*inputs[: self.tensors])
        ctx.numbers = inputs[self.tensors :]

    def first(self, ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[position] for position in self.positions]
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint raises an error the second time
        mask = (needed,) if self.has_mask else ()
        call = self.call(grad_output, *saved, *ctx.numbers, *mask)
        if in_forward_mode(grad_output, *saved):
            gradients = self.by_reference(call, self.forward_call(call), self.gradients)
        else:
            computed = self.operator(*call)
            # torch returns a single result without a tuple
            gradients = [computed] if len(self.gradients) == 1 else computed
        results: list[Tensor | None] = [None] * len(self.forward.call._fields)
        for position, gradient, is_needed in zip(self.positions, gradients, needed, strict=True):
            results[position] = gradient if is_needed else None
        return tuple(results)

    def second(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call = self.call(*ctx.saved_tensors, *ctx.numbers)
        if self.linear is not None:
            pooled = self.linear(call, self.forward.overload)(*grads, *self.forward_call(call)[1:])
            return pooled, *[None] * (len(call) - 1)
        needed = zip(self.gradients, grads, call.output_mask, strict=True)
        chosen = {name: grad for name, grad, is_needed in needed if is_needed}

        def first(*arguments: Any) -> tuple[Tensor | None, ...]:
            call = self.call(*arguments)
            return tuple(self.by_reference(call, self.forward_call(call), list(chosen)))

        names = ["grad_output", *(n for n in self.call._fields[: self.tensors] if n in self.gradients)]
        gradients = reference_gradients(first, tuple(chosen.values()), call, names)
        by_name = dict(zip(names, gradients, strict=True))
        return tuple(by_name.get(name) for name in self.call._fields)

    def by_reference(self, call: Any, inputs: Any, names: Sequence[str]) -> list[Tensor | None]:
        reference = self.forward.reference
        function = reference if self.linear is None else self.linear(call, reference)
        return reference_gradients(function, call.grad_output, inputs, names)

    def in_order(self, call: Any) -> Tensor:
        """The first gradient, bitwise identical at every call."""
        name = self.gradients[0]
        if not self.rows:
            return cast(Tensor, self.by_reference(call, self.forward_call(call), [name])[0]).contiguous()
        dtype = torch.promote_types(call.grad_output.dtype, torch.float32)
        wide = {n: getattr(call, n).to(dtype) for n in {"grad_output", name} & {*call._fields}}
        total = torch.zeros_like(getattr(self.forward_call(call._replace(**wide)), name))
        for row in range(len(call.grad_output)):
            rows = {n: wide.get(n, getattr(call, n))[row : row + 1] for n in self.rows}
            one = call._replace(**(wide | rows))
            total = total + cast(Tensor, self.by_reference(one, self.forward_call(one), [name])[0])
        return total.to(call.grad_output.dtype)

    def batched(self) -> str:
        """The kinds of the backward's tensors and gradients, by those of the forward's arguments."""
        inputs = self.forward.batched.split("->")[0]
        kinds = {"grad_output": "m", **dict(zip(self.forward.call._fields, inputs, strict=False))}
        arguments = self.call._fields[: self.tensors]
        return inputs and "->".join("".join(kinds[n] for n in names) for names in (arguments, self.gradients))

    def flops(self, call: Any, _: object) -> int:
        first, *others = call.output_mask
        return (first + any(others)) * self.forward.flops(call, call.grad_output)

    def check(self, call: Any) -> None:
        inputs = self.forward_call(call)
        self.forward.check(inputs)
        shapes = (value.to("meta") if isinstance(value, Tensor) else value for value in inputs)
        output = self.forward.fake(*shapes)
        checks.require_gradient(self.forward.name, call.grad_output, output, inputs[0])

    def kernel(self, compute: Callable[[Any, Any, list[str]], list[Tensor | None]]) -> Callable:
        """The first derivative in Python, by a function that computes the needed gradients."""

        def backward(*arguments: Any) -> Any:
            call = self.call(*arguments)
            inputs = self.forward_call(call)
            mask = call.output_mask if self.has_mask else [True]
            needed = [name for name, is_needed in zip(self.gradients, mask, strict=True) if is_needed]
            gradients = dict(zip(needed, compute(call, inputs, needed), strict=True))
            results = []
            for name in self.gradients:
                gradient, tensor = gradients.get(name), getattr(inputs, name)
                like = call.grad_output if tensor is None else tensor
                results.append(like.new_empty(0) if gradient is None else gradient.contiguous())
            if self.keeps_format and mask[0]:
                results[0] = results[0].to(memory_format=memory_format(inputs[0]))
            return tuple(results) if len(results) > 1 else results[0]

        return backward
