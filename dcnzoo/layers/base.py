"""Base classes of layers: checks of arguments, and a single ``torch.fx`` graph node per layer."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any, NoReturn, cast

from torch import nn
from torch.fx import Proxy, Tracer


class ChecksArguments:
    """Mixin of layers that check their arguments."""

    def _refuse(self, argument: str, expected: str, value: object, error: type = ValueError) -> NoReturn:
        raise error(f"{type(self).__name__}: {argument}: expected {expected}, got {value}")

    def _integers(self, name: str, value: Any, count: int = 1, least: int = 1) -> tuple[int, ...]:
        """Return ``value`` as ``count`` integers of at least ``least``. A single number is repeated."""
        values: tuple = tuple(value) if isinstance(value, Iterable) else (value,) * count
        if len(values) != count or not all(isinstance(v, Integral) and int(v) >= least for v in values):
            expected = "an integer" if count == 1 else f"an integer or {count} integers"
            self._refuse(name, f"{expected} of at least {least}", repr(value))
        return tuple(map(int, values))

    def _integer(self, name: str, value: Any, least: int = 1) -> int:
        return self._integers(name, value, least=least)[0]


class Leaf(ChecksArguments, nn.Module):
    """During ``torch.fx.symbolic_trace``, a call of the layer is one node of the graph.

    By default, fx does this only for layers of ``torch.nn``. If the layer is the root module, fx calls its
    ``forward``, so the layer's operators become nodes.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        proxy = next((a for a in (*args, *kwargs.values()) if isinstance(a, Proxy)), None)
        if proxy is None:
            return super().__call__(*args, **kwargs)
        tracer = cast(Tracer, proxy.tracer)
        is_leaf = tracer.is_leaf_module
        vars(tracer)["is_leaf_module"] = lambda part, name: part is self or is_leaf(part, name)
        try:  # a subclass of Tracer may have its own call_module
            return tracer.call_module(self, super().__call__, args, kwargs)
        finally:
            vars(tracer)["is_leaf_module"] = is_leaf
