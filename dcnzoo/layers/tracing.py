"""The base of layers: leaves of the graph in ``torch.fx.symbolic_trace``, like the layers of ``torch.nn``."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any, NoReturn, cast

from torch import nn
from torch.fx import Proxy, Tracer


class Refuses:
    """Mixin of layers that check their arguments."""

    def _refuse(self, argument: str, expected: str, value: object, error: type = ValueError) -> NoReturn:
        raise error(f"{type(self).__name__}: {argument}: expected {expected}, got {value}")

    def _integers(self, name: str, value: Any, count: int = 1, least: int = 1) -> tuple[int, ...]:
        """``count`` integers of at least ``least``, also NumPy's, of which one number stands for all."""
        values: tuple = tuple(value) if isinstance(value, Iterable) else (value,) * count
        if len(values) != count or not all(isinstance(v, Integral) and int(v) >= least for v in values):
            expected = "an integer" if count == 1 else f"an integer or {count} integers"
            self._refuse(name, f"{expected} of at least {least}", repr(value))
        return tuple(map(int, values))

    def _integer(self, name: str, value: Any, least: int = 1) -> int:
        if not isinstance(value, Integral):
            self._refuse(name, f"an integer of at least {least}", repr(value))
        return self._integers(name, value, least=least)[0]


class Leaf(Refuses, nn.Module):
    """During ``torch.fx.symbolic_trace``, a call of the layer is one node of the graph.

    fx treats only the layers of ``torch.nn`` so. It calls ``forward`` of the traced root module, so the
    operators of a layer that is the root become nodes.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Proxy):
                tracer = cast(Tracer, argument.tracer)
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return super().__call__(*args, **kwargs)
