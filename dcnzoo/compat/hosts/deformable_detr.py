"""Deformable DETR's compiled module, which many projects copied, some of them under another name."""

from dcnzoo.compat.host import RUN, Host

PROVIDES = ("dcnzoo.compat.compiled",)
HOSTS = (
    Host(
        "MultiScaleDeformableAttention",
        {
            "Deformable DETR": RUN,
            "DINO": "",
            "Mask2Former": RUN,
            "MaskDINO": RUN,
            "MOTR": "",
            "TrackFormer": "",
        },
        PROVIDES,
    ),
    Host(
        "groundingdino._C",
        {"Grounding DINO": ""},
        PROVIDES,
        functions=("multi_scale_deformable_attn_pytorch",),
    ),
    Host(
        "adet._C",
        {"AdelaiDet (FCOS, BlendMask)": RUN, "DeepSolo": "", "TESTR": ""},
        PROVIDES,
        missing="`BezierAlign`, `DefROIAlign`, `ml_nms`",
    ),
    Host("detrex._C", {"detrex": RUN}, PROVIDES, functions=("multi_scale_deformable_attn_pytorch",)),
    Host(
        "MultiScaleDeformableAttnFunction",
        {"BEVFormer": "", "UniAD": ""},
        functions=(
            "MultiScaleDeformableAttnFunction_fp32",
            "MultiScaleDeformableAttnFunction_fp16",
            "multi_scale_deformable_attn_pytorch",
        ),
    ),
)
