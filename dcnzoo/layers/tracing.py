"""How ``torch.fx.symbolic_trace`` sees the layers: as leaves, as it does those of ``torch.nn``."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.fx import Proxy, Tracer


def as_leaf(module: nn.Module, *arguments: object) -> Any:
    """In ``torch.fx.symbolic_trace``, one node that calls ``module``: a Proxy. None otherwise.

    None also where ``module`` is itself what is traced: its operators become nodes.
    """
    for argument in arguments:
        if isinstance(argument, Proxy):
            tracer = cast(Tracer, argument.tracer)
            path = tracer.path_of_module(module)
            return tracer.create_proxy("call_module", path, arguments, {}) if path else None
    return None
