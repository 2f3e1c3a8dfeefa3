"""Support for ``torch.fx.symbolic_trace``: layers are leaves of the graph, like those of ``torch.nn``."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.fx import Proxy, Tracer


def as_leaf(module: nn.Module, *arguments: object) -> Any:
    """During ``torch.fx.symbolic_trace``, a Proxy of one node that calls ``module``. Otherwise None.

    Also None if ``module`` is the traced root module: its operators become nodes.
    """
    for argument in arguments:
        if isinstance(argument, Proxy):
            tracer = cast(Tracer, argument.tracer)
            path = tracer.path_of_module(module)
            return tracer.create_proxy("call_module", path, arguments, {}) if path else None
    return None
