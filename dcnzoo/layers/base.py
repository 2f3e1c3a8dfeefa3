"""The bases of layers: checks of their arguments, and one node of a graph of ``torch.fx`` per layer."""

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
        """``count`` integers of at least ``least``, also NumPy's; one number is the value of all."""
        values: tuple = tuple(value) if isinstance(value, Iterable) else (value,) * count
        if len(values) != count or not all(isinstance(v, Integral) and int(v) >= least for v in values):
            expected = "an integer" if count == 1 else f"an integer or {count} integers"
            self._refuse(name, f"{expected} of at least {least}", repr(value))
        return tuple(map(int, values))

    def _integer(self, name: str, value: Any, least: int = 1) -> int:
        return self._integers(name, value, least=least)[0]


class Leaf(ChecksArguments, nn.Module):
    """During ``torch.fx.symbolic_trace``, a call of the layer is one node of the graph.

    fx treats only the layers of ``torch.nn`` so. It calls ``forward`` of the traced root module, so the
    operators of a layer that is the root become nodes.
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
