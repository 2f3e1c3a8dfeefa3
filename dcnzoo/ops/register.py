"""Registers operators with torch, one function per step of a call, in torch's order."""

from collections.abc import Callable

import torch

from . import _autograd, _transforms, run
from .operator import OPERATORS, Operator, Result
from .tracing import sizes_are_numbers


def register(*operators: Operator) -> None:
    for operator in operators:
        OPERATORS[operator.name] = operator
        if operator.float32 is not None:
            _transforms.register_autocast(operator, operator.float32)
        if operator.batched:
            _transforms.register_vmap(operator)
        if operator.backward is not None:
            _autograd.register_autograd(operator)
        run.register(operator)
        torch.library.register_fake(f"dcnzoo::{operator.name}")(_checked(operator))


def _checked(operator: Operator) -> Callable:
    """Return the fake kernel, which checks calls as others do, except for backwards: autograd calls them."""

    def fake(*arguments: object) -> Result:
        call = operator.Call(*arguments)
        if not operator.is_backward and sizes_are_numbers(call):
            operator.check(call)
        return operator.fake(*arguments)

    return fake
