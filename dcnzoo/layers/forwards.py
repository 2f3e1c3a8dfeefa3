"""Other forwards of a model's modules for one call: the model itself runs, and other calls do not change."""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from torch import nn

Forwards = Mapping[nn.Module, Callable[..., Any]]

_of_this_call: ContextVar[Forwards] = ContextVar("forwards", default={})  # noqa: B039  (never changed)
_lock = threading.Lock()


class Switch:
    """The ``forward`` of a module while calls replace it: in those calls the other one, else its class's."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.calls, self.copies = module, 0, list[nn.Module]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = _of_this_call.get().get(self.module)
        if forward is None:
            return type(self.module).forward(self.module, *args, **kwargs)
        return forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Switch":  # of a module that a call copies
        copied = Switch(copy.deepcopy(self.module, memo))
        copied.copies = self.copies
        self.copies.append(copied.module)
        return copied


@contextlib.contextmanager
def replaced(forwards: Forwards) -> Iterator[None]:
    """A context whose calls run these functions in place of the modules' ``forward``.

    The modules must inherit it from their class. Calls of other threads run their own ``forward``.
    """
    with _lock:
        switches = {module: vars(module).setdefault("forward", Switch(module)) for module in forwards}
        for switch in switches.values():
            switch.calls += 1
    token = _of_this_call.set({**_of_this_call.get(), **forwards})
    try:
        yield
    finally:
        _of_this_call.reset(token)
        with _lock:
            for module, switch in switches.items():
                switch.calls -= 1
                if not switch.calls:
                    for each in (module, *switch.copies):
                        if isinstance(vars(each).get("forward"), Switch):
                            del vars(each)["forward"]
