"""``detrex._C``, the compiled module of detrex, which has the functions of two others."""

from dcnzoo.compat.compiled.attention import ms_deform_attn_backward, ms_deform_attn_forward
from dcnzoo.compat.compiled.dcnv3 import dcnv3_backward, dcnv3_forward

__all__ = ["dcnv3_backward", "dcnv3_forward", "ms_deform_attn_backward", "ms_deform_attn_forward"]
