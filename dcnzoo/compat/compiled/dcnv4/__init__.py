"""The package ``DCNv4`` (FlashInternImage). Its files and their names are those of the original."""

from .functions import DCNv4Function as DCNv4Function
from .functions import FlashDeformAttnFunction as FlashDeformAttnFunction
from .modules import DCNv4 as DCNv4
from .modules import FlashDeformAttn as FlashDeformAttn
