"""Conversion of the convolutions of any network to deformable ones."""

import copy
import dataclasses
import difflib
import fnmatch
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from dcnzoo.layers import packed
from dcnzoo.layers.masks import MaskSigmoid, MaskSoftmax
from dcnzoo.layers.offsets import OffsetPredictor
from dcnzoo.ops._arguments import memory_format
from dcnzoo.ops._torch_private import ConvNd
from dcnzoo.ops.tracing import can_read
from dcnzoo.utils.text import columns, few

_NAMES = [f"{kind}{rank}d" for kind in ("Conv", "ConvTranspose") for rank in (1, 2, 3)]
_PACKS = {getattr(nn, name): getattr(packed, f"PackedDeform{name}") for name in _NAMES}
_ULTRALYTICS = "YOLO.train() builds a plain network: use trainer=, a dcnzoo.ultralytics.DeformableTrainer"
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]


class _Refused(Exception):
    """The reason why a module cannot be replaced."""


class _InvalidOption(_Refused):
    """The reason, if it is an argument of the new layer; it begins with the argument's name."""


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """The result of a conversion; ``print`` it for a table.

    Attributes:
        replaced: name of each replaced module -> old class, new class and added parameters; of a module
            with several names, the others -> the first one.
        refused: name of each other matching module -> the reason why it was not replaced.
        modules: number of replaced modules, some of which may have several names.
        note: what else to do, for a model of Ultralytics.
    """

    replaced: dict[str, str]
    refused: dict[str, str]
    modules: int
    note: str = ""

    def check(self, model: nn.Module) -> None:
        """Raise RuntimeError unless the model still has all layers that the conversion has made.

        Call it after another program has fused, copied or loaded the model. Pass it without wrappers.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        if lost := [name for name in self.replaced if not isinstance(modules.get(name), packed.PACKED)]:
            expected = f"{len(self.replaced)} converted layers"
            raise RuntimeError(f"check: model: expected {expected}, got others for {_quoted(lost)}")

    def __str__(self) -> str:
        refused = ((name, f"not replaced: {why}") for name, why in self.refused.items())
        names = f" under {len(self.replaced)} names" if self.modules < len(self.replaced) else ""
        counts = f"{self.modules} replaced{names}, {len(self.refused)} not replaced"
        notes = [self.note] if self.note else []
        return "\n".join([*columns([*self.replaced.items(), *refused]), counts, *notes])


def to_deformable(
    model: nn.Module,
    where: Where,
    kind: str = "v2",
    *,
    offset_groups: int = 1,
    mask_groups: int = 1,
    offset_limit: float | None = None,
    offset_activation: nn.Module | None = None,
    mask_activation: str | nn.Module = "auto",
    prediction: str = "dense",
    float32_offsets: bool = False,
    im2col_step: int | None = None,
    example: Any = None,
) -> ConversionReport:
    """Replaces convolutions of a model, in place, with deformable ones that compute the same until trained.

    ``dcnzoo.to_deformable(resnet, 'layer[3-4].*.conv2')`` adds DCNv2 to the last two stages. Convert the
    model before you create the optimizer, and before you wrap (DDP) or compile the model.

    ``weight`` and ``bias`` stay the same ``Parameter`` objects with the same names. A new convolution,
    ``conv_offset``, predicts the offsets and the mask. It is trainable, with the same device, dtype and
    memory format. Offsets start at zero. The mask starts at one, because its activation is
    scaled: ``2 · sigmoid``, as in the first implementation of DCNv2, or K · softmax for K taps.

    Programs that merge a convolution with its batch norm, or several branches, into a new ``nn.Conv2d``
    replace a deformable layer too, and lose its offsets: call :meth:`ConversionReport.check` afterwards.

    Args:
        model: any module that contains ``nn.Conv{1,2,3}d`` or ``nn.ConvTranspose{1,2,3}d``.
        where: which convolutions to replace: a shell pattern for their full names (``*`` also matches dots),
            a list of patterns, or a function ``(name, module) -> bool``. A module with several names is
            replaced under all of them.
        kind: ``'v1'``: offsets (DCN). ``'v2'``: offsets and a mask (DCNv2). ``'v3'``: its mask is a softmax
            over the taps of each group, as in DCNv3.
        mask_activation: ``'sigmoid'``, ``'softmax'`` or a module; each layer gets its own copy. ``'auto'``:
            the one of ``kind``.
        example: an input of the model, or a tuple of its arguments. A converted copy of the model runs on it
            in evaluation mode, with the same random numbers. If it does not call every new layer, or its
            output differs, an error is raised and the model stays unconverted. An output consists of tensors,
            arrays, numbers and text, in lists, tuples, dictionaries and dataclasses. Integers and values that
            are not finite must be equal, the others agree within rounding.
        offset_groups, mask_groups, offset_limit, offset_activation, prediction, float32_offsets, im2col_step:
            see :class:`dcnzoo.layers.PackedDeformConv2d`.

    Returns:
        The replaced modules, and the matching modules that cannot be replaced (they also cause a warning):
        kernels of one tap, subclasses of torch's convolutions, hooks, further parameters, buffers or
        submodules, different padding on the two sides.

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
    chosen = _choose("to_deformable", _convolutions("to_deformable", model), where)
    if example is not None:
        converted = copy.deepcopy(model)
        report = _replace("to_deformable", converted, chosen, make)
        _require_same_output(model, converted, report.replaced, example)
    report = _replace("to_deformable", model, chosen, make)
    if report.refused:
        total = len(report.refused) + len(report.replaced)
        text = f"to_deformable: {len(report.refused)} of {total} matching modules were not replaced; "
        warnings.warn(text + "print the result for the reasons", stacklevel=2)
    return report


