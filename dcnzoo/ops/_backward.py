"""The record of a backward, from the record of its forward and the two schemas."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor

from . import checks
from ._arguments import arguments_of, memory_format
from ._torch_private import allow_transforms
from .operator import Operator


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


def _values_at(*paths: str) -> Callable[[Any], tuple]:
    """Return the function that returns an object's attributes, such as ``input.shape``, as a tuple."""
    getters = [attrgetter(path) for path in paths]
    return lambda call: tuple([get(call) for get in getters])


class Backward:
    """The operator ``_{name}_backward``: its calls, and the fields of its record.

    :func:`._autograd.with_backward` describes the parameters.

    Attributes:
        positions: positions of the ``gradients`` among the forward's arguments.
        tensors: names of the first arguments, ``grad_output`` and the other tensors.
        tensors_of, numbers_of: return the next arguments from a call of the forward: the tensors after
            ``grad_output``, then the numbers. If ``has_mask``, ``output_mask`` is the last argument.
    """

    def __init__(self, forward: Operator, gradients, saves, recompute, keeps_format):
        self.forward, self.gradients = forward, gradients
        self.recompute, self.keeps_format = recompute, keeps_format
        self.name = f"_{forward.name}_backward"
        self.rows = ("grad_output", *forward.rows) if forward.rows else ()
        self.overload = getattr(torch.ops.dcnzoo, self.name).default
        self.Call = arguments_of(self.name)
        types = {argument.name: str(argument.type) for argument in self.overload._schema.arguments}
        self.tensors = [name for name, kind in types.items() if kind in ("Tensor", "Optional[Tensor]")]
        numbers = [name for name in types if name not in (*self.tensors, "output_mask")]
        self.tensors_of = _values_at(*self.tensors[1:])
        self.numbers_of = _values_at(*(saves.get(name, name) for name in numbers))
        self.has_mask = "output_mask" in types
        self.positions = [forward.Call._fields.index(name) for name in gradients]

    def forward_call(self, call: Any) -> Any:
        """Return the forward's call for a call of the backward."""
        names = [name for name in self.forward.Call._fields if name in self.Call._fields]
        return self.forward.Call(**{name: getattr(call, name) for name in names}, **self.recompute(call))

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

    def batched(self) -> str:
        """Return ``Operator.batched`` of the backward: the kinds of its tensors and of its gradients."""
        if not self.forward.batched:
            return ""
        inputs = self.forward.batched.split("->")[0]
        kinds = {"grad_output": "m", **dict(zip(self.forward.Call._fields, inputs, strict=False))}
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
        call = self.Call(*arguments)
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
