"""The compiled module of "Pytorch-Implmentation-of-Deformable-Convolution-Nd"."""

from dcnzoo.compat.host import Host

HOSTS = (
    Host(
        "custom_op", {"the N-d op": ""}, ("dcnzoo.compat.custom_op",), missing="the version with 13 arguments"
    ),
)
