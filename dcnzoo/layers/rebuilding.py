"""Methods of other packages that rebuild a model for inference leave deformable layers as they are.

Blocks of RepVGG, MobileOne, LeViT, YOLO and others replace a convolution and its batch norm by one
``nn.Conv2d`` with the attributes of the convolution. A packed layer has these attributes too: it would become
a plain convolution, without an error. Methods of a shallow copy run on its original, whose parts it shares.
"""

import contextlib
import copy
import inspect
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dcnzoo.layers.packed import _Pack
from dcnzoo.ops._arguments import can_read
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
                    vars(module)[name] = _Guard(module, name)


def _unprotect(module: nn.Module) -> None:
    for name, value in [*vars(module).items()]:
        if isinstance(value, _Guard):
            del vars(module)[name]


def _needs_arguments(method: Any) -> bool:  # such as the features that it fuses
    _, *parameters = inspect.signature(method).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variable for p in parameters)


class _Guard:
    """Calls a method, unless a trial on a copy of its module changes packed layers.

    It is copied and pickled with the module. A method that gets tensors is not tried: it computes features.
    One that a forward calls is tried once in training, and once in evaluation.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name, self.modes = module, name, set[bool]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, method = self.module, getattr(type(self.module), self.name)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            return method(module, *args, **kwargs)
        in_forward = _in_forward()
        if not (in_forward and module.training in self.modes):
            caller = f"{type(module).__name__}.{self.name}"
            if problem := self.problem(in_forward, args, kwargs):
                text = (
                    f"{caller}: would replace deformable layers by convolutions, or change what they sample"
                )
                if in_forward:
                    raise RuntimeError(f"{text}, in a forward: {problem}; convert other layers (where=…)")
                warnings.warn(f"{text}, so it does nothing: {problem}", stacklevel=2)
                return module
            if in_forward:
                self.modes.add(module.training)
        return method(module, *args, **kwargs)

    def problem(self, in_forward: bool, args: tuple, kwargs: dict[str, Any]) -> str:
        """The packed layers that the method changes, or its error if it fails only with packed layers.

        Each output channel of a kernel may be multiplied by a number, such as that of a norm. After any other
        change, the offsets would have to be predicted from another input. Some taps of the copy's kernels are
        NaN: then each parameter that is computed from them has NaN, too. In a forward, which may compute
        statistics with the kernels, they are not.
        """
        names = [name for name, part in self.module.named_modules() if isinstance(part, _Pack)]
        try:
            copied = _copied(self.module)
        except Exception as error:
            return "" if in_forward else f"it cannot be tried on a copy ({error})"
        packs = [part for part in copied.modules() if isinstance(part, _Pack)]
        for kernel in (pack.weight for pack in packs if can_read(pack.weight) and not in_forward):
            number = torch.arange(kernel[0].numel(), device=kernel.device).view(kernel.shape[1:])
            kernel.data.masked_fill_(number % 4 == 0, torch.nan)
        before = [(_rows(pack), _prediction(pack)) for pack in packs]
        with torch.random.fork_rng(devices=[]):
            try:
                result = getattr(copied, self.name)(*args, **kwargs)
                copied = result if isinstance(result, nn.Module) else copied
                after = {*copied.modules()}
                pairs = zip(names, packs, before, strict=True)
                changed = [n for n, pack, old in pairs if pack not in after or not _is_scaled(pack, *old)]
            except Exception as error:
                plain = _copied(self.module)
                for parent in list(plain.modules()):
                    for key, pack in parent._modules.items():
                        if isinstance(pack, _Pack):
                            parent._modules[key] = pack.plain()
                with contextlib.suppress(Exception):
                    getattr(plain, self.name)(*args, **kwargs)
                    return f"{few(names, 3)} ({error})"
                return ""
        kernels = {id(pack.weight) for pack in packs}
        others = [p for p in copied.parameters() if id(p) not in kernels and can_read(p)]
        if not in_forward and any(parameter.isnan().any() for parameter in others):
            changed = changed or names
        return few(changed, 3) if changed else ""


def _in_forward() -> bool:
    """Whether a forward of any module is running."""
    frame = inspect.currentframe()
    while frame and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame is not None


def _copied(module: nn.Module) -> nn.Module:
    """A copy without guards. torch cannot copy tensors that have a graph: they are copied without it."""
    leaves = [leaf for part in module.modules() for leaf in tree_leaves(vars(part))]
    graphs = {id(t): t.detach().clone() for t in leaves if isinstance(t, Tensor) and t.grad_fn is not None}
    copied = copy.deepcopy(module, graphs)
    for part in copied.modules():
        _unprotect(part)
    return copied


def _rows(pack: Any) -> Tensor | None:
    """The kernel of each output channel."""
    if not can_read(kernel := pack.weight):
        return None
    if pack.transposed:
        kernel = kernel.unflatten(0, (pack.groups, -1)).transpose(1, 2).flatten(0, 1)
    return kernel.detach().flatten(1).double()


def _prediction(pack: Any) -> list[Tensor]:
    layers = [layer for layer in (pack.conv_offset, pack.offset_features) if layer is not None]
    return [p.detach().clone() for layer in layers for p in layer.parameters() if can_read(p)]


def _is_scaled(pack: Any, before: Tensor | None, prediction: list[Tensor]) -> bool:
    """Whether the prediction is unchanged, and each kernel the old one times a number, but for rounding."""
    after, pairs = _rows(pack), zip(_prediction(pack), prediction, strict=True)
    if not all(torch.equal(new, old) for new, old in pairs):
        return False
    if before is None or after is None:
        return before is after
    if after.shape != before.shape or not torch.equal(after.isnan(), before.isnan()):
        return False
    one, two = before.nan_to_num(), after.nan_to_num()
    factors = (one * two).sum(1, True) / one.square().sum(1, True).clamp_min(torch.finfo(one.dtype).tiny)
    most = 8 * torch.finfo(pack.weight.dtype).eps * two.abs().amax(1, True)
    return bool(((two - factors * one).abs() <= most).all())
