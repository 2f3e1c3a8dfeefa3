"""Constructors with the arguments of another package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import Parameter, Signature


def takes(names: str, **renamed: str) -> Callable[[Callable], Callable]:
    """Decorator for a constructor with keyword arguments: accepts them by position too, in this order.

    Args:
        names: the names of the arguments, separated by spaces. The constructor gets only the given ones.
        **renamed: names of the other package and the constructor's names for them.
    """
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names.split())]
    signature = Signature(parameters)

    def decorate(init: Callable) -> Callable:
        @functools.wraps(init)
        def wrapper(*args: object, **kwargs: object) -> None:
            given = signature.bind_partial(*args, **kwargs).arguments
            init(**{renamed.get(name, name): value for name, value in given.items()})

        wrapper.__signature__ = signature
        return wrapper

    return decorate
