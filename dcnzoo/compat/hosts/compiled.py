"""Compiled modules that projects import, on functions of dcnzoo with the same arguments."""

from importlib.util import find_spec
from types import ModuleType

from dcnzoo.compat.after_import import call
from dcnzoo.compat.host import Evidence, Host, is_ours
from dcnzoo.compat.patches import Changes, Patch

DATE = "2026-11-26"  # of the last run of all projects
EQUAL = "equal to its own PyTorch code"
COMPARED, BACKBONE, ENCODER = f"network, {EQUAL}", f"backbone, {EQUAL}", f"encoder, {EQUAL}"
COMPILED = ("dcnzoo.compat.compiled",)
DCN_V2, EXT = ("dcnzoo.compat.dcn_v2",), ("_ext", "*[Dd][Cc][Nn]*._ext")
CONVOLUTIONS = ("deform_conv", "modulated_deform_conv")
ATTENTION = ("multi_scale_deformable_attn_pytorch",)
V1, V2 = ("forward", "backward_input", "backward_parameters"), ("forward", "backward")
STRIDES = "layers with a stride other than 1"
DCNV4 = ("ext", "modules", "modules.dcnv4", "modules.flash_deform_attn")


def _add_version(changes: Changes) -> None:
    def add(resources: ModuleType) -> None:
        if is_ours(find_spec("DCNv3")):
            version = resources.Distribution(project_name="DCNv3", version="1.1")
            changes.set_item(resources.working_set.by_key, version.key, version)

    changes.callback(call("pkg_resources", add))


REASON = "ops_dcnv3 reads the version of the package DCNv3 with it"
DCNV3_VERSION = Patch("DCNv3_version", "pkg_resources", REASON, "all", _add_version)