def packed_layer(
    kind: str = "v2", *, mask_activation: str | nn.Module = "auto", **options: Any
) -> Callable[[ConvNd], nn.Module]:
    """Return the function that converts one convolution; the arguments are those of :func:`to_deformable`."""
    if kind not in ("v1", "v2", "v3"):
        raise ValueError(f"to_deformable: kind: expected 'v1', 'v2' or 'v3', got {kind!r}")
    if mask_activation == "auto":
        mask_activation = "softmax" if kind == "v3" else "sigmoid"

    def make(convolution: ConvNd) -> nn.Module:
        activation: Any = copy.deepcopy(mask_activation)
        taps = math.prod(convolution.kernel_size)
        if kind != "v1" and activation == "sigmoid":
            activation = MaskSigmoid(scale=2)
        elif kind != "v1" and activation == "softmax":
            activation = MaskSoftmax(taps, scale=taps)
        try:
            return _to_packed(
                convolution, modulated=kind != "v1", mask_activation=activation, **copy.deepcopy(options)
            )
        except ValueError as error:  # the layer names its class first, an activation of the user may not
            raise _InvalidOption(re.sub(r"^PackedDeformConv\w+: ", "", str(error))) from None

    return make


def replace_convolutions(
    model: nn.Module,
    where: Where,
    make: Callable[[Any], nn.Module],
    *,
    subclasses: bool = False,
    caller: str = "replace_convolutions",
) -> ConversionReport:
    """Replaces convolutions of a model with other modules, in place.

    Args:
        model, where: see :func:`to_deformable`.
        make: returns the new module for a convolution.
        subclasses: also replace subclasses of torch's convolutions.
        caller: the function or setting that the messages name.

    Raises:
        TypeError, ValueError: see :func:`to_deformable`.
    """
    chosen = _choose(caller, _convolutions(caller, model), where)
    return _replace(caller, model, chosen, make, subclasses)


def _convolutions(caller: str, model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions of a model, by each of their names, without those that predict offsets."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model: expected an nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if (kind := type(module).__name__) in _WRAPPERS:
            got = f"a {kind} at {name!r}" if name else f"a {kind}"
            raise ValueError(f"{caller}: model: expected an unwrapped model, got {got}")
    layers = [module for module in model.modules() if isinstance(module, packed.PACKED)]
    predictors = {part for layer in layers for part in [*layer.modules()][1:]}
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, ConvNd) and not (module in predictors or isinstance(module, OffsetPredictor))
    }


