"""The published sizes of InternImage and FlashInternImage."""

from collections.abc import Callable
from typing import Any

from dcnzoo.backbones.intern_image import FlashInternImage, InternImage

# The published sizes, as in the authors' ImageNet classifiers
T = dict(channels=64, depths=(4, 4, 18, 4), groups=(4, 8, 16, 32))
S = dict(channels=80, depths=(4, 4, 21, 4), groups=(5, 10, 20, 40), layer_scale=1e-5, post_norm=True)
B = dict(channels=112, depths=(4, 4, 21, 4), groups=(7, 14, 28, 56), layer_scale=1e-5, post_norm=True)
L = dict(channels=160, depths=(5, 5, 22, 5), groups=(10, 20, 40, 80), layer_scale=1e-5, post_norm=True)
XL = dict(channels=192, depths=(5, 5, 24, 5), groups=(12, 24, 48, 96), layer_scale=1e-5, post_norm=True)
H = dict(channels=320, depths=(6, 6, 32, 6), groups=(10, 20, 40, 80), res_post_norm=True)
G = dict(channels=512, depths=(2, 2, 48, 4), groups=(16, 32, 64, 128), post_norm=True)
LARGEST = dict(dw_kernel_size=5, center_feature_scale=True, level2_post_norm=True, use_clip_projector=True)
BIASES = dict(dcn_output_bias=True, mlp_fc2_bias=True)

SIZES: dict[str, tuple[type[InternImage], dict[str, Any]]] = {
    "internimage_t": (InternImage, T),
    "internimage_s": (InternImage, S),
    "internimage_b": (InternImage, B),
    "internimage_l": (InternImage, {**L, "offset_scale": 2.0}),
    "internimage_xl": (InternImage, {**XL, "offset_scale": 2.0}),
    "internimage_h": (InternImage, {**H, **LARGEST, "level2_post_norm_block_ids": (5, 11, 17, 23, 29)}),
    "internimage_g": (InternImage, {**G, **LARGEST, "level2_post_norm_block_ids": tuple(range(5, 48, 6))}),
    "flash_internimage_t": (FlashInternImage, {**T, "offset_scale": 1.0}),
    "flash_internimage_s": (FlashInternImage, {**S, "offset_scale": 1.0, "dw_kernel_size": 3}),
    "flash_internimage_b": (FlashInternImage, {**B, "offset_scale": 0.5, "dw_kernel_size": 3}),
    "flash_internimage_l": (FlashInternImage, {**L, **BIASES, "offset_scale": 2.0, "dw_kernel_size": 3}),
}


def function_of(name: str) -> Callable[..., InternImage]:
    network, published = SIZES[name]

    def build(**options: Any) -> InternImage:
        return network(**{"drop_path_rate": 0.0, **published, **options})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""Builds {network.__name__} in this published size, with random weights.

    Args:
        **options: arguments of :class:`{network.__name__}` that override the published values.
            ``num_classes=1000`` builds the official classifier, which can load the ImageNet checkpoints.
            Without ``num_classes``, the network returns the feature maps of its levels. The authors'
            detectors use ``layer_scale=1.0``, also in size T.
    """
    return build