HOSTS = (
    Host(
        "D3D",
        {"D3Dnet": Evidence("b65af8cfccfa1c076d0be85015b196f8efc3848a", DATE)},
        ("dcnzoo.compat.d3d",),
    ),
    Host(
        "_ext",
        {"DCNv2": Evidence("c7f778f28b84c66d3af2bf16f19148a07051dac1", DATE, "layer")},
        DCN_V2,
        imports=EXT,
        missing="deformable PSRoI pooling",
    ),
    Host(
        "dcn_v2",
        {
            "CenterTrack": Evidence("e4e7534cc2ebfbd31e0cde680988f286c65fe34f", DATE),
            "FairMOT": Evidence("4aa62976bde6266cbafd0509e24c3d98a7d0899f", DATE),
            "TraDeS": Evidence("0443c36c2ec716ade2fd2e9748deed1d36f172cd", DATE),
            "YOLACT++": Evidence("902073d414728280b496c5f0a59a8e8285b3c13c", DATE),
            "FaPN": Evidence("4d400719d3f2b9a4dc38c2132b9984be66219719", DATE, "backbone"),
        },
        DCN_V2,
        imports=(*EXT, "dcn_v2", "*.DCNv2", "*.DCNv2.dcn_v2"),
        missing="deformable PSRoI pooling, CenterNet's code of 2019 (cffi)",
    ),
    Host(
        "deform_conv_ext",
        {
            "BasicSR": Evidence("8d56e3a045f9fb3e1d8872f92ee4a4f07f886b0a", DATE, "deformable layers"),
            "EDVR": Evidence("b02e63a0fc5854cad7b11a87f74601612e356eff", DATE),
        },
        COMPILED,
        imports=("deform_conv_ext", "*.deform_conv_ext"),
        functions=CONVOLUTIONS,
    ),
    Host(
        "deform_conv_cuda",
        {
            "STDF": Evidence("8bedc89e840117f2634cf5183a7eb9441c302360", DATE),
            "AlphaPose": Evidence("c60106d19afb443e964df6f06ed1842962f5f1f7", DATE),
            "SOLO": Evidence("f4cd03b9404e3bd84ca0be45966fb61d20d2efe6", DATE, "backbone and head"),
        },
        COMPILED,
        names={
            **{f"deform_conv_{name}_cuda": f"deform_conv_{name}" for name in V1},
            **{f"modulated_deform_conv_cuda_{name}": f"modulated_deform_conv_{name}" for name in V2},
        },
        imports=("deform_conv_cuda", "*.deform_conv_cuda", "deform_pool_cuda", "*.deform_pool_cuda"),
        functions=CONVOLUTIONS,
        missing="deformable PSRoI pooling",
    ),
    Host(
        "MultiScaleDeformableAttention",
        {
            "Deformable DETR": Evidence("11169a60c33333af00a4849f1808023eba96a931", DATE, COMPARED),
            "DINO": Evidence("faa8520fe9604c23ad65a48bc583550a44c0e3ab", DATE, COMPARED),
            "Mask2Former": Evidence("9b0651c6c1d5b3af2e6da0589b719c514ec0d69a", DATE, COMPARED),
            "MaskDINO": Evidence("3831d8514a3728535ace8d4ecc7d28044c42dd14", DATE, COMPARED),
            "MOTR": Evidence("8690da3392159635ca37c31975126acf40220724", DATE, f"losses, {EQUAL}"),
            "TrackFormer": Evidence("e468bf156b029869f6de1be358bc11cd1f517f3c", DATE, COMPARED),
            "ViT-Adapter": Evidence("fd64a5190f9f4530e8e5961cc87b2a3ad591190b", DATE, BACKBONE),
            "LW-DETR": Evidence("d5e6e6c4add2d24dafb965ced8b50163c50b9788", DATE, COMPARED),
        },
        COMPILED,
    ),
    Host(  # on a CPU, OneFormer does not import the compiled module
        "ms_deform_attn_core_pytorch",
        {"OneFormer": Evidence("4962ef6a96ffb76a76771bfa3e8b3587f209752b", DATE, COMPARED)},
        functions=("ms_deform_attn_core_pytorch",),
    ),
    Host(
        "groundingdino._C",
        {"Grounding DINO": Evidence("856dde20aee659246248e20734ef9ba5214f5e44", DATE, COMPARED)},
        COMPILED,
        functions=ATTENTION,
    ),
    Host(
        "adet._C",
        {
            "AdelaiDet": Evidence("36721221eb572256206e60df6e9095ed00b2e08c", DATE, "losses of FCOS"),
            "DeepSolo": Evidence("dbadae995035246bad3376c7a44c015c69e9b313", DATE, COMPARED),
            "TESTR": Evidence("f369f138e041d1d27348a1f6600e456452001d23", DATE, COMPARED),
        },
        COMPILED,
        missing="`BezierAlign`, `DefROIAlign`, `ml_nms`",
    ),
    Host(
        "detrex._C",
        {"detrex": Evidence("e244e6c3da3e84566728c52c21fb061d23ce0e2f", DATE, "losses of Deformable DETR")},
        COMPILED,
        functions=ATTENTION,
    ),
    Host(
        "MultiScaleDeformableAttnFunction",
        {
            "BEVFormer": Evidence("66b65f3a1f58caf0507cb2a971b9c0e7f842376c", DATE, ENCODER),
            "UniAD": Evidence("dd161b220c22de1c874c3fb8d55979054b24d716", DATE, ENCODER),
            "VAD": Evidence("1688c4b1c3a9e2e7873ca9700ff8058170c0e3c8", DATE, ENCODER),
        },
        functions=(*(f"MultiScaleDeformableAttnFunction_{dtype}" for dtype in ("fp32", "fp16")), *ATTENTION),
    ),
    Host(
        "detectron2._C",
        {
            "detectron2": Evidence("02b5c4e295e990042a714712c21dc79b731e8833", DATE, "losses of Mask R-CNN"),
            "CenterNet2": Evidence("bfc8b72e4e2a1612b4aa4c12f7b3db9cdd7b34c4", DATE, "losses"),
        },
        COMPILED,
        names={
            "deform_conv_backward_filter": "deform_conv_backward_parameters",
            "get_cuda_version": "get_compiler_version",
        },
        functions=(*CONVOLUTIONS, "COCOeval_opt"),
        missing="rotated boxes, the fast COCO evaluation (pycocotools evaluates instead)",
    ),
    Host(
        "DCNv3",
        {"InternImage": Evidence("31c962dc6c1ceb23e580772f7daaa6944694fbe6", DATE, COMPARED)},
        COMPILED,
        patches=(DCNV3_VERSION,),
        missing=STRIDES,
    ),
    Host(
        "DCNv4",
        {"FlashInternImage": Evidence("4b848f7dd7da74ff03f7d278f902c6fd05b391b5", DATE)},
        ("dcnzoo.compat.dcnv4",),
        imports=("DCNv4", *(f"DCNv4.{name}" for name in DCNV4)),
        missing=STRIDES,
    ),
    Host(
        "mmcv._ext",
        {
            "OpenMMLab's packages": Evidence(
                "mmdet 3.3.0 and others", "2026-11-23", "[training steps](coverage.md)"
            ),
            "Co-DETR": Evidence("26653521e47157fdd819e764b4bb949057ea9f3b", DATE, "losses"),
        },
        ("dcnzoo.compat.mmcv._ext",),
    ),
    Host(
        "custom_op",
        {"the N-d op": Evidence("bb3c8943c02efd4eeffcd00045ea86d3951cccc2", DATE, "2-d and 3-d layers")},
        ("dcnzoo.compat.custom_op",),
        missing="the version with 13 arguments",
    ),
)
