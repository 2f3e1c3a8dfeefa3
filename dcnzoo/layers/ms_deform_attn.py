"""Multi-scale deformable attention as a layer, with the official parameter names and initial values."""

import math

import torch
from torch import Tensor, nn

from dcnzoo.layers.base import call_as_leaf, integer, refuse
from dcnzoo.layers.offsets import OffsetLinear
from dcnzoo.layers.statistics import record_modulation, record_shifts
from dcnzoo.ops import ms_deform_attn
from dcnzoo.ops.deform_attn import level_starts
from dcnzoo.ops.tracing import can_read, exporting


class MultiScaleDeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, Zhu et al. 2021, eq. 3).

    Each query predicts, per head and level, offsets from its reference point (``sampling_offsets``) and
    attention weights, a softmax over the points of all levels (``attention_weights``).
    :func:`dcnzoo.ops.ms_deform_attn` runs between two linear projections (``value_proj``, ``output_proj``).
    Checkpoints of the official ``MSDeformAttn`` and of mmcv load unchanged.

    Args:
        embed_dims: channels of the queries, of ``value`` and of the output.
        num_heads: number of heads, a divisor of the projected channels.
        num_levels: number of levels of the pyramid.
        num_points: number of points per head and level.
        value_proj_ratio: ratio of the projected channels to ``embed_dims``.

    The initial offsets are the official ones and do not depend on the query: each head has its own direction,
    along which its points are one pixel apart. All points start with the same weight.

    Raises:
        ValueError: an argument is invalid.
        RuntimeError: an input is invalid.
    """

    __call__ = call_as_leaf
    track_offsets = False

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        value_proj_ratio: float = 1.0,
    ) -> None:
        nn.Module.__init__(self)  # not super(): the layer in OpenMMLab's registry also derives from mmcv's
        embed_dims, num_heads = integer(self, "embed_dims", embed_dims), integer(self, "num_heads", num_heads)
        num_levels = integer(self, "num_levels", num_levels)
        num_points = integer(self, "num_points", num_points)
        channels = int(embed_dims * value_proj_ratio)
        if channels < 1 or channels % num_heads:
            refuse(self, "num_heads", f"a divisor of the {channels} channels of value_proj", num_heads)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = OffsetLinear(embed_dims, points * 2)
        # draws the numbers that the official layer draws: the same seed gives the same network
        nn.Linear.reset_parameters(self.sampling_offsets)
        self.attention_weights = nn.Linear(embed_dims, points)
        self.value_proj = nn.Linear(embed_dims, channels)
        self.output_proj = nn.Linear(channels, embed_dims)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the official initial values."""
        angles = torch.arange(self.num_heads, device="cpu") * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)  # [heads, 2], (x, y)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto a square
        steps = torch.arange(1, self.num_points + 1, device="cpu")
        rays = (directions[:, None, None] * steps[:, None]).expand(-1, self.num_levels, -1, -1)
        self.sampling_offsets.start = rays.flatten().tolist()
        self.sampling_offsets.reset_parameters()
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def _reset_parameters(self) -> None:  # the official name, which networks call
        self.reset_parameters()

    def init_weights(self) -> None:
        """Set the official initial values again, after an OpenMMLab parent has initialised every Linear."""
        self.reset_parameters()

    def forward(
        self,
        query: Tensor,  # [N, Q, C]
        reference_points: Tensor,  # [N, Q, L, 2], (x, y), or [N, Q, L, 4], with (width, height)
        value: Tensor,  # [N, S, C]
        spatial_shapes: Tensor,  # [L, 2], (height, width)
        level_start_index: Tensor | None = None,  # [L]
        key_padding_mask: Tensor | None = None,  # [N, S], True: reads as zero
    ) -> Tensor:  # [N, Q, C]
        """Compute the same as the official layer, with the same order of arguments.

        Args:
            query: ``(N, Q, embed_dims)``, including the positional encoding.
            reference_points: normalised to the level's size; (0, 0) is the level's upper left corner. Offsets
                from a point are in pixels, offsets from a box in units of ``box size / (2 · num_points)``.
                The first three axes may have size 1, which is broadcast.
            value: ``(N, S, embed_dims)``, the pixels of all levels, one level after the other.
            spatial_shapes: the levels' (height, width), int64.
            level_start_index: index in S of each level's first pixel. Default: the levels are adjacent.
            key_padding_mask: bool; pixels that are True read as zero. A batch of 1 is broadcast.
        """
        self._check(query, reference_points, value, spatial_shapes, key_padding_mask)
        if level_start_index is None:
            level_start_index = level_starts(spatial_shapes)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        # Keep coordinates in float32 at least: bfloat16 has no value between 0.996 and 1.
        exact = torch.promote_types(value.dtype, torch.float32)
        shift = self.sampling_offsets(query).to(exact).unflatten(-1, (self.num_heads, -1))
        locations = self._locations(reference_points.to(exact), shift, spatial_shapes)
        weights = self.attention_weights(query).to(exact).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        record_modulation(self, weights)
        x = self._attend(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            level_start_index,
            locations,
            weights.unflatten(-1, (self.num_levels, self.num_points)),
        )
        return self.output_proj(x)

    def _locations(
        self,
        reference: Tensor,  # [N, Q, L, 2 or 4]
        shift: Tensor,  # [N, Q, heads, L · points · 2]
        shapes: Tensor,
    ) -> Tensor:  # [N, Q, heads, L, points, 2]
        """Return the normalised sampling locations, computed for all levels and points at once."""
        sizes = (self.num_levels, self.num_points, 2)
        reference = reference[:, :, None, :, None]  # [N, Q, 1, L, 1, 2 or 4]
        extent = shapes.flip(-1)[:, None].to(shift.dtype)  # [L, 1, 2], (width, height)
        centre = reference[..., :2]
        size = None if reference.shape[-1] == 2 else reference[..., 2:]
        if self.track_offsets:
            unit = 1 if size is None else size * extent * (0.5 / self.num_points)  # in pixels
            record_shifts(self, centre * extent - 0.5, shift.unflatten(-1, sizes) * unit, extent.unbind(-1))

        def flat(vectors: Tensor) -> Tensor:
            return vectors.expand(*vectors.shape[:-3], *sizes).flatten(-3)

        # mmcv's order of operations, so that the results are bitwise the same
        if size is None and exporting():  # torch's older exporter to ONNX has no addcdiv
            locations = flat(centre) + shift / flat(extent)
        elif size is None:
            locations = torch.addcdiv(flat(centre), shift, flat(extent))
        else:
            locations = flat(centre) + shift / self.num_points * flat(size) * 0.5
        return locations.unflatten(-1, sizes)

    def _attend(
        self, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
    ) -> Tensor:
        return ms_deform_attn(value, shapes, starts, locations, weights)

    def _check(
        self, query: Tensor, reference_points: Tensor, value: Tensor, shapes: Tensor, mask: Tensor | None
    ) -> None:
        for name, tensor, length in (("query", query, "Q"), ("value", value, "S")):
            if tensor.dim() != 3 or tensor.shape[2] != self.embed_dims:
                expected = f"(N, {length}, {self.embed_dims})"
                refuse(self, name, expected, tuple(tensor.shape), RuntimeError)
        batch, queries, pixels = query.shape[0], query.shape[1], value.shape[1]
        if value.shape[0] != batch:
            refuse(self, "value", f"batch {batch} like query", value.shape[0], RuntimeError)
        sizes = (batch, queries, self.num_levels)
        shape = tuple(reference_points.shape)
        if (
            len(shape) != 4
            or shape[3] not in (2, 4)
            or any(n not in (1, size) for n, size in zip(shape, sizes, strict=False))
        ):
            expected = f"({batch}, {queries}, {self.num_levels}, 2 or 4), N, Q and L like query and levels"
            refuse(self, "reference_points", expected, shape, RuntimeError)
        if not isinstance(shapes, Tensor):
            refuse(self, "spatial_shapes", "a tensor", type(shapes).__name__, RuntimeError)
        if tuple(shapes.shape) != (self.num_levels, 2):
            expected = f"({self.num_levels}, 2), (height, width) of {self.num_levels} levels"
            refuse(self, "spatial_shapes", expected, tuple(shapes.shape), RuntimeError)
        if shapes.device.type == "cpu":  # on a GPU, reading the values would stall the device
            self._check_pixels(shapes, pixels)
        fits = ((batch, pixels), (1, pixels))
        if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) not in fits):
            got = f"{mask.dtype} of {tuple(mask.shape)}"
            refuse(self, "key_padding_mask", f"torch.bool of ({batch}, {pixels})", got, RuntimeError)

    def _check_pixels(self, shapes: Tensor, pixels: int) -> None:
        if can_read(shapes):
            total = int(shapes.prod(1).sum())
            if total != pixels:
                text = f"{total} pixels for levels of {', '.join(f'{h}×{w}' for h, w in shapes.tolist())}"
                refuse(self, "value", text, pixels, RuntimeError)
        elif torch.compiler.is_compiling() and not exporting():
            message = f"{type(self).__name__}: value: expected the pixels of spatial_shapes"
            torch._assert_async(shapes.prod(1).sum() == pixels, message)

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dims}, num_heads={self.num_heads}, num_levels={self.num_levels}, "
            f"num_points={self.num_points}"
        )
