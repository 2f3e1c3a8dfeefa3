"""Checks of a layer's arguments, and a single ``torch.fx`` graph node per layer."""

from collections.abc import Iterable
from functools import partial
from numbers import Integral
from typing import Any, NoReturn, cast

from torch import nn
from torch.fx import Proxy, Tracer


def refuse(
    layer: nn.Module, argument: str, expected: str, value: object, error: type = ValueError
) -> NoReturn:
    """Raise ``error`` with the name of the layer's class and of the argument."""
    raise error(f"{type(layer).__name__}: {argument}: expected {expected}, got {value}")


def integers(layer: nn.Module, name: str, value: Any, count: int = 1, least: int = 1) -> tuple[int, ...]:
    """Return ``value`` as ``count`` integers of at least ``least``. A single number is repeated."""
    values: tuple = tuple(value) if isinstance(value, Iterable) else (value,) * count
    if len(values) != count or not all(isinstance(v, Integral) and int(v) >= least for v in values):
        expected = "an integer" if count == 1 else f"an integer or {count} integers"
        refuse(layer, name, f"{expected} of at least {least}", repr(value))
    return tuple(map(int, values))


def integer(layer: nn.Module, name: str, value: Any, least: int = 1) -> int:
    return integers(layer, name, value, least=least)[0]


def call_as_leaf(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``__call__`` of a layer whose call is one node of the graph of ``torch.fx.symbolic_trace``.

    By default, fx does this only for layers of ``torch.nn``. If the layer is the root module, fx calls its
    ``forward``, so the layer's operators become nodes.
    """
    proxy = next((a for a in (*args, *kwargs.values()) if isinstance(a, Proxy)), None)
    if proxy is None:
        return nn.Module.__call__(layer, *args, **kwargs)
    tracer = cast(Tracer, proxy.tracer)
    is_leaf, attributes = tracer.is_leaf_module, vars(tracer)
    is_own = "is_leaf_module" in attributes  # not only a method of its class
    attributes["is_leaf_module"] = lambda part, name: part is layer or is_leaf(part, name)
    try:  # a subclass of Tracer may have its own call_module
        return tracer.call_module(layer, partial(nn.Module.__call__, layer), args, kwargs)
    finally:
        del attributes["is_leaf_module"]
        if is_own:
            attributes["is_leaf_module"] = is_leaf
