"""Offsets of layers that are not dcnzoo's but run on its operators: mmcv's, mmagic's, BasicSR's, your own."""

import contextlib
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dcnzoo.layers.offsets import limit_offset
from dcnzoo.layers.statistics import OffsetStatistics, TracksOffsets, measure
from dcnzoo.ops._arguments import can_read
from dcnzoo.ops.choose import CallsOfOperators
from dcnzoo.ops.operator import Operator


@contextlib.contextmanager
def measure_offsets(model: nn.Module) -> Iterator[dict[str, OffsetStatistics]]:
    """Measure the offsets of deformable convolutions v1 and v2, also transposed, that run in the block::

        with measure_offsets(network) as statistics:
            network(frames)
        print(statistics)                  # {"pcd_align.dcn_pack.l1": OffsetStatistics(mean=0.4, …), …}

    Layers of any package that runs on dcnzoo's operators count, by the module that calls the operator. Of a
    layer that runs several times, such as one for each frame of a video, ``mean`` and ``outside`` are means,
    and ``max`` is the largest. The dict is filled at the end of the block. Calls in ``torch.func.jvp`` are
    not measured. :func:`track_offsets` does the same for dcnzoo's layers, also DCNv3, DCNv4 and attention,
    which are not measured here.
    """
    statistics: dict[str, OffsetStatistics] = {}
    running = [""]  # names of modules, the innermost last; other threads' operators are not seen
    thread = threading.get_ident()
    measured: dict[str, list[Tensor]] = defaultdict(list)  # [3] per call

    def note(operator: Operator, call: Any, output: Tensor, choice: object = None) -> None:
        if operator.name not in ("deform_conv", "deform_conv_transpose") or call.offset is None:
            return
        size = (call.input if operator.name == "deform_conv" else output).shape[2:]
        if can_read(call.offset) and call.offset.numel() > 0:
            geometry = (call.weight.shape[2:], call.stride, call.padding, call.dilation)
            measured[running[-1]].append(measure(call.offset, size, *geometry))

    def enter(name: str) -> Callable:
        return lambda *_: running.append(name) if threading.get_ident() == thread else None

    def leave(*_: object) -> None:
        if threading.get_ident() == thread:
            running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), prepend=True))  # others may raise
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with CallsOfOperators(note):
            yield statistics
    finally:
        for handle in handles:
            handle.remove()
    for name, calls in measured.items():
        mean, largest, outside = torch.stack(calls).unbind(1)
        statistics[name] = OffsetStatistics(float(mean.mean()), float(largest.max()), float(outside.mean()))


def limit_offsets(model: nn.Module, limit: float) -> list[RemovableHandle]:
    """Bound the offsets of other packages' layers to ±``limit`` pixels, by :func:`limit_offset`.

    A layer is a module with ``kernel_size`` and a part ``conv_offset`` that predicts offsets, and then
    perhaps masks, as mmcv's, mmagic's and BasicSR's have. Offsets that it adds later, such as optical flows,
    are not limited.

    Returns:
        handles; ``remove()`` undoes the limit of a layer. Layers of dcnzoo have ``offset_limit`` instead.

    Raises:
        ValueError: ``limit`` is not positive, or no layer was recognised.
        RuntimeError: in the forward pass, if a prediction has other channels than offsets and masks for
            ``deform_groups`` or ``deformable_groups`` of the layer.
    """
    if not 0 < limit < math.inf:
        raise ValueError(f"limit_offsets: limit: expected a positive number, got {limit!r}")
    handles = []
    layer: Any
    for layer in model.modules():
        is_foreign = hasattr(layer, "kernel_size") and not isinstance(layer, TracksOffsets)
        if is_foreign and isinstance(getattr(layer, "conv_offset", None), nn.Module):
            handles.append(layer.conv_offset.register_forward_hook(_limiting(layer, limit)))
    if not handles:
        raise ValueError(
            "limit_offsets: model: expected layers with kernel_size and a part conv_offset, found none"
        )
    return handles


def _limiting(layer: Any, limit: float) -> Callable:
    kernel = layer.kernel_size
    taps = kernel**2 if isinstance(kernel, int) else math.prod(kernel)
    groups = next((getattr(layer, n) for n in ("deform_groups", "deformable_groups") if hasattr(layer, n)), 1)
    channels = 2 * taps * groups

    def limited(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if output.shape[1] not in (channels, channels * 3 // 2):
            name, expected = type(layer).__name__, f"{channels} offsets, and perhaps {channels // 2} masks"
            raise RuntimeError(f"limit_offsets: {name}: expected {expected}, got {output.shape[1]} channels")
        offset, rest = output[:, :channels], output[:, channels:]
        return torch.cat([limit_offset(offset, limit), rest], dim=1)

    return limited
