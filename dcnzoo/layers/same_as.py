"""The one judge of what a module computes: conversion, fusing and the hook for channels-last ask it."""

import inspect
from collections.abc import Collection, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

from torch import Tensor, nn

from dcnzoo.layers.forwards import Switch

# what torch calls before forward, and what its code may use without a name
CALL = (
    "__call__",
    "_call_impl",
    "_wrapped_call_impl",
    "forward",
    "__getattr__",
    "__getattribute__",
    "__iter__",
)


def same_as(
    module: nn.Module, kinds: Collection[type[nn.Module]], equal: Mapping[type, type] | None = None
) -> Any:
    """The class in ``kinds`` whose forward the module runs, unchanged; None where anything of it is replaced.

    It is replaced by a method or property of a subclass, an attribute of the instance, a function in torch's
    class, a parametrization, or a tensor in the place of a parameter: the old ``weight_norm`` and
    ``spectral_norm``, ``prune``. Only names that the forward uses count. The caller's questions are hooks
    (:func:`hooks`), and a ``nn.Module`` that others have changed (:func:`patched`).

    Args:
        equal: classes with other code that compute what a class in ``kinds`` does.
    """
    cls: Any = type(module)
    kind, used, methods = _inherited(cls, tuple(kinds), tuple((equal or {}).items()))
    if kind is None or any(patched(base, names) for base, names in _torchs_classes(kind)):
        return None
    own, parameters = vars(module), module._parameters
    if any(not isinstance(own[name], Switch) for name in own.keys() & methods):
        return None
    if any(isinstance(own[name], Tensor) for name in own.keys() & used):
        return None
    replaced = (parameters[name] for name in parameters.keys() & used)
    known = (p is None or type(p) is nn.Parameter or hasattr(p, "fake_mode") for p in replaced)
    return kind if all(known) else None


def patched(cls: type, methods: Collection[str]) -> bool:
    """Whether one of these methods of a class of torch is a function from elsewhere."""
    functions = [vars(cls)[name] for name in methods if name in vars(cls)]
    return any(getattr(f, "__globals__", {}).get("__name__") != cls.__module__ for f in functions)


@lru_cache(1024)
def _torchs_classes(kind: type) -> list[tuple[type, frozenset[str]]]:
    """The classes of torch below ``nn.Module`` that a class inherits from, with the methods that it uses."""
    bases = [b for b in kind.__mro__ if b.__module__.startswith("torch.") and b is not nn.Module]
    return [(base, _names_of_forward(kind)[1] & vars(base).keys()) for base in bases]


@lru_cache(1024)  # a parametrized layer has a class of its own
def _inherited(cls: type, kinds: tuple, equal: tuple) -> tuple[Any, frozenset[str], frozenset[str]]:
    """The kind whose forward a class inherits without a change, the names that it uses, and its methods."""
    known: dict[type, type] = dict(zip(kinds, kinds, strict=True)) | dict(equal)
    changed: set[str] = set()
    for base in cls.__mro__:
        if base in known:
            used, methods = _names_of_forward(base)
            return (None if changed & used else known[base]), used, methods
        changed |= vars(base).keys()
    return None, frozenset(), frozenset()


def hooks(module: nn.Module, of_calls: bool = False) -> str:
    """The first kind of hooks that the module has, or ""; ``of_calls``: only of those that a call runs."""
    prefix = ("_forward", "_backward") if of_calls else "_"
    kinds = (name for name in vars(module) if name.startswith(prefix) and name.endswith("_hooks"))
    return next((name for name in kinds if vars(module)[name]), "")


def _names_of_forward(kind: type) -> tuple[frozenset[str], frozenset[str]]:
    """The names in the code of a class's forward and of what it calls; those of them that are methods."""
    names, rest = set(CALL), ["forward"]
    while rest:
        name = rest.pop()
        for member in (vars(base).get(name) for base in kind.__mro__):  # all: a method may call super()
            function: Any = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
            code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
            # not the other methods of nn.Module: tensors have methods of these names, too
            new = {name for name in _names_in(code) if not hasattr(nn.Module, name)} - names
            rest += [name for name in new if hasattr(kind, name)]
            names |= new
    members = {name: getattr(kind, name, None) for name in names}
    methods = {name for name, m in members.items() if callable(m) or isinstance(m, property)}
    data = {name for name in names if hasattr(kind, name)} - methods  # such as the last statistics
    return frozenset(names - data), frozenset(methods)


def _names_in(code: CodeType | None) -> set[str]:
    if code is None:
        return set()
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names}.union(*map(_names_in, inner))
