# same arguments, parameters and results; only the kernels differ
from dcnzoo.compat.deformable_detr import MSDeformAttn as FlashDeformAttn  # noqa: F401
