"""Conversion of the convolutions of any network to deformable ones, and back."""

import copy
import dataclasses
import difflib
import fnmatch
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from dcnzoo.layers import packed
from dcnzoo.layers.forwards import Switch
from dcnzoo.layers.offsets import OFFSET_PREDICTORS
from dcnzoo.layers.rebuilding import protect
from dcnzoo.layers.same_as import hooks, same_as
from dcnzoo.layers.statistics import TRACKED, TracksOffsets
from dcnzoo.layers.unused import FirstForward, require_same_output, require_used
from dcnzoo.ops._arguments import can_read, memory_format
from dcnzoo.ops._torch_private import ConvNd
from dcnzoo.ops.flops import of_convolution
from dcnzoo.utils.text import columns, counted, few

_NAMES = [f"{kind}{rank}d" for kind in ("Conv", "ConvTranspose") for rank in (1, 2, 3)]
_PACKS = {getattr(nn, name): getattr(packed, f"PackedDeform{name}") for name in _NAMES}
_CONVOLUTIONS = {pack: convolution for convolution, pack in _PACKS.items()}
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule"}

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]


class _Refused(Exception):
    """The reason why a module cannot be replaced."""


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """The result of a conversion; ``print`` it for a table.

    Attributes:
        replaced: name of each replaced module -> old class, new class and number of added parameters.
        refused: name of each other matching module -> the reason why it was not replaced.
        classes: name of each replaced module -> its new class.
        advice: what would make the conversion cheaper, or an empty text.
    """

    replaced: dict[str, str]
    refused: dict[str, str]
    classes: dict[str, type[nn.Module]] = dataclasses.field(default_factory=dict)
    advice: str = ""

    def check(self, model: nn.Module, example: Any = None) -> None:
        """Raise an error unless the model still has all layers that the conversion has made, and uses them.

        Call it after a program of others has fused, copied or loaded the model, without its wrappers.

        Args:
            example: an input of the model, or a tuple of its arguments. A copy of the model runs on it, in
                training and in evaluation. Networks that merge weights for evaluation, that read a layer's
                ``weight``, or that call a layer through a Python list, do not call the deformable layer.

        Raises:
            RuntimeError: a layer is missing, has another class or is not called; its offsets get no gradient.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        lost = [name for name, kind in self.classes.items() if not isinstance(modules.get(name), kind)]
        if lost:
            expected = f"{len(self.classes)} converted layers"
            raise RuntimeError(f"check: model: expected {expected}, got others for {_quoted(lost)}")
        if example is not None:
            require_used(model, self.classes, example)

    def __str__(self) -> str:
        rows = [
            *self.replaced.items(),
            *((name, f"not replaced: {why}") for name, why in self.refused.items()),
        ]
        counts = f"{len(self.replaced)} replaced, {len(self.refused)} not replaced"
        return "\n".join([*columns(rows), counts, *filter(None, [self.advice])])


def to_deformable(
    model: nn.Module,
    where: Where,
    kind: str = "v2",
    *,
    offset_groups: int = 1,
    mask_groups: int = 1,
    offset_limit: float | None = None,
    offset_activation: nn.Module | None = None,
    mask_activation: str | nn.Module = "sigmoid",
    prediction: str = "dense",
    float32_offsets: bool = False,
    im2col_step: int | None = None,
    example: Any = None,
) -> ConversionReport:
    """Replaces convolutions of a model with deformable ones, in place, which compute the same until trained.

    ``dcnzoo.to_deformable(resnet, 'layer[3-4].*.conv2')`` adds DCNv2 to the last two stages. Convert the
    model before you create the optimizer, and before you wrap (DDP) or compile the model.

    ``weight`` and ``bias`` stay the same ``Parameter`` objects with the same names. A new convolution,
    ``conv_offset``, predicts the offsets and the mask. It is trainable, with the same device, dtype and
    memory format. Offsets start at zero. The mask starts at one, because its activation is
    scaled: ``2 · sigmoid``, as in the first implementation of DCNv2, or K · softmax for K taps.

    Args:
        model: any module that contains ``nn.Conv{1,2,3}d`` or ``nn.ConvTranspose{1,2,3}d``.
        where: which convolutions to replace: a shell pattern for their full names (``*`` also matches dots),
            a list of patterns, or a function ``(name, module) -> bool``. A module with several names is
            replaced under all of them.
        kind: ``'v1'``: offsets (DCN). ``'v2'``: offsets and a mask (DCNv2).
        offset_groups, mask_groups, offset_limit, float32_offsets, im2col_step: see
            :class:`dcnzoo.layers.PackedDeformConv2d`.
        offset_activation, mask_activation: the same; each layer gets its own copy.
        prediction: the same; transposed layers always have a pointwise one.
        example: an input of the model, to check that its output stays the same, which code such as
            ``isinstance(layer, nn.Conv2d)`` in a forward changes, and that it uses the new layers
            (:meth:`ConversionReport.check`); an error leaves the model unconverted. Without it, the model's
            first forward in each mode, unless it is compiled, only warns of new layers that it does not call.

    Returns:
        The replaced modules, and the other matching modules with the reason (they also cause a warning).
        Convolutions are not replaced if they have one tap, different padding on the two sides, hooks or
        parametrizations, if they are lazy, or if their class has another forward than torch's, or attributes
        or methods of its own. An ``__init__``, ``reset_parameters`` and static methods may differ.

    Raises:
        ValueError: no module was replaced (the message suggests similar names), or an argument is invalid.
        TypeError: ``model`` is not a module.
        RuntimeError: the check with ``example`` has failed.
    """
    make = packed_layer(
        kind,
        offset_groups=offset_groups,
        mask_groups=mask_groups,
        offset_limit=offset_limit,
        offset_activation=offset_activation,
        mask_activation=mask_activation,
        prediction=prediction,
        float32_offsets=float32_offsets,
        im2col_step=im2col_step,
    )
    if example is not None:
        copied = copy.deepcopy(model)  # so that an error leaves the model as it was
        report = replace_convolutions(copied, where, make, caller="to_deformable")
        report.check(copied, example)
        require_same_output(model, copied, report.classes, example)
    report = replace_convolutions(model, where, make, caller="to_deformable")
    _warn("to_deformable", report)
    if example is None:
        FirstForward(model, report.classes)
    return report


def packed_layer(
    kind: str = "v2", *, mask_activation: str | nn.Module = "sigmoid", **options: Any
) -> Callable[[ConvNd], nn.Module]:
    """The function that converts one convolution; the arguments are those of :func:`to_deformable`."""
    if kind not in ("v1", "v2"):
        raise ValueError(f"to_deformable: kind: expected 'v1' or 'v2', got {kind!r}")

    def make(convolution: ConvNd) -> nn.Module:
        activation: Any = copy.deepcopy(mask_activation)
        if kind == "v1" and activation == "sigmoid":
            pass  # the default, without effect
        elif activation == "sigmoid":
            activation = packed.MaskSigmoid(scale=2)
        elif activation == "softmax":
            taps = math.prod(convolution.weight.shape[2:])
            activation = packed.MaskSoftmax(taps, scale=taps)
        arguments = dict(copy.deepcopy(options), modulated=kind == "v2", mask_activation=activation)
        if convolution.transposed and arguments.get("prediction") == "separable":
            arguments["prediction"] = "dense"
        try:
            return _to_packed(convolution, arguments)
        except ValueError as error:
            raise _Refused(str(error)) from None

    return make


def from_deformable(model: nn.Module, where: Where = "*") -> ConversionReport:
    """Replaces packed layers without any offset with torch's convolutions, in place.

    The inverse of :func:`to_deformable` for layers that have learnt nothing: the weights and the bias of
    ``conv_offset`` are zero, and the mask, if any, is one everywhere.

    Args:
        model: a module that contains packed layers of :mod:`dcnzoo.layers`.
        where: which layers to replace, as in :func:`to_deformable`.

    Returns:
        The replaced layers, and the other matching layers with the reason (they also cause a warning).

    Raises:
        ValueError: no layer was replaced.
    """
    packs = [module for module in model.modules() if isinstance(module, packed._Pack)]
    report = replace_convolutions(model, where, _to_plain, deformable=True, caller="from_deformable")
    if not any(isinstance(module, packed._Pack) for module in model.modules()):
        FirstForward.forget(*packs)
    _warn("from_deformable", report)
    return report


def _warn(caller: str, report: ConversionReport) -> None:
    if report.refused:
        warnings.warn(
            f"{caller}: {len(report.refused)} of {len(report.refused) + len(report.replaced)} matching "
            "modules were not replaced; print the result for the reasons",
            stacklevel=3,
        )


def replace_convolutions(
    model: nn.Module,
    where: Where,
    make: Callable[[Any], nn.Module],
    *,
    subclasses: bool = False,
    deformable: bool = False,
    caller: str = "replace_convolutions",
) -> ConversionReport:
    """Replaces convolutions of a model with other modules, in place.

    Args:
        model, where: see :func:`to_deformable`.
        make: returns the new module for a convolution.
        subclasses: also replace subclasses of torch's convolutions.
        deformable: replace packed layers instead.
        caller: the function or setting that the messages name.

    Returns:
        The replaced modules, and the other matching modules with the reason.

    Raises:
        TypeError, ValueError: see :func:`to_deformable`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model: expected an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        wrapper = {base.__name__ for base in type(module).__mro__} & _WRAPPERS
        if wrapper:
            raise ValueError(f"{caller}: model: expected an unwrapped model, got a {wrapper.pop()}")
    noun = "pack" if deformable else "convolution"
    layers = [module for module in model.modules() if isinstance(module, TracksOffsets)]
    predictors = {part for layer in layers for part in [*layer.modules()][1:]}
    candidates: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, packed._Pack if deformable else ConvNd)
        and not (module in predictors or isinstance(module, OFFSET_PREDICTORS))
    }
    chosen = _choose(caller, noun, candidates, where)

    replacements: dict[int, tuple[str, nn.Module]] = {}  # id of the old module -> its first name, new module
    replaced, refused, costly = {}, {}, 0
    for name in chosen:
        module = candidates[name]
        if id(module) in replacements:
            continue
        try:
            if module is model:
                raise _Refused("is the root module: wrap it in another module first")
            _check_replaceable(module, _CONVOLUTIONS if deformable else _PACKS, subclasses)
            new: Any = make(module)
        except _Refused as why:
            refused[name] = str(why)
            continue
        replacements[id(module)] = (name, new)
        replaced[name] = _describe_change(module, new)
        costly += isinstance(new, packed._Pack) and _should_be_separable(module, new)
    for name, module in candidates.items():
        if name not in replaced and id(module) in replacements:
            replaced[name] = f"the same as {replacements[id(module)][0]}"
    if not replaced:
        reasons = {why: [name for name in refused if refused[name] == why] for why in refused.values()}
        text = "; ".join(f"{_quoted(names)}: {why}" for why, names in reasons.items())
        raise ValueError(f"{caller}: where: expected a layer that can be converted, got none: {text}")
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if id(child) in replacements:
                parent._modules[key] = replacements[id(child)][1]
    protect(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    classes = {name: type(modules[name]) for name in replaced}
    depthwise = counted(costly, "depthwise layers")
    advice = f"{depthwise} at more than twice the parameters: use prediction='separable'" if costly else ""
    return ConversionReport(replaced, refused, classes, advice)


def _describe_change(old: nn.Module, new: nn.Module) -> str:
    added = _parameters(new) - _parameters(old)
    text = f"{type(old).__name__} → {type(new).__name__}, {added:+,} parameters"
    if isinstance(new, packed._Pack):
        text += f", {_flops_per_pixel(old):,} → {_flops_per_pixel(new):,} FLOPs per pixel"
    return text


def _should_be_separable(old: nn.Module, new: Any) -> bool:
    is_depthwise = new.groups == new.in_channels > 1 and not new.transposed
    return is_depthwise and new.offset_features is None and _parameters(new) > 2 * _parameters(old)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops_per_pixel(layer: Any) -> int:
    """FLOPs per output pixel; of a transposed layer, per input pixel."""
    pixel = (1, layer.out_channels if layer.transposed else layer.in_channels)
    weights = {weight: False for weight in layer.parameters() if weight.dim() > 2}
    weights[layer.weight] = isinstance(layer, packed._Pack)  # which samples
    return sum(of_convolution(pixel, pixel, weight.shape, samples) for weight, samples in weights.items())


def _choose(caller: str, noun: str, candidates: dict[str, nn.Module], where: Where) -> list[str]:
    if not candidates:
        raise ValueError(f"{caller}: model: expected a model with a {noun}, got none")
    if callable(where):
        chosen = [name for name, module in candidates.items() if where(name, module)]
        if not chosen:
            raise ValueError(
                f"{caller}: where: expected at least one match, got none among {_quoted(candidates)}"
            )
        return chosen
    patterns = [where] if isinstance(where, str) else where or None
    if not isinstance(patterns, Iterable) or not all(isinstance(p, str) for p in patterns):
        raise ValueError(
            f"{caller}: where: expected a pattern, a list of patterns or a function, got {where!r}"
        )
    for pattern in patterns:
        if fnmatch.filter(candidates, pattern):
            continue
        deeper = fnmatch.filter(candidates, f"*{pattern}")
        near = difflib.get_close_matches(pattern, candidates, cutoff=0)
        hint = f"'*{pattern}' matches {_quoted(deeper)}" if deeper else f"the nearest are {_quoted(near)}"
        raise ValueError(f"{caller}: where: no {noun} matches {pattern!r}; {hint}")
    return [name for name in candidates if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _quoted(names: Iterable[str]) -> str:
    return few([repr(name) for name in names], 3)


def _check_replaceable(module: nn.Module, known: Collection[type[nn.Module]], subclasses: bool) -> None:
    """Raise ``_Refused`` with the reason if the module cannot be replaced."""
    if parametrize.is_parametrized(module):
        raise _Refused("has parametrizations: remove them first (torch.nn.utils.parametrize)")
    if isinstance(module, LazyModuleMixin):
        raise _Refused("is lazy: run a batch through the model first")
    if hook := hooks(module):
        raise _Refused(f"has {hook.strip('_').replace('_', ' ')}, which would be lost: remove them first")
    if not isinstance(vars(module).get("forward", Switch(module)), Switch):
        raise _Refused("has a `forward` set on the instance")
    is_subclass = isinstance(module, tuple(known))
    if subclasses and is_subclass:
        return
    if kind := same_as(module, known):
        if members := _own_members(type(module), kind):
            raise _Refused(
                f"is a {type(module).__name__}, a subclass with members of its own: {few(members)}"
            )
        return
    why = "a subclass that may compute something else" if is_subclass else "not one of torch's convolutions"
    if type(module) in known:
        why = "with a method or a weight that was replaced"
    raise _Refused(f"is a {type(module).__name__}, {why}")


def _own_members(cls: type, kind: type) -> list[str]:
    """The attributes and methods of a subclass that a conversion would lose."""
    members = [item for base in cls.__mro__[: cls.__mro__.index(kind)] for item in vars(base).items()]
    names = {name for name, member in members if not isinstance(member, staticmethod)}
    return sorted(name for name in names - {"extra_repr", "reset_parameters"} if not name.startswith("__"))


def _padding(convolution: ConvNd) -> tuple[int, ...]:
    """Padding in pixels, from what torch's forward reads."""
    padding, kernel = convolution.padding, convolution.weight.shape[2:]
    if convolution.padding_mode != "zeros":
        before = tuple(convolution._reversed_padding_repeated_twice[::-2])
        behind = tuple(convolution._reversed_padding_repeated_twice[-2::-2])
    elif isinstance(padding, str):
        spread = [d * (k - 1) for d, k in zip(convolution.dilation, kernel, strict=True)]
        before = tuple(n // 2 if padding == "same" else 0 for n in spread)
        behind = tuple(n - n // 2 if padding == "same" else 0 for n in spread)
    else:
        return padding
    if before != behind:
        raise _Refused("pads the two sides differently, as padding='same' with an even kernel does")
    return before


def _to_packed(convolution: ConvNd, options: dict) -> nn.Module:
    if math.prod(convolution.weight.shape[2:]) == 1:
        raise _Refused("has a kernel of one tap, which offsets would only shift")
    if set(convolution._parameters) != {"weight", "bias"} or convolution._buffers or convolution._modules:
        raise _Refused("has parameters, buffers or modules that a deformable layer does not have")
    weight = convolution.weight
    if weight.dtype not in _DTYPES:
        raise _Refused(f"has dtype {weight.dtype}, which is not supported")
    names = ("stride", "dilation", "groups", "padding_mode")
    options |= {name: getattr(convolution, name) for name in names}
    # from the weight, which may have been replaced: torch's forward does not read the numbers of channels
    outer, inner, *kernel = weight.shape
    sizes = (outer, inner * convolution.groups)
    inputs, outputs = sizes if convolution.transposed else sizes[::-1]
    options |= dict(in_channels=inputs, out_channels=outputs, kernel_size=tuple(kernel))
    options |= dict(padding=_padding(convolution), bias=convolution.bias is not None, dtype=weight.dtype)
    if convolution.transposed:
        options["output_padding"] = convolution.output_padding
    pack: Any = _PACKS[same_as(convolution, _PACKS)](**options, device="meta")
    pack.weight, pack.bias = convolution.weight, convolution.bias
    _carry_over(convolution, pack, _PACKS)
    layout = memory_format(weight)
    for part in filter(None, (pack.conv_offset, pack.offset_features)):
        for layer in part.modules():
            for name, tensor in layer.named_parameters(recurse=False):  # to_empty cannot swap fake tensors
                setattr(layer, name, nn.Parameter(torch.empty_like(tensor, device=weight.device)))
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        if layout != torch.contiguous_format:
            part.to(memory_format=layout)
    for activation in filter(None, (pack.offset_activation, pack.mask_activation)):
        activation.to(weight.device, weight.dtype)
    if can_read(weight):
        offset, factor = _prediction_for_zeros(pack)
        if offset:
            raise _Refused("offset_activation: expected an output of 0 for an input of 0")
        if factor != 1:
            raise _Refused(
                f"mask_activation: expected an output of 1 for an input of 0, got {factor:.3g}; scale it"
            )
    return pack.train(convolution.training)


def _carry_over(old: nn.Module, new: nn.Module, known: Collection[type[nn.Module]]) -> None:
    """Copy the attributes that a host keeps on a layer: ``f``, ``i`` and ``type`` of YOLO, ``lr_scale``."""
    own = vars(same_as(old, known)(1, 1, 1, device="meta"))
    for name in vars(old).keys() - own.keys() - {"forward", *TRACKED}:  # forward: of a fused call
        if name in vars(new) or (hasattr(type(new), name) and not hasattr(type(old), name)):
            raise _Refused(f"has an attribute {name!r}, a name that a {type(new).__name__} uses itself")
        setattr(new, name, vars(old)[name])


@torch.no_grad()
def _prediction_for_zeros(pack: packed._Pack) -> tuple[float, float]:
    """For an input of zeros, the largest absolute offset and the factor of the mask that is furthest from 1.

    The factor is exactly 1 without a mask, or if rounding explains the difference.
    """
    axes = zip(pack.dilation, pack.kernel_size, pack.padding, strict=True)
    size = [d * (k - 1) + 1 + p for d, k, p in axes]  # another padding_mode needs more than p pixels
    training = [part for part in pack.modules() if part.training]
    try:
        offset, mask = pack.eval().predict(pack.weight.new_zeros(1, pack.in_channels, *size))
    finally:
        for part in training:
            part.training = True
    factor = 1.0
    if mask is not None and not torch.allclose(mask, torch.ones_like(mask)):
        factor = mask.flatten()[(mask - 1).abs().argmax()].item()
    return 0.0 if offset is None else offset.abs().max().item(), factor


def _to_plain(pack: packed._Pack) -> nn.Module:
    if not can_read(pack.weight):
        raise _Refused("has no values, which would show that its offsets are zero")
    if pack.conv_offset is not None and pack.conv_offset.weight.any():
        raise _Refused("has learnt offsets or a mask: the weight of conv_offset is not zero")
    offset, factor = _prediction_for_zeros(pack)
    if offset:
        raise _Refused(f"has offsets, up to {offset:.3g} pixels")
    if factor != 1:
        raise _Refused(f"has a mask of {factor:.3g}, not 1")
    convolution = pack.plain()
    _carry_over(pack, convolution, _CONVOLUTIONS)
    return convolution
