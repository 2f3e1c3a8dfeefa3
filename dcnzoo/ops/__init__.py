"""The operators as functions. They need only torch. Their compiled kernels are in the folder ops/ of a clone.

A call passes, in this order, the function in ``deform_conv.py``, autocast and vmap in ``_transforms.py``, the
derivatives in ``_autograd.py``, and ``choose.py``, which chooses among the kernels: the libraries that
``_library.py`` loads, ``fused/``, ``_torchvision.py`` and ``reference.py``. All that torch is told about an
operator is in its record (``operator.py``), below its function; ``register.py`` registers it.
"""

from ._library import cpu_capability, has_ops, is_defined, problems, with_cuda

if is_defined():
    from .choose import explain
    from .deform_attn import dcnv3, dcnv4, flash_deform_attn, ms_deform_attn
    from .deform_conv import deform_conv1d, deform_conv2d, deform_conv3d
    from .deform_conv_transpose import (
        deform_conv_transpose1d,
        deform_conv_transpose2d,
        deform_conv_transpose3d,
    )
    from .deform_roi_pool import deform_roi_pool
    from .mask_softmax import mask_softmax1d, mask_softmax2d, mask_softmax3d
    from .nms import nms
    from .roi_align import roi_align, roi_align_rotated
    from .rotated_boxes import box_iou_rotated, nms_rotated
else:
    # On a broken installation has_ops() must still work; importing an operator raises the reason.
    def __getattr__(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"dcnzoo has no operators: {problems['cpu']}")


__all__ = [
    "box_iou_rotated",
    "cpu_capability",
    "dcnv3",
    "dcnv4",
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
    "deform_conv_transpose1d",
    "deform_conv_transpose2d",
    "deform_conv_transpose3d",
    "deform_roi_pool",
    "explain",
    "flash_deform_attn",
    "has_ops",
    "mask_softmax1d",
    "mask_softmax2d",
    "mask_softmax3d",
    "ms_deform_attn",
    "nms",
    "nms_rotated",
    "roi_align",
    "roi_align_rotated",
    "with_cuda",
]
