"""Support for ``torch.fx.symbolic_trace``: layers are leaves of the graph, like those of ``torch.nn``."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.fx import Proxy, Tracer


class Leaf(nn.Module):
    """Mixin: during ``torch.fx.symbolic_trace``, a call of the layer is one node of the graph.

    fx treats only the layers of ``torch.nn`` so. It calls ``forward`` of the traced root module, so the
    operators of a layer that is the root become nodes.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Proxy):
                tracer = cast(Tracer, argument.tracer)
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return super().__call__(*args, **kwargs)
