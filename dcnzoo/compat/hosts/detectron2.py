"""detectron2's compiled module."""

from dcnzoo.compat.host import RUN, Host

HOSTS = (
    Host(
        "detectron2._C",
        {"detectron2": RUN, "CenterNet2": RUN},
        ("dcnzoo.compat.compiled", "dcnzoo.compat.detectron2_rotated"),
        names={
            "deform_conv_backward_filter": "deform_conv_backward_parameters",
            "get_cuda_version": "get_compiler_version",
        },
        functions=("deform_conv", "modulated_deform_conv", "COCOeval_opt"),
        missing="the fast COCO evaluation (pycocotools evaluates instead)",
    ),
)
