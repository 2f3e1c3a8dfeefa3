"""detectron2's compiled module."""

from dcnzoo.compat.host import Evidence, Host

HOSTS = (
    Host(
        "detectron2._C",
        {
            "detectron2": Evidence(
                "02b5c4e295e990042a714712c21dc79b731e8833", "2026-11-26", "losses of Mask R-CNN"
            ),
            "CenterNet2": Evidence("bfc8b72e4e2a1612b4aa4c12f7b3db9cdd7b34c4", "2026-11-26", "losses"),
        },
        ("dcnzoo.compat.compiled",),
        names={
            "deform_conv_backward_filter": "deform_conv_backward_parameters",
            "get_cuda_version": "get_compiler_version",
        },
        functions=("deform_conv", "modulated_deform_conv", "COCOeval_opt"),
        missing="rotated boxes, the fast COCO evaluation (pycocotools evaluates instead)",
    ),
)