def _replace(
    caller: str,
    model: nn.Module,
    chosen: Iterable[str],
    make: Callable[[Any], nn.Module],
    subclasses: bool = False,
) -> ConversionReport:
    candidates = _convolutions(caller, model)
    new: dict[nn.Module, nn.Module] = {}
    refused = dict[str, _Refused]()
    for name in chosen:
        module = candidates[name]
        try:
            if module not in new:
                if module is model:
                    raise _Refused("is the root module: wrap it in another module first")
                _check_replaceable(module, subclasses)
                new[module] = make(module)
        except _Refused as refusal:
            refused[name] = refusal
    replaced, first = dict[str, str](), dict[nn.Module, str]()
    for name, module in candidates.items():  # also a chosen module's other names
        if module in new:
            is_first = first.setdefault(module, name) == name
            change = _describe_change(module, new[module])
            replaced[name] = change if is_first else f"the same module as {first[module]}"
    if not replaced:
        if invalid := [why for why in refused.values() if isinstance(why, _InvalidOption)]:
            raise ValueError(f"{caller}: {invalid[0]}")
        why = "; ".join(f"{name}: {why}" for name, why in [*refused.items()][:3])
        raise ValueError(f"{caller}: where: expected a layer that can be converted, got none: {why}")
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in new:
                parent._modules[key] = new[child]
    note = _ULTRALYTICS if type(model).__module__.startswith("ultralytics.") else ""
    return ConversionReport(replaced, {name: str(why) for name, why in refused.items()}, len(new), note)


def _describe_change(old: nn.Module, new: nn.Module) -> str:
    added = sum(p.numel() for p in new.parameters()) - sum(p.numel() for p in old.parameters())
    return f"{type(old).__name__} → {type(new).__name__}, {added:+,} parameters"


