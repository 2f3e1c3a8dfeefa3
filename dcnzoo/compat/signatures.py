"""Decorators for functions and constructors with the arguments of another package."""

import functools
from collections.abc import Callable
from inspect import Parameter, Signature

import torch
from torch import Tensor

from dcnzoo.utils.text import counted


def takes(names: str) -> Callable[[Callable], Callable]:
    """Decorator for a function of keyword arguments: accepts them by position too, in the order of ``names``.

    Args:
        names: the names of the arguments, separated by spaces.
    """
    order = names.split()
    known = set(order)

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapper(*args: object, **kwargs: object) -> object:
            name = function.__qualname__
            if unknown := kwargs.keys() - known:
                raise TypeError(f"{name}: expected arguments of {names}, got {', '.join(sorted(unknown))}")
            if len(args) > len(order):
                raise TypeError(
                    f"{name}: expected at most {counted(len(order), 'arguments')}, got {len(args)}"
                )
            return function(**dict(zip(order, args, strict=False)), **kwargs)

        # for help(): the parameters of ``function`` have another order
        kind = Parameter.POSITIONAL_OR_KEYWORD
        vars(wrapper)["__signature__"] = Signature([Parameter(name, kind) for name in order])
        return wrapper

    return decorate


def renames(**names: str) -> Callable[[Callable], Callable]:
    """Decorator: accepts arguments under other names too, ``renames(other="name")``."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapper(*args: object, **kwargs: object) -> object:
            for other, name in names.items():
                if other in kwargs:
                    if name in kwargs:
                        raise TypeError(
                            f"{function.__name__}: {other}: expected {name} or {other}, "
                            "which are the same, got both"
                        )
                    kwargs[name] = kwargs.pop(other)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def without_autocast(function: Callable) -> Callable:
    """Disable autocast in a function: the callers of compiled functions convert the dtypes."""

    @functools.wraps(function)
    def wrapper(input: Tensor, *args: object, **kwargs: object) -> object:
        with torch.autocast(input.device.type, enabled=False):
            return function(input, *args, **kwargs)

    return wrapper
