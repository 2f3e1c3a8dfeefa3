"""Sampling points of deformable convolutions, in pixels of the input image, and the outputs of a region."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dcnzoo.backbones.vit_adapter import Extractor
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.layers.statistics import tracks_offsets
from dcnzoo.ops.geometry import deform_attn_points, sampling_points
from dcnzoo.utils.errors import UserError

_MOST_PER_AXIS = 8  # most rows, and most columns, of a box for which points are drawn


@dataclasses.dataclass(frozen=True)
class SamplingField:
    """The sampling points of one layer, for one image and one offset group.

    Attributes:
        name: of the layer in its model.
        offset: [K, 2, oH, oW], (y, x), in pixels of the layer's input; K taps.
        weight: [K, oH, oW], the modulation mask; ones for v1, signed factors for v4.
        kernel_size, stride, padding, dilation: of the layer, (y, x).
        input_size: (H, W) of the layer's input.
        run: 1, or more if the layer has run before in the same forward pass, as heads on several levels do.
    """

    name: str
    offset: Tensor
    weight: Tensor
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    input_size: tuple[int, int]
    run: int = 1

    @property
    def title(self) -> str:
        """The layer and, after its first run, the number of the run: ``head``, ``head #2``."""
        return self.name if self.run == 1 else f"{self.name} #{self.run}"

    @property
    def grid(self) -> Tensor:  # [K, 2, oH, oW]
        """The sampling points of an ordinary convolution."""
        out, like = self.weight.shape[1:], self.offset
        grid = sampling_points(None, self.kernel_size, out, self.stride, self.padding, self.dilation, like)
        return grid[0, 0]

    @property
    def points(self) -> Tensor:  # [K, 2, oH, oW]
        """The sampling points of this layer."""
        return self.grid + self.offset


