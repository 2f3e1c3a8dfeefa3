"""The operators as functions. They need only torch. The sources of their kernels are in ops/ of a clone.

A call passes, in this order, the function in ``deform_conv.py``, autocast and vmap in ``_transforms.py``, the
derivatives in ``_autograd.py``, and ``run.py``, which runs the kernel of its plan (``plans.py``). The table
in ``choose.py`` decides among the libraries that ``_library.py`` loads, ``fused/``, ``plain.py`` and
``reference.py``. The record of an operator (``operator.py``), below its function, has everything that
``register.py`` registers with torch.
"""

from ._library import cpu_capability as cpu_capability
from ._library import has_ops as has_ops
from ._library import is_defined, problems
from ._library import with_cuda as with_cuda

if is_defined():
    from .deform_attn import dcnv3 as dcnv3
    from .deform_attn import dcnv4 as dcnv4
    from .deform_attn import flash_deform_attn as flash_deform_attn
    from .deform_attn import ms_deform_attn as ms_deform_attn
    from .deform_conv import deform_conv1d as deform_conv1d
    from .deform_conv import deform_conv2d as deform_conv2d
    from .deform_conv import deform_conv3d as deform_conv3d
    from .deform_conv_transpose import deform_conv_transpose1d as deform_conv_transpose1d
    from .deform_conv_transpose import deform_conv_transpose2d as deform_conv_transpose2d
    from .deform_conv_transpose import deform_conv_transpose3d as deform_conv_transpose3d
    from .deform_roi_pool import deform_roi_pool as deform_roi_pool
    from .mask_softmax import mask_softmax1d as mask_softmax1d
    from .mask_softmax import mask_softmax2d as mask_softmax2d
    from .mask_softmax import mask_softmax3d as mask_softmax3d
    from .nms import nms as nms
    from .roi_align import roi_align as roi_align
else:
    # On a broken installation has_ops() must still work; importing an operator raises the reason.
    def __getattr__(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"dcnzoo has no operators: {problems['cpu']}")


__all__ = [
    n for n, v in vars().items() if "dcnzoo.ops" in getattr(v, "__module__", "") and v is not is_defined
]
