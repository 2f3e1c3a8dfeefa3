"""InternImage and FlashInternImage: backbones with a deformable operator in every block.

Both have the same structure. InternImage (Wang et al. 2023) uses DCNv3, FlashInternImage (Xiong et al. 2024)
uses DCNv4. Parameter names are those of the official releases, so their checkpoints load unchanged.
"""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcnzoo.backbones.classifier import Classifier
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.layers.base import refuse
from dcnzoo.layers.channels_last import build_activation, build_norm


class DropPath(nn.Module):
    """Stochastic depth: in training, set a sample's branch to zero with probability ``drop_prob``."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        shape = (x.shape[0], *[1] * (x.dim() - 1))
        # at least float32: bfloat16 would round some numbers below 1 to 1
        numbers = torch.rand(shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return x / (1 - self.drop_prob) * (numbers >= self.drop_prob)


class Stem(nn.Module):
    """Two convolutions of stride 2: ``(N, in_chans, H, W)`` to ``(N, H/4, W/4, channels)``."""

    def __init__(self, in_chans: int, channels: int, act_layer: str, norm_layer: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, channels // 2, 3, stride=2, padding=1)
        self.norm1 = build_norm(norm_layer, channels // 2, first_in=True, first_out=True)
        self.act = build_activation(act_layer)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = build_norm(norm_layer, channels, first_in=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class Downsample(nn.Module):
    """Halves the height and width of a channels-last map and doubles its channels."""

    def __init__(self, channels: int, norm_layer: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = build_norm(norm_layer, 2 * channels, first_in=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)))


class MLP(nn.Module):
    def __init__(self, channels: int, hidden: int, act_layer: str, drop: float, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = build_activation(act_layer)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(nn.Module):
    """``x + dcn(x)``, then ``x + mlp(x)``, with norms before, after (``post_norm``) or both
    (``res_post_norm``), and a learnt factor per channel (``layer_scale``).
    """

    def __init__(
        self,
        dcn: nn.Module,
        channels: int,
        mlp: nn.Module,
        drop_path: float,
        post_norm: bool,
        res_post_norm: bool,
        layer_scale: float | None,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.norm1 = build_norm("LN", channels)
        self.dcn = dcn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = build_norm("LN", channels)
        self.mlp = mlp
        if layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((channels,), float(layer_scale)))
            self.gamma2 = nn.Parameter(torch.full((channels,), float(layer_scale)))
        if res_post_norm:
            self.res_post_norm1 = build_norm("LN", channels)
            self.res_post_norm2 = build_norm("LN", channels)
        self.post_norm = post_norm
        self.res_post_norm = res_post_norm
        self.layer_scale = layer_scale is not None
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        for branch, number in ((self.dcn, 1), (self.mlp, 2)):
            norm = getattr(self, f"norm{number}")
            y = norm(branch(x)) if self.post_norm else branch(norm(x))
            if self.res_post_norm:
                y = getattr(self, f"res_post_norm{number}")(y)
            if self.layer_scale:
                y = getattr(self, f"gamma{number}") * y
            x = x + self.drop_path(y)
        return x


class Level(nn.Module):
    """The blocks of one resolution, the norm after them, and the downsampling to the next level."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        channels: int,
        norm: bool,
        post_norm_block_ids: Sequence[int],
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = build_norm("LN", channels) if norm else nn.Identity()
        self.post_norm_block_ids = list(post_norm_block_ids)
        if post_norm_block_ids:
            self.post_norms = nn.ModuleList(build_norm("LN", channels) for _ in post_norm_block_ids)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.post_norm_block_ids:
                x = self.post_norms[self.post_norm_block_ids.index(i)](x)
        return self.norm(x)


