"""Compiled modules of deformable convolution v1 and v2 with mmcv's early signatures."""

from dcnzoo.compat.host import Evidence, Host

V1 = ("forward", "backward_input", "backward_parameters")
V2 = ("forward", "backward")
FUNCTIONS = ("deform_conv", "modulated_deform_conv")
HOSTS = (
    Host(
        "deform_conv_ext",
        {
            "BasicSR": Evidence(
                "8d56e3a045f9fb3e1d8872f92ee4a4f07f886b0a", "2026-11-26", "deformable layers"
            ),
            "EDVR": Evidence("b02e63a0fc5854cad7b11a87f74601612e356eff", "2026-11-26"),
        },
        ("dcnzoo.compat.compiled",),
        imports=("deform_conv_ext", "*.deform_conv_ext"),
        functions=FUNCTIONS,
    ),
    Host(
        "deform_conv_cuda",
        {
            "STDF": Evidence("8bedc89e840117f2634cf5183a7eb9441c302360", "2026-11-26"),
            "AlphaPose": Evidence("c60106d19afb443e964df6f06ed1842962f5f1f7", "2026-11-26"),
            "SOLO": Evidence("f4cd03b9404e3bd84ca0be45966fb61d20d2efe6", "2026-11-26", "backbone and head"),
        },
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
