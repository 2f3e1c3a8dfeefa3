"""Methods of other packages that rebuild a model for inference leave deformable layers as they are.

Blocks of RepVGG, MobileOne, LeViT, YOLO and others replace a convolution and its batch norm by one
``nn.Conv2d`` with the attributes of the convolution. A packed layer has these attributes too: it would become
a plain convolution, without an error. Methods of a shallow copy run on its original, whose parts it shares.
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

import torch
from torch import nn

from dcnzoo.layers.packed import _Pack
from dcnzoo.ops._arguments import can_read
from dcnzoo.utils.text import few

_REBUILD = re.compile(r"fuse|fuse_(convs?|model|repvgg_block)|reparam\w*|(switch|convert)_to_deploy")
_on_copies: ContextVar[bool] = ContextVar("on_copies", default=False)  # whether one of these methods is tried


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
    """Call the method, unless copies of the module show that it does not leave packed layers as they are."""
    method = getattr(type(module), name)
    if not _on_copies.get():
        caller = f"{type(module).__name__}.{name}"
        if _in_forward():
            return _call_in_forward(caller, module, method, args, kwargs)
        if problem := _problem(module, method, args, kwargs):
            warnings.warn(
                f"{caller}: would replace deformable layers by convolutions, or add convolutions to them, so "
                f"it does nothing: {problem}",
                stacklevel=2,
            )
            return module
    return method(module, *args, **kwargs)


def _call_in_forward(caller: str, module: nn.Module, method: Callable, args: tuple, kwargs: dict) -> Any:
    """Call a method that may compute the features of a forward.

    Raises:
        RuntimeError: it has replaced packed layers or changed their kernels.
    """
    packs = _packs(module)
    kernels = {pack: pack.weight.detach().clone() for pack in packs if can_read(pack.weight)}
    result = method(module, *args, **kwargs)
    changed = packs.keys() - {*module.modules()}
    changed |= {pack for pack, kernel in kernels.items() if not torch.equal(pack.weight, kernel)}
    if changed:
        names = few(sorted(packs[pack] for pack in changed), 3)
        raise RuntimeError(
            f"{caller}: expected deformable layers to stay, but it has replaced or changed {names}, in a "
            "forward; convert other layers (where=…)"
        )
    return result


def _packs(module: nn.Module) -> dict[Any, str]:
    """The packed layers of a module, with their names."""
    return {part: name for name, part in module.named_modules() if isinstance(part, _Pack)}


def _in_forward() -> bool:
    """Whether a forward of any module is running."""
    frame = inspect.currentframe()
    while frame and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame is not None


def _problem(module: nn.Module, method: Callable, args: tuple, kwargs: dict[str, Any]) -> str:
    """The packed layers that the method changes, or its error if it has none without packed layers.

    It runs on two copies, of which the second has packed layers with kernels of zero. Kernels may get
    factors, such as those of a norm: zeros stay zeros, and no other tensor differs. A kernel that is added
    would be sampled with the offsets, and one that becomes part of a convolution without them.
    """
    try:
        copied, zeroed = copy.deepcopy(module), copy.deepcopy(module)
    except Exception as error:
        return f"it cannot be tried on a copy ({error})"
    before = _packs(copied)
    names = [*before.values()]
    _zero_kernels(zeroed)
    token = _on_copies.set(True)
    try:
        copied, zeroed = (_rebuilt(each, method, args, kwargs) for each in (copied, zeroed))
        after = {*copied.modules()}
        if lost := [name for pack, name in before.items() if pack not in after]:
            return few(lost, 3)
        _zero_kernels(copied)
        return "" if _have_equal_tensors(copied, zeroed) else few(names, 3)
    except Exception as error:
        plain = copy.deepcopy(module)
        for parent in list(plain.modules()):
            for key, pack in parent._modules.items():
                if isinstance(pack, _Pack):
                    parent._modules[key] = pack.plain()
        with contextlib.suppress(Exception):
            method(plain, *args, **kwargs)
            return f"{few(names, 3)} ({error})"
        return ""
    finally:
        _on_copies.reset(token)


def _zero_kernels(module: nn.Module) -> None:
    for pack in _packs(module):
        if (kernel := pack._parameters.get("weight")) is not None:  # else it is computed from other tensors
            kernel.data.zero_()


def _rebuilt(module: nn.Module, method: Callable, args: tuple, kwargs: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # new layers of both copies start with the same numbers
        result = method(module, *args, **kwargs)
    return result if isinstance(result, nn.Module) else module


def _have_equal_tensors(module: nn.Module, other: nn.Module) -> bool:
    one, two = (dict((*each.named_parameters(), *each.named_buffers())) for each in (module, other))
    return one.keys() == two.keys() and all(
        not can_read(tensor) or torch.equal(tensor, two[name]) for name, tensor in one.items()
    )
