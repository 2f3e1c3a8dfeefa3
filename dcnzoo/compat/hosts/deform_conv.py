"""Compiled modules of deformable convolution v1 and v2 with mmcv's early signatures."""

from dcnzoo.compat.host import RUN, Host

V1 = ("forward", "backward_input", "backward_parameters")
V2 = ("forward", "backward")
FUNCTIONS = ("deform_conv", "modulated_deform_conv")
HOSTS = (
    Host(
        "deform_conv_ext",
        {"BasicSR": RUN, "EDVR": RUN},
        ("dcnzoo.compat.compiled",),
        imports=("deform_conv_ext", "*.deform_conv_ext"),
        functions=FUNCTIONS,
    ),
    Host(
        "deform_conv_cuda",
        {"EDVR (earlier)": "", "STDF": RUN, "AlphaPose": RUN, "SOLO": ""},
        ("dcnzoo.compat.compiled",),
        names={
            **{f"deform_conv_{name}_cuda": f"deform_conv_{name}" for name in V1},
            **{f"modulated_deform_conv_cuda_{name}": f"modulated_deform_conv_{name}" for name in V2},
        },
        imports=("deform_conv_cuda", "*.deform_conv_cuda", "deform_pool_cuda", "*.deform_pool_cuda"),
        functions=FUNCTIONS,
        missing="deformable PSRoI pooling",
    ),
)
