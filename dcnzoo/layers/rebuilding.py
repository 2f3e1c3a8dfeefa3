"""Methods of other packages that rebuild a model for inference leave deformable layers as they are.

Blocks of RepVGG, MobileOne, LeViT, YOLO and others replace a convolution and its batch norm by one
``nn.Conv2d`` with the attributes of the convolution. A packed layer has these attributes too: it would become
a plain convolution. These methods have no common name; the pattern has the words of the programs in
docs/hosts.md. A warning follows where any other code replaces a packed layer by a convolution.
"""

import contextlib
import copy
import inspect
import re
import warnings
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
    as tensors, is not tried: it computes features. Guards are copied and pickled with their modules.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.problems: dict[str, str] = {}  # by the mode and the arguments of a trial; empty: none

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, method = self.module, getattr(type(self.module), self.name)
        options = (bool, int, float, str, type(None))
        if not all(isinstance(leaf, options) for leaf in tree_leaves((args, kwargs))):
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
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
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


def _kernels(pack: Any) -> Tensor | None:
    """The kernel of each output channel."""
    if not can_read(kernel := pack.weight):
        return None
    if pack.transposed:
        kernel = kernel.unflatten(0, (pack.groups, -1)).transpose(1, 2).flatten(0, 1)
    return kernel.detach().clone().flatten(1).double()


def _predictor_weights(pack: Any) -> list[Tensor]:
    layers = [layer for layer in (pack.conv_offset, pack.offset_features) if layer is not None]
    return [p.detach().clone() for layer in layers for p in layer.parameters() if can_read(p)]


def _is_scaled(pack: Any, before: Tensor | None, prediction: list[Tensor]) -> bool:
    """Whether the prediction is unchanged, and each kernel the old one times a number, but for rounding."""
    after, pairs = _kernels(pack), zip(_predictor_weights(pack), prediction, strict=True)
    if not all(torch.equal(new, old) for new, old in pairs):
        return False
    if before is None or after is None or after.shape != before.shape:
        return before is after
    factors = (before * after).sum(1, True) / before.square().sum(1, True).clamp_min(1e-300)
    most = 8 * torch.finfo(pack.weight.dtype).eps * after.abs().amax(1, True)
    return bool(((after - factors * before).abs() <= most).all())


def _warn_of_loss(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Warn if a convolution replaces a packed layer of its size, or a block with one.

    torch calls this for each module that becomes an attribute of another one. Conversions do not set
    attributes.
    """
    if not isinstance(new, ConvNd) or isinstance(new, _Deformable) or name not in parent._modules:
        return
    old = parent._modules[name] or nn.Identity()  # a module may be None
    packs = [(key, part) for key, part in old.named_modules(prefix=name) if isinstance(part, _Pack)]
    lost = [key for key, pack in packs if _size(pack) == _size(new)]
    if lost:
        warnings.warn(
            f"{type(parent).__name__}: a {type(new).__name__} replaces a deformable layer, whose offsets are "
            f"lost: {few(lost, 3)}",
            stacklevel=3,
        )


def _size(layer: Any) -> tuple:
    return layer.in_channels, layer.out_channels, layer.kernel_size


register_module_module_registration_hook(_warn_of_loss)
