"""Methods of other packages that rebuild a model for inference leave deformable layers as they are.

Blocks of RepVGG, MobileOne, LeViT, YOLO and others replace a convolution and its batch norm by one
``nn.Conv2d`` with the attributes of the convolution. A packed layer has these attributes too: it would become
a plain convolution, without an error.
"""

import contextlib
import copy
import functools
import inspect
import re
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import nn

from dcnzoo.layers.packed import _Pack
from dcnzoo.utils.text import few

_REBUILD = re.compile(r"fuse|fuse_(convs?|model|repvgg_block)|reparam\w*|(switch|convert)_to_deploy")
_runs: ContextVar[bool] = ContextVar("runs", default=False)  # whether one of these methods runs


def protect(model: nn.Module) -> None:
    """Wrap these methods of all modules in ``model`` that contain packed layers, and no others."""
    for module in model.modules():
        for name, value in [*vars(module).items()]:
            if isinstance(value, functools.partial) and value.func is _rebuild:
                del vars(module)[name]
        if any(isinstance(part, _Pack) for part in module.modules()):
            for name in filter(_REBUILD.fullmatch, dir(type(module))):
                method = inspect.getattr_static(type(module), name)
                if inspect.isfunction(method) and not _takes_maps(method):
                    # picklable, and a copy of the module gets one of its own
                    vars(module)[name] = functools.partial(_rebuild, module, name)


def _takes_maps(method: Any) -> bool:  # the features that it fuses
    _, *parameters = inspect.signature(method).parameters.values()
    return any(p.default is p.empty and p.kind != p.VAR_KEYWORD for p in parameters)


def _rebuild(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the method, unless a copy of the module shows that it removes packed layers or fails with them.

    A method that a forward calls may compute its features: it is called, and must leave the layers.

    Raises:
        RuntimeError: it was called by a forward and has removed them.
    """
    method = getattr(type(module), name)
    if not _runs.get() and _in_forward():
        packs = _packs(module)
        result = method(module, *args, **kwargs)
        if lost := [packs[part] for part in packs.keys() - {*module.modules()}]:
            raise RuntimeError(
                f"{type(module).__name__}.{name}: expected deformable layers to stay, but it has replaced "
                f"{few(sorted(lost), 3)} by convolutions, in a forward; convert other layers (where=…)"
            )
        return result
    if not _runs.get() and (problem := _problem(module, method, args, kwargs)):
        warnings.warn(
            f"{type(module).__name__}.{name}: would replace deformable layers by convolutions, so it does "
            f"nothing: {problem}",
            stacklevel=2,
        )
        return module
    return method(module, *args, **kwargs)


def _packs(module: nn.Module) -> dict[nn.Module, str]:
    """The packed layers of a module, with their names."""
    return {part: name for name, part in module.named_modules() if isinstance(part, _Pack)}


def _in_forward() -> bool:
    """Whether a forward of any module is running."""
    frame = inspect.currentframe()
    while frame and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame is not None


def _problem(module: nn.Module, method: Callable, args: tuple, kwargs: dict[str, Any]) -> str:
    """The packed layers that the method removes, or its error if it has none without packed layers."""
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        return f"it cannot be tried on a copy ({error})"
    before = _packs(copied)
    token = _runs.set(True)
    try:
        result = method(copied, *args, **kwargs)
        after = {*(result if isinstance(result, nn.Module) else copied).modules()}
        lost = [name for pack, name in before.items() if pack not in after]
        return few(lost, 3) if lost else ""
    except Exception as error:
        plain = copy.deepcopy(module)
        for parent in list(plain.modules()):
            for key, pack in parent._modules.items():
                if isinstance(pack, _Pack):
                    parent._modules[key] = pack.plain()
        with contextlib.suppress(Exception):
            method(plain, *args, **kwargs)
            return f"{few([*before.values()], 3)} ({error})"
        return ""
    finally:
        _runs.reset(token)
