from dcnzoo.compat.compiled.dcnv4.ext import flash_deform_attn_forward


class FlashDeformAttnFunction:
    apply = staticmethod(flash_deform_attn_forward)  # has gradients
