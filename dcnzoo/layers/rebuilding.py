"""Methods of other packages that rebuild a model for inference leave deformable layers as they are.

Blocks of RepVGG, MobileOne, LeViT, YOLO and others replace a convolution and its batch norm by one
``nn.Conv2d`` with the attributes of the convolution. A packed layer has these attributes too: it would become
a plain convolution. These methods have no common name; the pattern has the words of the programs in
docs/hosts.md. A warning follows where any other code replaces a packed layer by a convolution. Guarded
methods of a shallow copy run on its original.
"""

import contextlib
import copy
import inspect
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._pytree import tree_leaves

from dcnzoo.layers.deform_conv import _Deformable
from dcnzoo.layers.packed import _Pack
from dcnzoo.ops._arguments import can_read
from dcnzoo.ops._torch_private import ConvNd
from dcnzoo.utils.text import few

_REBUILD = re.compile(r"(?!_|is_)\w*(fuse|merge|reparam|deploy)\w*")
_tried = weakref.WeakSet[nn.Module]()  # packed layers of copies on which a method was tried


def protect(model: nn.Module) -> None:
    """Guard these methods of all modules in ``model`` that contain packed layers, and no others."""
    for module in model.modules():
        _unprotect(module)
        if any(isinstance(part, _Pack) for part in module.modules()):
            for name in filter(_REBUILD.fullmatch, dir(type(module))):
                method = inspect.getattr_static(type(module), name)
                if inspect.isfunction(method) and not _needs_arguments(method):
                    vars(module).setdefault(name, _Guard(module, name))  # an instance's own method stays


def _unprotect(module: nn.Module) -> None:
    for name, value in [*vars(module).items()]:
        if isinstance(value, _Guard):
            del vars(module)[name]


def _needs_arguments(method: Any) -> bool:  # such as the features that it fuses
    _, *parameters = inspect.signature(method).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variable for p in parameters)


class _Guard:
    """Calls a method, unless a trial on a copy of its module changes packed layers: then it does nothing.

    There is one trial for each mode and set of arguments. A method that gets other values than options, such
    as tensors, is not tried: it computes features; nor is one in a trace or export, whose weights have no
    values. Guards are copied and pickled with their modules.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.problems: dict[str, str] = {}  # by the mode and the arguments of a trial; empty: none

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.module
        method = getattr(type(module), self.name)
        options = (bool, int, float, str, type(None))
        packs = (part for part in module.modules() if isinstance(part, _Pack))
        has_options = all(isinstance(leaf, options) for leaf in tree_leaves((args, kwargs)))
        if not (has_options and all(can_read(pack.weight) for pack in packs)):
            return method(module, *args, **kwargs)
        trial = repr((module.training, args, kwargs))
        if trial not in self.problems:
            self.problems[trial] = _problem(module, self.name, args, kwargs)
        if problem := self.problems[trial]:
            warnings.warn(
                f"{type(module).__name__}.{self.name}: would replace deformable layers by convolutions, or "
                f"change what they sample, so it does nothing: {problem}",
                stacklevel=2,
            )
            return module
        return method(module, *args, **kwargs)


def _problem(module: nn.Module, method: str, args: tuple, kwargs: dict[str, Any]) -> str:
    """The packed layers that a method removes or changes, or its error if it fails only with packed layers.

    Each output channel of a kernel may be multiplied by a number, such as that of a norm. After any other
    change, the offsets would have to be predicted from another input.
    """
    names = [name for name, part in module.named_modules() if isinstance(part, _Pack)]
    try:
        copied = _copied(module)
    except Exception as error:
        return f"it cannot be tried on a copy ({error})"
    packs = [part for part in copied.modules() if isinstance(part, _Pack)]
    before = [(_kernels(pack), _predictor_weights(pack)) for pack in packs]
    _tried.update(packs)
    with torch.random.fork_rng(devices=[]):
        try:
            result = getattr(copied, method)(*args, **kwargs)
        except Exception as error:
            with contextlib.suppress(Exception):
                getattr(_with_convolutions(_copied(module)), method)(*args, **kwargs)
                return f"{few(names, 3)} ({error})"
            return ""
    after = {*(result if isinstance(result, nn.Module) else copied).modules()}
    pairs = zip(names, packs, before, strict=True)
    changed = [n for n, pack, old in pairs if pack not in after or not _is_scaled(pack, *old)]
    return few(changed, 3) if changed else ""


def _copied(module: nn.Module) -> nn.Module:
    """A copy without guards. torch cannot copy tensors that have a graph: they are copied without it."""
    leaves = [leaf for part in module.modules() for leaf in tree_leaves(vars(part))]
    graphs = {id(t): t.detach().clone() for t in leaves if isinstance(t, Tensor) and t.grad_fn is not None}
    copied = copy.deepcopy(module, graphs)
    for part in copied.modules():
        _unprotect(part)
    return copied


def _with_convolutions(module: nn.Module) -> nn.Module:
    """The module with torch's convolutions in place of its packed layers."""
    for parent in list(module.modules()):
        for name, part in parent._modules.items():
            if isinstance(part, _Pack):
                parent._modules[name] = part.plain()
    return module