class InternImage(Classifier):
    """InternImage, on DCNv3. The published sizes are functions: :func:`dcnzoo.backbones.internimage_t`.

    Args:
        core_op: ``'DCNv3'`` or None; accepted because the official configs set it.
        channels: number of channels of the first level. Each further level has twice as many.
        depths, groups: number of blocks, and number of the operator's channel groups, on each level.
        mlp_ratio: hidden channels of the MLP, as a multiple of the level's channels.
        drop_rate: rate of the dropout after the stem and in the MLPs.
        drop_path_rate: rate of stochastic depth. It grows from zero in the first block to this value in the
            last, or is the same in all blocks with ``drop_path_type='uniform'``.
        act_layer, norm_layer: as in :class:`dcnzoo.layers.DCNv3`; also used in the stem and between levels.
        layer_scale: initial value of a learnt factor per channel and branch. None: no such factor.
        offset_scale: scales the operator's kernel and offsets.
        post_norm: norms after the branches instead of before them.
        with_cp: recompute each block's activations in the backward pass: less memory, more time.
        dw_kernel_size, center_feature_scale: arguments of the operator, for InternImage-H and -G.
        res_post_norm: norms before **and** after the branches, for InternImage-H.
        level2_post_norm, level2_post_norm_block_ids: norms after these blocks of the third level, for
            InternImage-H and -G.
        out_indices: levels whose maps are returned. Without ``num_classes``, the levels behind the last one
            are not built. A state dict that has them loads, with a warning.
        frozen_stages: -1: train everything. 0: freeze the stem. n: also freeze the first n levels.
        num_classes: number of classes of the official classifier. None: no head.
        cls_scale: input channels of the head's last layer, as a multiple of the last level's channels.
            None: 1.5.
        use_clip_projector: the head of InternImage-H and -G: attention over the last two levels.
        in_chans: number of channels of the image.

    Returns:
        a tuple of maps ``(N, channels · 2^i, H / 2^(i+2), W / 2^(i+2))``; with ``num_classes``, logits
        ``(N, num_classes)``.

    Raises:
        ValueError: an argument is invalid, or arguments contradict each other.
    """

    operator: ClassVar[type[DCNv3 | DCNv4]] = DCNv3
    mlp_fc2_bias = True  # FlashInternImage has an argument for it

    def __init__(
        self,
        core_op: str | None = None,
        channels: int = 64,
        depths: Sequence[int] = (4, 4, 18, 4),
        groups: Sequence[int] = (4, 8, 16, 32),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        drop_path_type: str = "linear",
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        layer_scale: float | None = None,
        offset_scale: float = 1.0,
        post_norm: bool = False,
        with_cp: bool = False,
        dw_kernel_size: int | None = None,
        level2_post_norm: bool = False,
        level2_post_norm_block_ids: Sequence[int] | None = None,
        res_post_norm: bool = False,
        center_feature_scale: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        num_classes: int | None = None,
        cls_scale: float | None = None,
        use_clip_projector: bool = False,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        levels = len(depths)
        if core_op not in (None, self.operator.__name__):
            refuse(self, "core_op", repr(self.operator.__name__), repr(core_op))
        if len(groups) != levels:
            refuse(self, "groups", f"{levels}, one for each of the depths", tuple(groups))
        if not out_indices or not all(0 <= i < levels for i in out_indices):
            refuse(self, "out_indices", f"numbers from 0 to {levels - 1}", tuple(out_indices))
        if not -1 <= frozen_stages <= levels:
            refuse(self, "frozen_stages", f"-1 to {levels}", frozen_stages)
        if not 0 <= drop_path_rate < 1:
            refuse(self, "drop_path_rate", "at least 0 and below 1", drop_path_rate)
        if drop_path_type not in ("linear", "uniform"):
            refuse(self, "drop_path_type", "'linear' or 'uniform'", repr(drop_path_type))
        if res_post_norm and (post_norm or layer_scale is not None):
            refuse(self, "res_post_norm", "False with post_norm or layer_scale", res_post_norm)
        extra_norms = list(level2_post_norm_block_ids or ())
        self._check_extra_norms(level2_post_norm, extra_norms, depths[2] if levels > 2 else 0)
        if cls_scale is not None and (num_classes is None or use_clip_projector):
            refuse(self, "cls_scale", "None without num_classes or with use_clip_projector", cls_scale)
        self.depths = tuple(depths)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.in_chans = in_chans
        self.patch_embed = Stem(in_chans, channels, act_layer, norm_layer)
        self.pos_drop = nn.Dropout(drop_rate)

        first = 0.0 if drop_path_type == "linear" else drop_path_rate
        drop_paths = iter(torch.linspace(first, drop_path_rate, sum(depths), device="cpu").tolist())
        options: dict[str, Any] = dict(offset_scale=offset_scale, dw_kernel_size=dw_kernel_size)
        options.update(center_feature_scale=center_feature_scale, act_layer=act_layer, norm_layer=norm_layer)
        norms = (post_norm, res_post_norm, layer_scale)
        self.levels = nn.ModuleList()
        built = levels if num_classes is not None else max(out_indices) + 1
        for i, (depth, group) in enumerate(zip(depths[:built], groups, strict=False)):
            width, stack = channels * 2**i, []
            for _ in range(depth):
                dcn = self._operator(channels=width, group=group, **options)
                mlp = MLP(width, int(width * mlp_ratio), act_layer, drop_rate, bias=self.mlp_fc2_bias)
                stack.append(Block(dcn, width, mlp, next(drop_paths), *norms, with_cp))
            downsample = Downsample(width, norm_layer) if i < built - 1 else None
            extra = extra_norms if i == 2 else ()
            norm = not post_norm or center_feature_scale
            self.levels.append(Level(stack, width, norm, extra, downsample))
        self._add_head(
            num_classes, width, 1.5 if cls_scale is None else cls_scale, act_layer, use_clip_projector
        )
        self._reset_parameters()
        self._freeze()

    def _check_extra_norms(self, wanted: bool, block_ids: list[int], blocks: int) -> None:
        if block_ids and not wanted:
            refuse(self, "level2_post_norm_block_ids", "none without level2_post_norm", block_ids)
        if wanted and not block_ids:
            refuse(self, "level2_post_norm", "False without level2_post_norm_block_ids", wanted)
        if not all(0 <= i < blocks for i in block_ids):
            refuse(self, "level2_post_norm_block_ids", f"some of the {blocks} blocks of level 2", block_ids)

    def _operator(self, act_layer: str, norm_layer: str, **arguments: Any) -> nn.Module:
        return DCNv3(act_layer=act_layer, norm_layer=norm_layer, **arguments)

    def _reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, self.operator):
                module.reset_parameters()

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.patch_embed, *self.levels[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        last = len(self.levels) - 1
        left_out = [f"{prefix}levels.{i}." for i in range(last + 1, len(self.depths))]
        if left_out:
            left_out.append(f"{prefix}levels.{last}.downsample.")
        if unused := [key for key in state_dict if key.startswith(tuple(left_out))]:
            for key in unused:
                del state_dict[key]
            text = f"{len(unused)} values of levels behind the last of out_indices are not loaded"
            warnings.warn(f"{type(self).__name__}: {text}", stacklevel=2)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> "InternImage":
        super().train(mode)
        self._freeze()
        return self

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps ``(N, H, W, C)`` of all levels, finest first.

        Raises:
            RuntimeError: the shape of ``x`` is invalid.
        """
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            refuse(self, "x", f"(N, {self.in_chans}, H, W)", tuple(x.shape), RuntimeError)
        x = self.pos_drop(self.patch_embed(x))
        maps: list[Tensor] = []
        for i in range(len(self.levels)):
            if i:
                # mypy does not know the class of a ModuleList's items
                x = self.levels[i - 1].downsample(x)  # type: ignore[operator]
            x = self.levels[i](x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = self._maps(x)
        if self.num_classes is not None:
            return self.forward_head(self._merge_levels(maps))
        return tuple(maps[i].permute(0, 3, 1, 2).contiguous() for i in sorted(set(self.out_indices)))


class FlashInternImage(InternImage):
    """FlashInternImage, on DCNv4. The published sizes are functions, as for :class:`InternImage`.

    Args:
        core_op: ``'DCNv4'`` or None.
        offset_scale: scales the operator's kernel and offsets.
        mlp_fc2_bias, dcn_output_bias: whether the last layer of the MLP, or of the operator, has a bias.
        **options: other arguments of :class:`InternImage`.
    """

    operator = DCNv4

    def __init__(
        self,
        core_op: str | None = None,
        offset_scale: float = 0.5,
        mlp_fc2_bias: bool = False,
        dcn_output_bias: bool = False,
        **options: Any,
    ) -> None:
        self.mlp_fc2_bias = mlp_fc2_bias
        self.dcn_output_bias = dcn_output_bias
        super().__init__(core_op, offset_scale=offset_scale, **options)

    def _operator(self, act_layer: str, norm_layer: str, **arguments: Any) -> nn.Module:
        return DCNv4(**arguments, output_bias=self.dcn_output_bias)
