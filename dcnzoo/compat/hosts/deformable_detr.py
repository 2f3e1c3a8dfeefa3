"""Deformable DETR's compiled module, which many projects copied, some of them under another name."""

from dcnzoo.compat.host import Evidence, Host

EQUAL = "equal to its own PyTorch code"
COMPARED, BACKBONE, ENCODER = f"network, {EQUAL}", f"backbone, {EQUAL}", f"encoder, {EQUAL}"
PROVIDES = ("dcnzoo.compat.compiled",)
HOSTS = (
    Host(
        "MultiScaleDeformableAttention",
        {
            "Deformable DETR": Evidence("11169a60c33333af00a4849f1808023eba96a931", "2026-11-26", COMPARED),
            "DINO": Evidence("faa8520fe9604c23ad65a48bc583550a44c0e3ab", "2026-11-26", COMPARED),
            "Mask2Former": Evidence("9b0651c6c1d5b3af2e6da0589b719c514ec0d69a", "2026-11-26", COMPARED),
            "MaskDINO": Evidence("3831d8514a3728535ace8d4ecc7d28044c42dd14", "2026-11-26", COMPARED),
            "MOTR": Evidence("8690da3392159635ca37c31975126acf40220724", "2026-11-26", f"losses, {EQUAL}"),
            "TrackFormer": Evidence("e468bf156b029869f6de1be358bc11cd1f517f3c", "2026-11-26", COMPARED),
            "ViT-Adapter": Evidence("fd64a5190f9f4530e8e5961cc87b2a3ad591190b", "2026-11-26", BACKBONE),
            "LW-DETR": Evidence("d5e6e6c4add2d24dafb965ced8b50163c50b9788", "2026-11-26", COMPARED),
        },
        PROVIDES,
    ),
    Host(  # on a CPU, OneFormer does not import the compiled module
        "ms_deform_attn_core_pytorch",
        {"OneFormer": Evidence("4962ef6a96ffb76a76771bfa3e8b3587f209752b", "2026-11-26", COMPARED)},
        functions=("ms_deform_attn_core_pytorch",),
    ),
    Host(
        "groundingdino._C",
        {"Grounding DINO": Evidence("856dde20aee659246248e20734ef9ba5214f5e44", "2026-11-26", COMPARED)},
        PROVIDES,
        functions=("multi_scale_deformable_attn_pytorch",),
    ),
    Host(
        "adet._C",
        {
            "AdelaiDet": Evidence("36721221eb572256206e60df6e9095ed00b2e08c", "2026-11-26", "losses of FCOS"),
            "DeepSolo": Evidence("dbadae995035246bad3376c7a44c015c69e9b313", "2026-11-26", COMPARED),
            "TESTR": Evidence("f369f138e041d1d27348a1f6600e456452001d23", "2026-11-26", COMPARED),
        },
        PROVIDES,
        missing="`BezierAlign`, `DefROIAlign`, `ml_nms`",
    ),
    Host(
        "detrex._C",
        {
            "detrex": Evidence(
                "e244e6c3da3e84566728c52c21fb061d23ce0e2f", "2026-11-26", "losses of Deformable DETR"
            )
        },
        PROVIDES,
        functions=("multi_scale_deformable_attn_pytorch",),
    ),
    Host(
        "MultiScaleDeformableAttnFunction",
        {
            "BEVFormer": Evidence("66b65f3a1f58caf0507cb2a971b9c0e7f842376c", "2026-11-26", ENCODER),
            "UniAD": Evidence("dd161b220c22de1c874c3fb8d55979054b24d716", "2026-11-26", ENCODER),
            "VAD": Evidence("1688c4b1c3a9e2e7873ca9700ff8058170c0e3c8", "2026-11-26", ENCODER),
        },
        functions=(
            "MultiScaleDeformableAttnFunction_fp32",
            "MultiScaleDeformableAttnFunction_fp16",
            "multi_scale_deformable_attn_pytorch",
        ),
    ),
)
