"""Compiled modules that projects import, on functions of dcnzoo with the same arguments."""

from importlib.util import find_spec
from types import ModuleType

from dcnzoo.compat.after_import import call
from dcnzoo.compat.host import Host, is_ours
from dcnzoo.compat.patches import Changes, Patch

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
    Host("D3D", ("D3Dnet",), ("dcnzoo.compat.d3d",)),
    Host("_ext", ("DCNv2",), DCN_V2, imports=EXT, missing="deformable PSRoI pooling"),
    Host(
        "dcn_v2",
        ("CenterTrack", "FairMOT", "TraDeS", "YOLACT++", "FaPN"),
        DCN_V2,
        imports=(*EXT, "dcn_v2", "*.DCNv2", "*.DCNv2.dcn_v2"),
        missing="deformable PSRoI pooling, CenterNet's code of 2019 (cffi)",
    ),
    Host(
        "deform_conv_ext",
        ("BasicSR", "EDVR"),
        COMPILED,
        imports=("deform_conv_ext", "*.deform_conv_ext"),
        functions=CONVOLUTIONS,
    ),
    Host(
        "deform_conv_cuda",
        ("STDF", "AlphaPose", "SOLO"),
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
        (
            "Deformable DETR",
            "DINO",
            "Mask2Former",
            "MaskDINO",
            "MOTR",
            "TrackFormer",
            "ViT-Adapter",
            "LW-DETR",
        ),
        COMPILED,
    ),
    Host(  # on a CPU, OneFormer does not import the compiled module
        "ms_deform_attn_core_pytorch", ("OneFormer",), functions=("ms_deform_attn_core_pytorch",)
    ),
    Host("groundingdino._C", ("Grounding DINO",), COMPILED, functions=ATTENTION),
    Host(
        "adet._C",
        ("AdelaiDet", "DeepSolo", "TESTR"),
        COMPILED,
        missing="`BezierAlign`, `DefROIAlign`, `ml_nms`",
    ),
    Host("detrex._C", ("detrex",), COMPILED, functions=ATTENTION),
    Host(
        "MultiScaleDeformableAttnFunction",
        ("BEVFormer", "UniAD", "VAD"),
        functions=(*(f"MultiScaleDeformableAttnFunction_{dtype}" for dtype in ("fp32", "fp16")), *ATTENTION),
    ),
    Host(
        "detectron2._C",
        ("detectron2", "CenterNet2"),
        COMPILED,
        names={
            "deform_conv_backward_filter": "deform_conv_backward_parameters",
            "get_cuda_version": "get_compiler_version",
        },
        functions=(*CONVOLUTIONS, "COCOeval_opt"),
        missing="rotated boxes, the fast COCO evaluation (pycocotools evaluates instead)",
    ),
    Host("DCNv3", ("InternImage",), COMPILED, patches=(DCNV3_VERSION,), missing=STRIDES),
    Host(
        "DCNv4",
        ("FlashInternImage",),
        ("dcnzoo.compat.dcnv4",),
        imports=("DCNv4", *(f"DCNv4.{name}" for name in DCNV4)),
        missing=STRIDES,
    ),
    Host("mmcv._ext", ("OpenMMLab's packages", "Co-DETR"), ("dcnzoo.compat.mmcv._ext",)),
    Host("custom_op", ("the N-d op",), ("dcnzoo.compat.custom_op",), missing="the version with 13 arguments"),
)
