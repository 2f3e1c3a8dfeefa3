from dcnzoo.compat.compiled.dcnv4.ext import dcnv4_forward


class DCNv4Function:
    apply = staticmethod(dcnv4_forward)  # has gradients; without the numbers behind ``remove_center``
