"""Hugging Face Transformers on dcnzoo's kernels, for every model family with deformable attention.

Models keep their classes, parameters, checkpoints and outputs: dcnzoo replaces only the sampling function, in
each family of ``transformers.models`` that has one of :data:`_REPLACEMENTS`. ``docs/hosts.md`` lists the
families. ``forward`` is that of the layer ``MultiScaleDeformableAttention``, which Transformers offers for
replacement under this name (``use_kernel_forward_from_hub``).

Before dcnzoo replaces a function, it compares the function's arguments, and its result for a small input,
with its own. If they differ, the family keeps its function and a warning names the family.

In exports to ONNX by :func:`dcnzoo.export.export_onnx`, or after :func:`dcnzoo.export.register_onnx_ops`, the
graph has dcnzoo's translation: gathers instead of ``GridSample``. The original runs in other exports, for
RT-DETRv2's discrete sampling, and on devices other than the CPU, unless ``patches.enable("cuda")`` is called.
This module does not import transformers.
"""

import functools
import importlib.util
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.compat import patches
from dcnzoo.compat.after_import import call
from dcnzoo.compat.mmcv import DEFAULT_DEVICES
from dcnzoo.ops import _library
from dcnzoo.ops._arguments import exporting
from dcnzoo.ops.deform_attn import level_starts

__all__ = ["disable", "enable", "enabled", "families", "multi_scale_deformable_attention"]

_families: set[str] = set()


def enable() -> None:
    """Runs the deformable families of Transformers on dcnzoo's kernels, also families imported later.

    Models that exist already run on them too, except RT-DETRv2, D-FINE and DEIMv2, whose layers keep a
    reference to the function. Compiled models are compiled again at their next call.

    Raises:
        ImportError: transformers is not installed.
    """
    if "transformers" not in sys.modules and importlib.util.find_spec("transformers") is None:
        raise ImportError("enable: transformers: expected an installed package; pip install transformers")
    patches.switch_on(PATCH)


def disable() -> None:
    """Restores the originals, also in models that exist already."""
    patches.switch_off(PATCH)


def enabled() -> AbstractContextManager[None]:
    """A context in which :func:`enable` applies."""
    return patches.switched_on(PATCH, enable)


def families() -> list[str]:
    """The imported families that run on dcnzoo's kernels, by their names in ``transformers.models``."""
    return sorted(_families)


# The next three functions have the arguments of those in Transformers. They return None where the original
# must run.


def _forward(
    self: torch.nn.Module,
    value: Tensor,  # [N, S, heads, D]
    value_spatial_shapes: Tensor,  # [L, 2], (height, width)
    value_spatial_shapes_list: list[tuple[int, int]],  # the same numbers
    level_start_index: Tensor,  # [L]
    sampling_locations: Tensor,  # [N, Q, heads, L, P, 2], (x, y) in units of the level's size
    attention_weights: Tensor,  # [N, Q, heads, L, P]
    im2col_step: int,
) -> Tensor | None:  # [N, Q, heads·D]
    if not _has_kernels(value.device):
        return None
    return _attend(value, (value_spatial_shapes, level_start_index), sampling_locations, attention_weights)


def multi_scale_deformable_attention(
    value: Tensor,  # [N, S, heads, D]
    value_spatial_shapes: Tensor | list[tuple[int, int]],  # (height, width) of each level
    sampling_locations: Tensor,  # [N, Q, heads, L, P, 2]
    attention_weights: Tensor,  # [N, Q, heads, L, P]
) -> Tensor | None:  # [N, Q, heads·D]
    """The function of Mask2Former and OneFormer; None without a kernel for the device."""
    if not _has_kernels(value.device):
        return None
    levels = _levels(value_spatial_shapes, value.device)
    return _attend(value, levels, sampling_locations, attention_weights)


