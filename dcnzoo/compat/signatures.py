"""Functions and constructors with the arguments of another package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import Parameter, Signature


def takes(names: str, **renamed: str) -> Callable[[Callable], Callable]:
    """Decorator for a function of keyword arguments: accepts them by position too, in this order.

    Args:
        names: the names of the arguments, separated by spaces.
        **renamed: names of the other package, and the function's names for them.
    """
    order = names.split()

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapper(*args: object, **kwargs: object) -> object:
            if len(args) > len(order):
                raise TypeError(
                    f"{function.__qualname__}: expected at most {len(order)} arguments, got {len(args)}"
                )
            kwargs = {renamed.get(name, name): value for name, value in kwargs.items()}
            by_position = {renamed.get(n, n): value for n, value in zip(order, args, strict=False)}
            return function(**by_position, **kwargs)

        # for help(): the parameters of ``function`` have another order
        kind = Parameter.POSITIONAL_OR_KEYWORD
        wrapper.__signature__ = Signature([Parameter(name, kind) for name in order])
        return wrapper

    return decorate
