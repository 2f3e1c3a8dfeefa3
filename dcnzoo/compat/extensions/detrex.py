"""The functions of ``detrex._C``: those of ``MultiScaleDeformableAttention`` and of ``DCNv3``."""

from __future__ import annotations

from dcnzoo.compat.extensions.dcnv3 import dcnv3_backward, dcnv3_forward
from dcnzoo.compat.extensions.missing import missing
from dcnzoo.compat.extensions.ms_deform_attn import ms_deform_attn_backward, ms_deform_attn_forward

__all__ = ["dcnv3_backward", "dcnv3_forward", "ms_deform_attn_backward", "ms_deform_attn_forward"]
__getattr__ = missing(__name__, __all__)