def _multi_scale_deformable_attention_v2(
    value: Tensor,  # [N, S, heads, D]
    value_spatial_shapes: list[tuple[int, int]],  # (height, width) of each level
    sampling_locations: Tensor,  # [N, Q, heads, sum of num_points_list, 2]
    attention_weights: Tensor,  # [N, Q, heads, sum of num_points_list]
    num_points_list: list[int],  # points of each level
    method: str = "default",
) -> Tensor | None:  # [N, Q, heads·D]
    if method != "default" or not _has_kernels(value.device):
        return None
    # (3, 6, 3) is 3 points on levels 0, 1, 1 and 2
    points = math.gcd(*num_points_list)
    levels = _levels(value_spatial_shapes, value.device, [count // points for count in num_points_list])
    locations = sampling_locations.unflatten(3, (-1, points))
    return _attend(value, levels, locations, attention_weights.unflatten(3, (-1, points)))


_REPLACEMENTS: dict[str, Callable[..., Tensor | None]] = {
    "forward": _forward,
    "multi_scale_deformable_attention": multi_scale_deformable_attention,
    "multi_scale_deformable_attention_v2": _multi_scale_deformable_attention_v2,
}
_LAYER = "MultiScaleDeformableAttention"  # the class of "forward"


_translated = ContextVar("translated", default=False)


@contextmanager
def translated() -> Iterator[None]:
    """A context of exports that translate dcnzoo's operators."""
    token = _translated.set(True)
    try:
        yield
    finally:
        _translated.reset(token)


def _has_kernels(device: torch.device) -> bool:
    """Whether to use dcnzoo's operator: on devices that have it, in exports only if they translate it."""
    if (exporting() and not _translated.get()) or device.type not in _library.loaded:
        return False
    return device.type in DEFAULT_DEVICES or patches.enabled(patches.CUDA)


def _levels(
    sizes: Tensor | Sequence[tuple[int, int]], device: torch.device, repeats: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:  # [L, 2], (height, width), and [L], the starts in S
    shapes = sizes if isinstance(sizes, Tensor) else torch.tensor(sizes, dtype=torch.int64, device=device)
    levels = [level for level, count in enumerate(repeats) for _ in range(count)]
    starts = level_starts(shapes)
    return (shapes[levels], starts[levels]) if levels else (shapes, starts)


def _attend(value: Tensor, levels: tuple[Tensor, Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    device = value.device.type
    if not torch.is_autocast_enabled(device):
        return ops.ms_deform_attn(value, *levels, locations, weights)
    # under autocast, grid_sample in the originals computes and returns float32
    value, locations, weights = (
        t.to(torch.promote_types(t.dtype, torch.float32)) for t in (value, locations, weights)
    )
    with torch.autocast(device, enabled=False):
        return ops.ms_deform_attn(value, *levels, locations, weights)


def _find(module: ModuleType) -> Iterator[tuple[str, object, str]]:
    """Yield the functions of a module that :data:`_REPLACEMENTS` may replace: name, owner and attribute."""
    for name, member in list(vars(module).items()):
        if isinstance(member, type) and getattr(member, "kernel_layer_name", name) == _LAYER:
            yield "forward", member, "forward"
        elif name in _REPLACEMENTS:
            yield name, module, name


def _with_kernels(name: str, original: Callable) -> Callable:
    replacement = _REPLACEMENTS[name]

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        output = replacement(*args, **kwargs) if PATCH.applied else None  # a model may keep this function
        return original(*args, **kwargs) if output is None else output

    vars(call)["_is_dcnzoo"] = True
    return call


def _difference(name: str, function: object) -> str | None:
    """Return how a function differs from its replacement, or None if it does not differ."""
    if not inspect.isfunction(function):
        return f"expected {name} to be a plain function, got {function!r}"
    functions: tuple[Callable, ...] = (_REPLACEMENTS[name], function)
    signatures = [inspect.signature(each).parameters.values() for each in functions]
    expected, got = ([(p.name, p.kind, p.default) for p in each] for each in signatures)
    if expected != got:
        names = [", ".join(each[0] for each in parameters) for parameters in (expected, got)]
        return f"expected {name} to have the arguments ({names[0]}), got ({names[1]})"
    try:
        with torch.no_grad():
            results = [each(**_small_input(name)) for each in reversed(functions)]
        torch.testing.assert_close(*results)
    except Exception as error:  # an import of transformers must not fail for any reason
        reason = str(error).partition("\n")[0]
        return f"expected {name} to have dcnzoo's result, got {type(error).__name__}: {reason}"
    return None


def _small_input(name: str) -> dict[str, Any]:
    """Arguments for comparing a function with its replacement: float64, which autocast does not convert."""

    def numbers(*shape: int) -> Tensor:  # from -0.25 to 1.25; does not use torch's random numbers
        count = torch.arange(math.prod(shape), dtype=torch.float64, device="cpu")
        return (count * 37 % 101 / 101 * 1.5 - 0.25).view(shape)

    sizes = [(3, 2), (1, 4)]
    arguments: dict[str, Any] = {
        "value": numbers(2, 10, 2, 3),
        "value_spatial_shapes": sizes,
        "sampling_locations": numbers(2, 5, 2, 2, 3, 2),
        "attention_weights": numbers(2, 5, 2, 2, 3),
    }
    if name == "forward":
        shapes, starts = _levels(sizes, torch.device("cpu"))
        arguments |= {"self": None, "value_spatial_shapes": shapes, "value_spatial_shapes_list": sizes}
        arguments |= {"level_start_index": starts, "im2col_step": 64}
    elif name == "multi_scale_deformable_attention_v2":
        arguments |= {"num_points_list": [2, 4]}
        arguments |= {
            key: arguments[key].flatten(3, 4) for key in ("sampling_locations", "attention_weights")
        }
    return arguments


def _replace(module: ModuleType, changes: patches.Changes) -> None:
    """Replace all functions of :data:`_REPLACEMENTS` in a module, or warn and replace none."""
    family = module.__name__.split(".")[2]
    functions = [(name, owner, attr, getattr(owner, attr)) for name, owner, attr in _find(module)]
    # a class may be imported from a module handled before
    new = [entry for entry in functions if not hasattr(entry[3], "_is_dcnzoo")]
    if problem := next(filter(None, (_difference(name, function) for name, _, _, function in new)), None):
        warnings.warn(f"dcnzoo.compat.transformers: {family}: {problem}. It is not patched", stacklevel=2)
        return
    for name, owner, attribute, function in functions:
        if hasattr(function, "_is_dcnzoo"):  # imported by name from a module handled before
            changes.callback(setattr, owner, attribute, function.__wrapped__)
        else:
            changes.set(owner, attribute, _with_kernels(name, function))
    if functions:
        _families.add(family)
        changes.callback(_families.discard, family)


def _change(changes: patches.Changes) -> None:
    changes.callback(_forget_compiled)
    changes.callback(call("transformers.models.*.modeling_*", lambda module: _replace(module, changes)))
    _forget_compiled()


def _forget_compiled() -> None:
    # torch.compile does not guard the forward of a submodule's class
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


PATCH = patches.Patch(
    "transformers",
    "MultiScaleDeformableAttention.forward or multi_scale_deformable_attention of each family",
    "the originals call grid_sample for each level, which is several times slower on the CPU",
    "transformers 5",
    _change,
)
