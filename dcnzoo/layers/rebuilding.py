"""Methods of other packages that rebuild a model for inference leave deformable layers as they are.

Blocks of RepVGG, MobileOne, LeViT, YOLO and others replace a convolution and its batch norm by one
``nn.Conv2d`` with the attributes of the convolution. A packed layer has these attributes too: it would become
a plain convolution, without an error.
"""

import copy
import functools
import inspect
import re
import warnings
from contextvars import ContextVar
from typing import Any

from torch import nn

from dcnzoo.layers.packed import _Pack
from dcnzoo.utils.text import few

_REBUILD = re.compile(r"fuse|fuse_(convs?|model|repvgg_block)|reparam\w*|(switch|convert)_to_deploy")
_depth: ContextVar[int] = ContextVar("depth", default=0)


class _Lost(Exception):
    """A method inside another one would have removed deformable layers."""


def protect(model: nn.Module) -> None:
    """Wrap these methods of all modules in ``model`` that contain packed layers."""
    for module in model.modules():
        if any(isinstance(part, _Pack) for part in module.modules()):
            for name in filter(_REBUILD.fullmatch, dir(type(module))):
                method = inspect.getattr_static(type(module), name)
                if inspect.isfunction(method) and not _takes_maps(method):
                    # picklable, and a copy of the module gets one of its own
                    vars(module)[name] = functools.partial(_rebuild, module, name)


def _takes_maps(method: Any) -> bool:  # the features that it fuses
    _, *parameters = inspect.signature(method).parameters.values()
    return any(p.default is p.empty and p.kind != p.VAR_KEYWORD for p in parameters)


def _packs(module: nn.Module) -> dict[int, str]:
    return {id(part): name for name, part in module.named_modules() if isinstance(part, _Pack)}


def _rebuild(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the method. If it removes packed layers or fails because of one, undo it and return the module."""
    before = _packs(module)
    state = [
        (part, {key: value.copy() if isinstance(value, dict) else value for key, value in vars(part).items()})
        for part in module.modules()
    ]
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    token = _depth.set(_depth.get() + 1)
    failure: Exception | None = None
    try:
        result = getattr(type(module), name)(module, *args, **kwargs)
        lost = before.keys() - _packs(result if isinstance(result, nn.Module) else module)
        if not lost:
            return result
    except _Lost:
        lost = set(before)
    except Exception as error:
        lost, failure = set(before), error
    finally:
        _depth.reset(token)
    for part, attributes in state:
        vars(part).clear()
        vars(part).update(attributes)
    for parameter, requires_grad in trained:
        parameter.requires_grad_(requires_grad)
    if failure and (not before or _fails_without_packs(module, name, *args, **kwargs)):
        raise failure
    if _depth.get():  # the caller may rely on the result: undo that too
        raise _Lost
    names = few([before[key] for key in before if key in lost], 3)
    reason = f" ({failure})" if failure else ""
    warnings.warn(
        f"{type(module).__name__}.{name}: would replace deformable layers by convolutions, so it was undone: "
        f"{names}{reason}",
        stacklevel=2,
    )
    return module


def _fails_without_packs(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> bool:
    """Whether the method also raises an error on a copy with plain convolutions: then it is its own error."""
    copied = copy.deepcopy(module)
    for parent in list(copied.modules()):
        for key, pack in parent._modules.items():
            if isinstance(pack, _Pack):
                parent._modules[key] = pack.plain()
    try:
        getattr(type(copied), name)(copied, *args, **kwargs)
    except Exception:
        return True
    return False
