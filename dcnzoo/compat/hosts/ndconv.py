"""The compiled module of "Pytorch-Implmentation-of-Deformable-Convolution-Nd"."""

from dcnzoo.compat.host import Evidence, Host

HOSTS = (
    Host(
        "custom_op",
        {
            "the N-d op": Evidence(
                "bb3c8943c02efd4eeffcd00045ea86d3951cccc2", "2026-11-26", "2-d and 3-d layers"
            )
        },
        ("dcnzoo.compat.custom_op",),
        missing="the version with 13 arguments",
    ),
)