def _kernels(pack: Any) -> Tensor:
    """The kernel of each output channel."""
    kernel = pack.weight
    if pack.transposed:
        kernel = kernel.unflatten(0, (pack.groups, -1)).transpose(1, 2).flatten(0, 1)
    return kernel.detach().clone().flatten(1).double()


def _predictor_weights(pack: Any) -> list[Tensor]:
    layers = [layer for layer in (pack.conv_offset, pack.offset_features) if layer is not None]
    return [p.detach().clone() for layer in layers for p in layer.parameters()]


def _is_scaled(pack: Any, before: Tensor, prediction: list[Tensor]) -> bool:
    """Whether the prediction is unchanged, and each kernel the old one times a number, but for rounding."""
    after, pairs = _kernels(pack), zip(_predictor_weights(pack), prediction, strict=True)
    if after.shape != before.shape or not all(torch.equal(new, old) for new, old in pairs):
        return False
    factors = (before * after).sum(1, True) / before.square().sum(1, True).clamp_min(1e-300)
    most = 8 * torch.finfo(pack.weight.dtype).eps * after.abs().amax(1, True)
    return bool(((after - factors * before).abs() <= most).all())


def _watch_losses(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Warn if a convolution replaces a packed layer of its size, or a block with one.

    torch calls this for each module that becomes an attribute of another one, and conversions do not set
    attributes. A convolution with another name replaces a layer of its parent if that is deleted later.
    """
    if not isinstance(new, ConvNd) or isinstance(new, _Deformable):
        return
    replaces = name in parent._modules
    old = parent._modules[name] if replaces else parent  # a module may be None
    for key, pack in old.named_modules(prefix=name if replaces else "") if old is not None else ():
        if not isinstance(pack, _Pack) or pack in _tried or _size(pack) != _size(new):
            continue
        if replaces:
            _warn_of_loss(parent, key)
        else:
            references = weakref.ref(parent), weakref.ref(new)
            weakref.finalize(pack, _warn_if_deleted, key, *references).atexit = False


def _size(layer: Any) -> tuple:
    return layer.in_channels, layer.out_channels, layer.kernel_size


def _warn_if_deleted(key: str, parent_of: Callable, new_of: Callable) -> None:
    """Called after a layer's end: it was deleted if its parent still exists, without its name."""
    parent, new = parent_of(), new_of()
    names = () if parent is None else {name for name, _ in parent.named_modules()}
    if new is not None and names and key not in names:
        _warn_of_loss(parent, key)


def _warn_of_loss(parent: nn.Module, key: str) -> None:
    warnings.warn(
        f"{type(parent).__name__}: a convolution replaces the deformable layer {key!r}: its offsets are lost",
        stacklevel=4,
    )


register_module_module_registration_hook(_watch_losses)