def _choose(caller: str, candidates: dict[str, nn.Module], where: Where) -> list[str]:
    if not candidates:
        raise ValueError(f"{caller}: model: expected a model with a convolution, got none")
    if callable(where):
        chosen = [name for name, module in candidates.items() if where(name, module)]
        if not chosen:
            expected = "expected at least one match, got none among"
            raise ValueError(f"{caller}: where: {expected} {_quoted(candidates)}")
        return chosen
    patterns = [where] if isinstance(where, str) else where
    if not (patterns and isinstance(patterns, Sequence) and all(isinstance(p, str) for p in patterns)):
        expected = "expected a pattern, a list of patterns or a function"
        raise ValueError(f"{caller}: where: {expected}, got {where!r}")
    for pattern in patterns:
        if not fnmatch.filter(candidates, pattern):
            deeper = fnmatch.filter(candidates, f"*{pattern}")
            near = difflib.get_close_matches(pattern, candidates, cutoff=0)
            hint = f"'*{pattern}' matches {_quoted(deeper)}" if deeper else f"the nearest are {_quoted(near)}"
            raise ValueError(f"{caller}: where: no convolution matches {pattern!r}; {hint}")
    return [name for name in candidates if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _quoted(names: Iterable[str]) -> str:
    return few([repr(name) for name in names], 3)


def _check_replaceable(module: nn.Module, subclasses: bool) -> None:
    kind = next((kind for kind in _PACKS if isinstance(module, kind)), None)
    if kind is None or not (subclasses or _computes_the_same(type(module), kind)):
        raise _Refused(f"is a {type(module).__name__}, not one of torch's convolutions")
    if is_parametrized(module):
        raise _Refused("has parametrizations: remove them first (torch.nn.utils.parametrize)")
    for name, value in vars(module).items():
        if name.endswith("_hooks") and value:
            raise _Refused(f"has {name.strip('_').replace('_', ' ')}, which would be lost: remove them first")
    if "forward" in vars(module):
        raise _Refused("has a `forward` set on the instance")


def _computes_the_same(cls: type, kind: type) -> bool:
    names = ("__call__", "forward", "_conv_forward", "_output_padding")
    return all(getattr(cls, name, None) is getattr(kind, name, None) for name in names)


def _padding(convolution: ConvNd) -> tuple[int, ...]:
    if not isinstance(convolution.padding, str):
        return convolution.padding
    sides = [d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
    if convolution.padding == "valid":
        sides = [0] * len(sides)
    if any(side % 2 for side in sides):
        raise _Refused("pads the two sides differently, as padding='same' with an even kernel does")
    return tuple(side // 2 for side in sides)


def _to_packed(convolution: Any, **options: Any) -> nn.Module:
    if math.prod(convolution.kernel_size) == 1:
        raise _Refused("has a kernel of one tap, which offsets would only shift")
    parts = [*convolution._parameters, *convolution._buffers, *convolution._modules]
    if own := [name for name in parts if name not in ("weight", "bias")]:
        raise _Refused(f"has {_quoted(own)} of its own, which would be lost: move them to another module")
    weight = convolution.weight
    names = ["in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding_mode"]
    if convolution.transposed:
        names.append("output_padding")
    geometry = {name: getattr(convolution, name) for name in names}
    more = dict(padding=_padding(convolution), bias=convolution.bias is not None, dtype=weight.dtype)
    kind = next(kind for kind in _PACKS if isinstance(convolution, kind))
    with torch.random.fork_rng(devices=[]):
        pack: Any = _PACKS[kind](**geometry, **more, **options, device=weight.device)
    pack.weight, pack.bias = convolution.weight, convolution.bias
    for name in vars(convolution).keys() - vars(pack).keys():  # added by a model, as YOLO's f, i, type
        setattr(pack, name, vars(convolution)[name])
    if memory_format(weight) != torch.contiguous_format:
        pack.conv_offset.to(memory_format=memory_format(weight))
    for activation in (pack.offset_activation, pack.mask_activation):
        if activation is not None:
            activation.to(weight.device, weight.dtype)
    if can_read(weight):
        _check_start(pack)
    return pack.train(convolution.training)


@torch.no_grad()
def _check_start(pack: Any) -> None:
    """Check that the activations turn a prediction of 0 into an offset of 0 and a mask of 1."""
    for name, channels, start in (
        ("offset_activation", pack.offset_channels, 0.0),
        ("mask_activation", pack.mask_channels, 1.0),
    ):
        if channels:
            activation = nn.Identity() if getattr(pack, name) is None else getattr(pack, name)
            output = copy.deepcopy(activation).eval()(pack.weight.new_zeros(1, channels, *[1] * pack.rank))
            if not torch.allclose(output, torch.full_like(output, start)):
                raise _InvalidOption(f"{name}: expected an output of {start:g} for an input of 0; scale it")


@torch.no_grad()
def _require_same_output(model: nn.Module, converted: nn.Module, names: Iterable[str], example: Any) -> None:
    arguments = example if isinstance(example, tuple) else (example,)
    called: set[nn.Module] = set()
    for name in names:
        converted.get_submodule(name).register_forward_hook(lambda module, *_: called.add(module))
    outputs = []
    for network in (copy.deepcopy(model), converted):
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # without devices, it warns of several
            torch.manual_seed(0)
            outputs.append(dict(_values(network.eval()(*copy.deepcopy(arguments)))))
    if unused := [name for name in names if converted.get_submodule(name) not in called]:
        raise RuntimeError(f"to_deformable: model: its forward does not call {_quoted(unused)}")
    expected, got = outputs
    differ = expected.keys() ^ got.keys() or [n for n in expected if not _agree(expected[n], got[n])]
    if differ:
        text = f"expected the same output in evaluation, got another {few(sorted(differ), 3)}"
        raise RuntimeError(f"to_deformable: model: {text}")


def _values(output: Any, name: str = "output") -> Iterator[tuple[str, Any]]:
    """Yield the values in a network's output with their names, such as ``output['boxes'][0]``."""
    if dataclasses.is_dataclass(output) and not isinstance(output, Mapping):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, list | tuple):
        output = dict(enumerate(output))
    if isinstance(output, Mapping):
        for key, part in output.items():
            yield from _values(part, f"{name}[{key!r}]")
    elif isinstance(output, int | float | complex) or hasattr(output, "__array__"):
        yield name, torch.as_tensor(output)
    elif output is None or isinstance(output, str | bytes):
        yield name, output
    else:
        expected = "expected tensors, numbers and text, in lists, dictionaries and dataclasses"
        raise RuntimeError(f"to_deformable: example: {expected}, got {name} of type {type(output).__name__}")


def _agree(before: Any, after: Any) -> bool:
    """Return whether two values of an output are equal, or floating ones differ only by rounding."""
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return bool(type(before) is type(after) and before == after)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return False
    if not (before.is_floating_point() or before.is_complex()):
        return torch.equal(before, after)
    # Sums that cancel out differ relative to the other values. Their median ignores fills such as -1e9.
    size = before.abs().double()
    size = size[size.isfinite() & (size > 0)]
    scale = size.median().item() if len(size) else 0.0
    tolerance = max(1e-3, 4 * torch.finfo(before.dtype).eps)
    return torch.allclose(before, after, tolerance, tolerance * scale, equal_nan=True)
