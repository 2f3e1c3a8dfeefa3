"""InternImage in timm's registry: ``import dcnzoo.compat.timm``, then ``timm.create_model``.

``internimage_{t,s,b,l,xl,h,g}`` and ``flash_internimage_{t,s,b,l}`` are those of :mod:`dcnzoo.backbones`.
``features_only``, ``num_classes``, ``in_chans``, ``drop_path_rate``, ``checkpoint_path`` and
``timm.optim``'s layer-wise learning rates work as with timm's own models. ``pretrained=True`` downloads the
authors' ImageNet weights.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dcnzoo import backbones
from dcnzoo.backbones.sizes import SIZES

__all__ = ["FlashInternImage", "InternImage"]


HEAD = ("conv_head", "dcnv3_head_x4", "dcnv3_head_x3", "clip_projector", "fc_norm", "head")


class InternImage(backbones.InternImage):
    """:class:`dcnzoo.backbones.InternImage` as a timm model."""

    if TYPE_CHECKING:
        levels: Any  # mypy does not know the classes of a ModuleList's items

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of each level."""
        return [
            dict(num_chs=level.blocks[0].dcn.channels, reduction=2 ** (i + 2), module=f"levels.{i}")
            for i, level in enumerate(self.levels)
        ]

    def forward_intermediates(
        self,
        x: Tensor,  # [N, in_chans, H, W]
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """timm's method: maps ``(N, C, H, W)`` of levels, or ``(the head's input, maps)``.

        ``norm`` has no effect, because the norm is part of a level. ``output_fmt`` must be ``'NCHW'``.

        Raises:
            ValueError: a level does not exist, or ``output_fmt`` has another value.
        """
        if output_fmt != "NCHW":
            self._refuse("output_fmt", "'NCHW'", repr(output_fmt))
        chosen = self._chosen(indices)
        maps = self._maps(x, max(chosen) + 1 if stop_early and intermediates_only else None)
        levels = [maps[i].permute(0, 3, 1, 2).contiguous() for i in chosen]
        return levels if intermediates_only else (self._merge_levels(maps), levels)

    def _chosen(self, indices: int | Sequence[int] | None) -> list[int]:
        levels = list(range(len(self.levels)))
        if indices is None:
            indices = levels
        elif isinstance(indices, int):
            indices = [-i for i in range(1, indices + 1)]
        if not indices or not all(-len(levels) <= i < len(levels) for i in indices):
            self._refuse("indices", f"levels from 0 to {levels[-1]}", indices)
        return sorted({levels[i] for i in indices})

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the levels after the last of ``indices``, and the head. Return the indices of the levels."""
        chosen = self._chosen(indices)
        self.levels = self.levels[: max(chosen) + 1]
        self.levels[-1].downsample = None
        if prune_head:
            for name in HEAD:
                self._modules.pop(name, None)
            self.num_classes = None
        return chosen

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer. ``global_pool`` must be ``'avg'`` or None."""
        if global_pool not in (None, "avg"):
            self._refuse("global_pool", "'avg'", repr(global_pool))
        super().reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass."""
        for level in self.levels:
            for block in level.blocks:
                block.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter groups for layer-wise learning rates: the stem, then the blocks in order."""
        merge = (99999,)  # timm's number for: merge with the previous group
        blocks = [
            (r"^levels\.(\d+)\.(?:blocks|post_norms)\.(\d+)", None),
            (r"^levels\.(\d+)\.(?:norm|downsample)", merge),
        ]
        return dict(stem=r"^patch_embed", blocks=r"^levels\.(\d+)" if coarse else blocks)


class FlashInternImage(InternImage, backbones.FlashInternImage):
    """:class:`dcnzoo.backbones.FlashInternImage` as a timm model."""


def _add_intern_image(name: str) -> None:
    family, published = SIZES[name]
    cls = InternImage if family is backbones.InternImage else FlashInternImage

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(
            cls,
            name,
            pretrained,
            pretrained_filter_fn=lambda state_dict, model: state_dict.get("model", state_dict),
            feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
            **{"drop_path_rate": 0.0, **published, **options},
        )

    build.__name__ = name
    register_model(build)


CHECKPOINTS = {  # the authors' ImageNet classifiers: repository on the Hub, file, image size
    "internimage_t.in1k": ("OpenGVLab/InternImage", "internimage_t_1k_224.pth", 224),
    "internimage_s.in1k": ("OpenGVLab/InternImage", "internimage_s_1k_224.pth", 224),
    "internimage_b.in1k": ("OpenGVLab/InternImage", "internimage_b_1k_224.pth", 224),
    "internimage_l.in22k_in1k": ("OpenGVLab/InternImage", "internimage_l_22kto1k_384.pth", 384),
    "internimage_xl.in22k_in1k": ("OpenGVLab/InternImage", "internimage_xl_22kto1k_384.pth", 384),
    "internimage_h.in22k_in1k": ("OpenGVLab/InternImage", "internimage_h_22kto1k_640.pth", 640),
    "internimage_g.in22k_in1k": ("OpenGVLab/InternImage", "internimage_g_22kto1k_512.pth", 512),
    "flash_internimage_t.in1k": ("OpenGVLab/DCNv4", "flash_intern_image_t_1k_224.pth", 224),
    "flash_internimage_s.in1k": ("OpenGVLab/DCNv4", "flash_intern_image_s_1k_224.pth", 224),
    "flash_internimage_b.in1k": ("OpenGVLab/DCNv4", "flash_intern_image_b_1k_224.pth", 224),
    "flash_internimage_l.in22k_in1k": ("OpenGVLab/DCNv4", "flash_internimage_l_22kto1k_384.pth", 384),
}
default_cfgs = generate_default_cfgs(
    {
        name: dict(
            hf_hub_id=repository,
            hf_hub_filename=file,
            input_size=(3, size, size),
            pool_size=(size // 32, size // 32),
            crop_pct=1.0,
            first_conv="patch_embed.conv1",
            classifier="head",
            license="mit",
        )
        for name, (repository, file, size) in CHECKPOINTS.items()
    }
)
for name in SIZES:
    _add_intern_image(name)
