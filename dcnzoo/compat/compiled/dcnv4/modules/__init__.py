from .dcnv4 import DCNv4 as DCNv4
from .flash_deform_attn import FlashDeformAttn as FlashDeformAttn