@dataclasses.dataclass(frozen=True)
class Frame:
    """The size of a model's input, and the scale of the picture that was resized to it.

    Attributes:
        size: (H, W) of the input, with padding at right and bottom.
        scale: (y, x): pixels of the picture for each pixel of the input.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "Frame":
        """Read the frame from the meta information of a sample of MMDetection."""
        across, down = meta.get("scale_factor", (1.0, 1.0))
        return cls(_pair(meta.get("batch_input_shape", meta["img_shape"])), (1 / down, 1 / across))

    def to_input(self, points: Tensor) -> Tensor:
        """Convert points [M, 2], (y, x), from pixels of the picture; integers are centres of pixels."""
        return (points + 0.5) / torch.tensor(self.scale) - 0.5

    def to_picture(self, points: Tensor) -> Tensor:
        return (points + 0.5) * torch.tensor(self.scale) - 0.5


class Box(NamedTuple):
    """A region of the image, in pixels; a point is a box without extent."""

    x1: float
    y1: float
    x2: float
    y2: float

    def require_inside(self, height: int, width: int, name: str = "box") -> None:
        """Raise UserError, with the name of the argument, unless the box is inside an image of this size."""
        if not (0 <= self.x1 <= self.x2 < width and 0 <= self.y1 <= self.y2 < height):
            is_point = name == "at"
            got = ",".join(f"{value:g}" for value in self[: 2 if is_point else 4])
            expected = "a point" if is_point else "the upper left and the lower right corner,"
            area = f"from 0,0 to {width - 1},{height - 1}"
            raise UserError(f"{name}: expected {expected} {area}, got {got}")


@contextmanager
def record_sampling(model: nn.Module) -> Iterator[list[SamplingField]]:
    """Collect a field from every deformable layer that runs inside the block, in order of execution.

    A deformable layer is one of dcnzoo's 2-D packs (except transposed ones, which write instead of sampling),
    ``DCNv3`` or ``DCNv4`` on maps, an extractor of ViT-Adapter (its map of stride 8), or a module with a
    convolution named ``conv_offset`` (mmcv's packs). The output of that convolution is the offsets (v1), or
    has three equal parts: the first two are the offsets, the third is the mask before the sigmoid (v2).
    """
    fields: list[SamplingField] = []
    handles: list[RemovableHandle] = []
    layer: Any
    for name, layer in model.named_modules():
        if isinstance(layer, DCNv3 | DCNv4):
            handles += _record_deform_attn(name, layer, fields)
        elif isinstance(layer, Extractor):
            handles.append(layer.register_forward_hook(partial(_record_extractor, name, fields)))
        elif isinstance(getattr(layer, "conv_offset", None), nn.Module):
            is_ours = tracks_offsets(layer)
            if not is_ours or (len(layer.kernel_size) == 2 and not layer.transposed):
                hooked = layer if is_ours else layer.conv_offset
                handles.append(hooked.register_forward_hook(_recorder(name, layer, fields)))
    try:
        yield fields
    finally:
        for handle in handles:
            handle.remove()


def nearest_output(field: SamplingField, points: Tensor, image_size: tuple[float, float]) -> Tensor:
    """Return the output locations of a layer that are closest to points of the image.

    Args:
        points: [M, 2], (y, x) in pixels of the image.
        image_size: (H, W) of the model's input.

    Returns:
        [M, 2], int64, (y, x)
    """
    out = torch.tensor(field.weight.shape[-2:])
    # convolutions with symmetric padding are centred on pixel i · stride
    index = (points * out / torch.tensor(image_size)).round().long()
    return index.clamp(torch.zeros_like(out), out - 1)


def output_window(field: SamplingField, box: Box, frame: Frame) -> tuple[slice, slice]:
    """Return the rows and columns of a layer's output that are closest to the box."""
    corners = torch.tensor([[box.y1, box.x1], [box.y2, box.x2]])
    outputs = nearest_output(field, frame.to_input(corners), frame.size)
    (top, left), (bottom, right) = outputs.tolist()
    return slice(top, bottom + 1), slice(left, right + 1)


def points_of(field: SamplingField, box: Box, frame: Frame) -> tuple[Tensor, Tensor]:
    """Return the sampling points of the outputs in a box, for at most eight rows and columns of it.

    Returns:
        points  # [M, 2], (y, x) in pixels of the image
        weight  # [M], the modulation
    """
    y, x = (
        torch.linspace(w.start, w.stop - 1, min(_MOST_PER_AXIS, w.stop - w.start)).round().long()
        for w in output_window(field, box, frame)
    )
    points = field.points[:, :, y[:, None], x].permute(2, 3, 0, 1).reshape(-1, 2)  # [rows · columns · K, 2]
    points = frame.to_picture(points * torch.tensor(frame.size) / torch.tensor(field.input_size))
    return points, field.weight[:, y[:, None], x].permute(1, 2, 0).flatten()


def grid_of_points(field: SamplingField, shape: tuple[int, int], frame: Frame, number: int) -> list[Box]:
    """Return about ``number`` positions of a layer's output, in a grid, as points in an image of a shape."""
    if not number:
        return []
    rows = max(1, round((number * shape[0] / shape[1]) ** 0.5))
    counts = rows, max(1, number // rows)
    y, x = ((torch.arange(count) + 0.5) * size / count for count, size in zip(counts, shape, strict=True))
    at = frame.to_input(torch.cartesian_prod(y, x))
    outputs = nearest_output(field, at, frame.size).unique(dim=0)
    points = frame.to_picture(outputs * torch.tensor(frame.size) / torch.tensor(field.weight.shape[-2:]))
    return [Box(x, y, x, y) for y, x in points.tolist()]


def _add(fields: list[SamplingField], field: SamplingField) -> None:
    """Append a field with the number of its layer's run."""
    run = 1 + sum(other.name == field.name for other in fields)
    fields.append(dataclasses.replace(field, run=run))


def _recorder(name: str, layer: Any, fields: list[SamplingField]) -> Callable:
    @torch.no_grad()
    def record(hooked: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        taps = math.prod(_pair(layer.kernel_size))
        if hooked is layer:
            offset, mask = layer.predict(inputs[0])
        else:
            channels = 2 * taps * getattr(layer, "deform_groups", 1)
            offset, mask = output[:, :channels], output[:, channels:].sigmoid()
        is_v2 = mask is not None and mask.shape[1] > 0
        weight = mask[0, :taps] if is_v2 else torch.ones(taps, *output.shape[-2:])
        field = SamplingField(
            name,
            offset[0, : 2 * taps].unflatten(0, (taps, 2)).float().cpu(),
            weight.float().cpu(),
            _pair(layer.kernel_size),
            _pair(layer.stride),
            _pair(layer.padding),
            _pair(layer.dilation),
            input_size=_pair(inputs[0].shape[-2:]),
        )
        _add(fields, field)

    return record


def _record_deform_attn(
    name: str, layer: DCNv3 | DCNv4, fields: list[SamplingField]
) -> list[RemovableHandle]:
    """Register hooks that add a field with the taps in the order of a convolution.

    The offsets include the shift from a convolution's taps to the taps scaled by ``offset_scale``. A centre
    that ``remove_center`` removes has weight zero.
    """
    predictors = [layer.offset, layer.mask] if isinstance(layer, DCNv3) else [layer.offset_mask]
    predicted: dict[nn.Module, Tensor] = {}  # of the first image, [oH, oW, channels]
    taps = layer.taps // layer.group
    kernel, stride, padding, dilation = (
        _pair(number) for number in (layer.kernel_size, layer.stride, layer.pad, layer.dilation)
    )
    centre = layer.kernel_size**2 // 2
    kept = [tap for tap in range(layer.kernel_size**2) if not (layer.remove_center and tap == centre)]

    def keep(predictor: nn.Module, _: object, output: Tensor) -> None:
        predicted[predictor] = output[0].detach().float()

    def by_row(taps: Tensor) -> Tensor:  # [oH, oW, K, …], column by column -> [K, …, oH, oW]
        square = taps.unflatten(2, (layer.kernel_size, layer.kernel_size)).transpose(2, 3)
        return square.flatten(2, 3).permute(*range(2, taps.dim()), 0, 1).cpu().contiguous()

    @torch.no_grad()
    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].dim() != 4:
            return  # a sequence
        # of the first group
        if isinstance(layer, DCNv3):
            offset = predicted[layer.offset][..., : 2 * taps]
            weight = predicted[layer.mask][..., :taps].softmax(-1)
        else:
            both = predicted[layer.offset_mask]
            offset, weight = both[..., : 2 * taps], both[..., 2 * taps : 3 * taps]
        out = offset.shape[:2]
        points = deform_attn_points(
            out, kernel, stride, padding, dilation, layer.offset_scale, False, offset
        )[:, :, 0]
        points[:, :, kept] += offset.unflatten(-1, (taps, 2)) * layer.offset_scale  # [oH, oW, K, 2], (x, y)
        weights = torch.zeros_like(points[..., 0])
        weights[..., kept] = weight
        points, size = by_row(points.flip(-1)), _pair(inputs[0].shape[1:3])
        field = SamplingField(
            name, torch.zeros_like(points), by_row(weights), kernel, stride, padding, dilation, size
        )
        _add(fields, dataclasses.replace(field, offset=points - field.grid))

    return [*(each.register_forward_hook(keep) for each in predictors), layer.register_forward_hook(record)]


@torch.no_grad()
def _record_extractor(
    name: str, fields: list[SamplingField], layer: Extractor, inputs: tuple, output: Tensor
) -> None:
    """Add a field whose kernel has a row of points for each head, in pixels of the ViT's map."""
    query, _, (reference, shapes), sizes = inputs
    attention, (height, width) = layer.attn, sizes[0]
    heads, points = attention.num_heads, attention.num_points
    query = layer.query_norm(query[:1, : height * width])
    shift = attention.sampling_offsets(query).float().unflatten(-1, (heads * points, 2))[0]  # [Q, K, 2]
    weight = attention.attention_weights(query).float().unflatten(-1, (heads, points)).softmax(-1)[0]
    extent = shapes[0].flip(-1)
    at = reference[0, : height * width] * extent - 0.5 + shift  # [Q, K, 2], (x, y)
    at = at.flip(-1).permute(1, 2, 0).unflatten(2, (height, width)).cpu()
    weight = weight.flatten(1).T.unflatten(1, (height, width)).cpu()
    field = SamplingField(
        name, torch.zeros_like(at), weight, (heads, points), (1, 1), (0, 0), (1, 1), _pair(shapes[0].tolist())
    )
    _add(fields, dataclasses.replace(field, offset=at - field.grid))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
