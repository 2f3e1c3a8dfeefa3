"""The projects that :mod:`benchmarks.projects` runs, and the smallest model of each."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pkgutil import resolve_name
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy
import torch
from torch import Tensor, nn

from dcnzoo.compat.patches import disabled


@dataclass(frozen=True)
class Trial:
    """A model of a project, a call of it, and the context in which its own PyTorch code runs instead."""

    model: nn.Module
    call: Callable[[], object]
    own: Callable[[], AbstractContextManager] | None = None


@dataclass(frozen=True)
class Project:
    """A project, as it is run.

    Attributes:
        source: owner and name on GitHub, and the commit of the last run: ``"owner/name@commit"``.
        build: builds the model, in the folder of the project.
        provide: names for :func:`dcnzoo.compat.provide`.
        path: folders for ``sys.path``.
        packages: requirements that the other projects do not share, installed without compiled code.
        cpu: whether its CUDA calls must mean the CPU, as with ``dcnzoo run --cpu``.
        ran: what was built with the project's code and ran; ``*equal*``: compared with its own PyTorch code.
    """

    source: str
    build: Callable[[], Trial]
    provide: tuple[str, ...] = ()
    path: tuple[str, ...] = (".",)
    packages: tuple[str, ...] = ()
    cpu: bool = False
    ran: str = "network"


def absent(*names: str) -> None:
    """Modules that the model does not call, and that are not installed."""
    for name in names:
        sys.modules[name] = mock.MagicMock(__spec__=None)


def generated(name: str) -> None:
    """A module with the version, which an installation writes."""
    module = ModuleType(name)
    vars(module).update(__version__="0", short_version="0", __gitsha__="")
    sys.modules[name] = module


def without_weights() -> AbstractContextManager:
    """Context in which torchvision's ResNet-50 has random weights and a block per stage."""
    resnet = resolve_name("torchvision.models.resnet")

    def resnet50(pretrained: object = None, **options: object) -> nn.Module:
        return resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], **options)

    return mock.patch.object(resolve_name("torchvision.models"), "resnet50", resnet50)


def picture(*shape: int) -> Tensor:
    return torch.rand(shape)


# dcn_v2


def dcn_v2_module() -> Trial:
    model = resolve_name("dcn_v2:DCN")(4, 6, 3, 1, 1, 1, 2)
    return Trial(model, lambda: model(picture(2, 4, 9, 8)))


def yolact() -> Trial:
    resolve_name("data.config:set_cfg")("yolact_plus_resnet50_config")
    model = resolve_name("yolact:Yolact")()
    model.train()
    return Trial(model, lambda: model(picture(2, 3, 138, 138)))


def fair_mot() -> Trial:
    network = resolve_name("models.networks.pose_dla_dcn:DLASeg")
    model = network("dla34", {"hm": 1, "wh": 4, "id": 8, "reg": 2}, False, 4, 1, 5, 16)
    return Trial(model, lambda: model(picture(2, 3, 64, 96)))


CENTER_TRACK = dict(
    load_model="none", dla_node="dcn", head_kernel=3, pre_img=True, pre_hm=True, prior_bias=-4.6
)


def center_track() -> Trial:
    options = SimpleNamespace(**CENTER_TRACK, model_output_list=False)
    heads = {"hm": 1, "tracking": 2}
    model = resolve_name("model.networks.dla:DLASeg")(34, heads, {key: [16] for key in heads}, options)
    previous = picture(2, 3, 64, 96), picture(2, 1, 64, 96)
    return Trial(model, lambda: model(picture(2, 3, 64, 96), *previous))


def trades() -> Trial:
    reshape = numpy.reshape
    numpy.reshape = lambda array, newshape: reshape(array, newshape)  # numpy 2.1 has renamed the argument
    options = SimpleNamespace(
        **CENTER_TRACK,
        model_output_list=False,
        trades=True,
        inference=False,
        clip_len=2,
        deform_kernel_size=3,
        output_h=16,
        output_w=24,
        device="cpu",
    )
    heads = {"hm": 1, "tracking": 2}
    model = resolve_name("model.networks.dla:DLASeg")(34, heads, {key: [16] for key in heads}, options)
    previous = picture(2, 3, 64, 96), picture(2, 1, 64, 96), [None], [None]
    return Trial(model, lambda: model(picture(2, 3, 64, 96), *previous))


# deform_conv_ext and deform_conv_cuda


def edvr(module: str) -> Trial:
    generated("basicsr.version")
    model = resolve_name(f"{module}.edvr_arch:EDVR")(
        num_feat=16, num_frame=3, deformable_groups=4, num_extract_block=1, num_reconstruct_block=1
    )
    return Trial(model, lambda: model(picture(2, 3, 3, 16, 24)))


def stdf() -> Trial:
    sizes = dict(
        radius=1,
        stdf=dict(in_nc=1, out_nc=8, nf=8, nb=3, deform_ks=3),
        qenet=dict(in_nc=8, nf=8, nb=3, out_nc=1),
    )
    model = resolve_name("net_stdf:MFVQE")(sizes)
    return Trial(model, lambda: model(picture(2, 3, 32, 24)))


def alpha_pose() -> Trial:
    generated("alphapose.version")
    absent("cython_bbox", "halpecocotools", "visdom")
    dcn = dict(MODULATED=False, DEFORM_GROUP=1, FALLBACK_ON_STRIDE=False)
    with without_weights():
        model = resolve_name("alphapose.models.fastpose:FastPose")(
            NUM_LAYERS=50, PRESET=dict(NUM_JOINTS=17), DCN=dcn, STAGE_WITH_DCN=[False, True, True, True]
        )
    return Trial(model, lambda: model(picture(2, 3, 64, 48)))


def d3dnet() -> Trial:
    model = resolve_name("model:Net")(2, nf=8)
    return Trial(model, lambda: model(picture(2, 1, 7, 8, 10)))


def basicsr_layers() -> Trial:
    """Its networks call torchvision's operator; its layers, which other projects import, call the module."""
    generated("basicsr.version")
    layers = resolve_name("basicsr.ops.dcn")
    model = nn.Sequential(
        layers.DeformConvPack(4, 6, 3, padding=1, deformable_groups=2),
        layers.ModulatedDeformConvPack(6, 4, 3, padding=1, deformable_groups=3),
    )
    return Trial(model, lambda: model(picture(2, 4, 16, 24)))


# Deformable attention


def own_attention(package: str) -> Callable[[], AbstractContextManager]:
    """Replaces a call of the compiled module by the PyTorch function that the projects have for tests."""
    core = resolve_name(f"{package}.functions.ms_deform_attn_func:ms_deform_attn_core_pytorch")

    def apply(value: Tensor, shapes: Tensor, *others: Tensor) -> Tensor:
        *_, locations, weights, _step = others
        return core(value, shapes, locations, weights)

    layer = resolve_name(f"{package}.modules.ms_deform_attn")
    return lambda: mock.patch.object(layer, "MSDeformAttnFunction", SimpleNamespace(apply=apply))


SIZES = dict(enc_layers=1, dec_layers=2, dim_feedforward=64, num_queries=10, device="cpu")


def deformable_detr() -> Trial:
    arguments = resolve_name("main:get_args_parser")().parse_args([])
    vars(arguments).update(SIZES, with_box_refine=True, two_stage=True)
    with without_weights():
        model = resolve_name("models:build_model")(arguments)[0].eval()
    pictures = [picture(3, 96, 128), picture(3, 128, 96)]
    return Trial(model, lambda: model(pictures), own_attention("models.ops"))


def dino() -> Trial:
    arguments = resolve_name("main:get_args_parser")().parse_args(["-c", "config/DINO/DINO_4scale.py"])
    config = resolve_name("util.slconfig:SLConfig").fromfile(arguments.config_file)
    vars(arguments).update(config._cfg_dict.to_dict())
    vars(arguments).update(SIZES, num_select=10)
    with without_weights():
        model = resolve_name("models.dino:build_dino")(arguments)[0].eval()
    pictures = [picture(3, 96, 128), picture(3, 128, 96)]
    return Trial(model, lambda: model(pictures), own_attention("models.dino.ops"))


def motr() -> Trial:
    absent("seaborn")
    arguments = resolve_name("main:get_args_parser")().parse_args([])
    vars(arguments).update(
        {**SIZES, "dec_layers": 6},
        meta_arch="motr",
        dataset_file="e2e_mot",
        with_box_refine=True,
        two_stage=False,
        sampler_lengths=[2],
    )
    with without_weights():
        model = resolve_name("models:build_model")(arguments)[0]
    instances = resolve_name("models.structures:Instances")((1, 1))
    instances.boxes, instances.labels = torch.tensor([[0.5, 0.5, 0.2, 0.3]]), torch.zeros(1, dtype=torch.long)
    instances.obj_ids = torch.ones(1)

    def call() -> object:
        frames = [picture(3, 96, 128) for _ in range(2)]
        return model(dict(imgs=frames, gt_instances=[instances, instances]))

    return Trial(model, call, own_attention("models.ops"))


def track_former() -> Trial:
    absent("visdom", "sacred", "motmetrics", "lap")
    yaml = resolve_name("yaml")
    arguments: dict[str, object] = {}
    for name in ("train", "train_deformable"):
        with open(f"cfgs/{name}.yaml") as file:
            arguments |= yaml.safe_load(file)
    arguments |= SIZES
    with without_weights():
        build = resolve_name("trackformer.models:build_model")
        model = build(SimpleNamespace(**arguments))[0].eval()
    pictures = [picture(3, 96, 128), picture(3, 128, 96)]
    return Trial(model, lambda: model(pictures), own_attention("trackformer.models.ops"))


def grounding_dino() -> Trial:
    transformers = resolve_name("transformers")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as vocabulary:
        vocabulary.write("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "cat", "dog"]))
        vocabulary.flush()
        tokenizer = transformers.BertTokenizerFast(vocabulary.name)
    config = transformers.BertConfig(vocab_size=9, num_hidden_layers=1, attn_implementation="eager")
    bert = transformers.BertModel(config)
    names = resolve_name("groundingdino.util.get_tokenlizer")
    names.get_tokenlizer = lambda name: tokenizer
    names.get_pretrained_language_model = lambda name: bert
    arguments = resolve_name("groundingdino.util.slconfig:SLConfig").fromfile(
        "groundingdino/config/GroundingDINO_SwinT_OGC.py"
    )
    for name, value in dict(SIZES, use_checkpoint=False, use_transformer_ckpt=False).items():
        setattr(arguments, name, value)
    model = resolve_name("groundingdino.models:build_model")(arguments).eval()
    pictures = picture(2, 3, 96, 128)

    def call() -> object:
        outputs = model(pictures, captions=["cat . dog .", "dog ."])
        return outputs["pred_boxes"], outputs["pred_logits"].sigmoid()  # -inf behind the words

    return Trial(model, call, lambda: disabled("groundingdino._C"))


# detectron2


def detectron2_model(config: object, file: str, *options: object) -> nn.Module:
    """A model of a config, without weights, on the CPU."""
    config.merge_from_file(file)
    config.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *options])
    return resolve_name("detectron2.modeling:build_model")(config)


DEFORMABLE = ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True])
DEFORMABLE += ("MODEL.RESNETS.DEFORM_MODULATED", True, "MODEL.RESNETS.NORM", "BN")


def batch() -> list[dict]:
    """Two pictures with two objects each."""
    structures = resolve_name("detectron2.structures")
    samples = []
    for height, width in ((96, 128), (128, 96)):
        boxes = structures.Boxes(torch.tensor([[10.0, 12, 60, 70], [30, 20, 90, 80]]))
        classes = torch.tensor([0, 1])
        masks = structures.BitMasks(torch.ones(2, height, width, dtype=torch.bool))
        instances = structures.Instances((height, width), gt_boxes=boxes, gt_classes=classes, gt_masks=masks)
        image = picture(3, height, width) * 255
        samples.append(dict(image=image, instances=instances, height=height, width=width))
    return samples


def losses(model: nn.Module) -> Trial:
    """A training step's losses of a detector of detectron2."""

    def call() -> object:
        with resolve_name("detectron2.utils.events:EventStorage")():
            return model(batch())

    return Trial(model.train(), call)


def detectron2() -> Trial:
    config = resolve_name("detectron2.config:get_cfg")()
    file = "configs/Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml"
    return losses(detectron2_model(config, file, "MODEL.RESNETS.DEFORM_MODULATED", True))


def center_net2() -> Trial:
    config = resolve_name("detectron2.config:get_cfg")()
    resolve_name("centernet.config:add_centernet_config")(config)
    return losses(detectron2_model(config, "configs/CenterNet2_R50_1x.yaml", *DEFORMABLE))


def adelai_det() -> Trial:
    config = resolve_name("adet.config:get_cfg")()
    resolve_name("adet.modeling")
    return losses(detectron2_model(config, "configs/FCOS-Detection/R_50_1x.yaml", *DEFORMABLE))


def mask_head(package: str, add: str, file: str, *options: object) -> Trial:
    """Mask2Former and MaskDINO: the outputs of backbone and head."""
    config = resolve_name("detectron2.config:get_cfg")()
    resolve_name("detectron2.projects.deeplab:add_deeplab_config")(config)
    resolve_name(f"{package}:{add}")(config)
    model = detectron2_model(config, file, *options).eval()
    pictures = picture(2, 3, 96, 128)
    ops = f"{package}.modeling.pixel_decoder.ops"
    return Trial(model, lambda: model.sem_seg_head(model.backbone(pictures)), own_attention(ops))


def mask2former() -> Trial:
    file = "configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
    return mask_head("mask2former", "add_maskformer2_config", file)


def mask_dino() -> Trial:
    file = "configs/coco/instance-segmentation/maskdino_R50_bs16_50ep_3s.yaml"
    return mask_head("maskdino", "add_maskdino_config", file, "MODEL.MaskDINO.NUM_OBJECT_QUERIES", 10)


def text_spotter(network: str) -> Trial:
    """TESTR and DeepSolo: the outputs of the network, without the losses."""
    config = resolve_name("adet.config:get_cfg")()
    resolve_name("adet.modeling")
    file = "configs/TESTR/Base-TESTR.yaml" if network == "testr" else "DeepSolo/configs/R_50/Base_det.yaml"
    sizes = ("MODEL.TRANSFORMER.ENC_LAYERS", 1, "MODEL.TRANSFORMER.DEC_LAYERS", 2)
    model = detectron2_model(config, file, *sizes, "MODEL.TRANSFORMER.NUM_QUERIES", 10).eval()
    images = resolve_name("detectron2.structures:ImageList")
    pictures = images.from_tensors([picture(3, 96, 128), picture(3, 128, 96)])
    layer = resolve_name("adet.layers.ms_deform_attn")
    core = layer.ms_deform_attn_core_pytorch
    function = SimpleNamespace(apply=lambda value, shapes, starts, *others: core(value, shapes, *others[:2]))
    own = mock.patch.object
    return Trial(
        model,
        lambda: getattr(model, network)(pictures),
        lambda: own(layer, "_MSDeformAttnFunction", function),
    )


def detrex() -> Trial:
    absent("wandb")
    config = resolve_name("projects.deformable_detr.configs.models.deformable_detr_r50:model")
    config.num_queries, config.device = 10, "cpu"
    config.transformer.encoder.num_layers, config.transformer.decoder.num_layers = 1, 2
    model = resolve_name("detectron2.config:instantiate")(config)
    return Trial(model.train(), lambda: model(batch()))


# InternImage and FlashInternImage


def intern_image() -> Trial:
    model = resolve_name("models.intern_image:InternImage")(
        channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8], num_classes=5, drop_path_rate=0.0
    )
    functions = resolve_name("ops_dcnv3.functions")
    layer = resolve_name("ops_dcnv3.modules.dcnv3")

    def apply(*arguments: object) -> Tensor:
        *others, _step, remove_center = arguments
        return functions.dcnv3_core_pytorch(*others, remove_center)

    own = SimpleNamespace(apply=apply)
    call = lambda: model(picture(2, 3, 64, 96))  # noqa: E731
    return Trial(model, call, lambda: mock.patch.object(layer, "DCNv3Function", own))


def flash_intern_image() -> Trial:
    model = resolve_name("models.flash_intern_image:FlashInternImage")(
        core_op="DCNv4",
        channels=32,
        depths=[1, 1, 1, 1],
        groups=[2, 4, 8, 16],
        num_classes=5,
        drop_path_rate=0.0,
        dw_kernel_size=3,
    )
    return Trial(model, lambda: model(picture(2, 3, 64, 96)))


# The N-d op


def nd_op() -> Trial:
    """Without its 1-d layer, which contains a Conv3d and fails."""
    options = dict(padding=1, groups=2, deformable_groups_per_groups=2)
    two, three = (resolve_name(f"deform_conv:DeformConv{rank}d")(4, 6, 3, **options) for rank in (2, 3))
    model = nn.ModuleList([two, three])
    return Trial(model, lambda: (two(picture(2, 4, 6, 5)), three(picture(2, 4, 4, 6, 5))))


def solo() -> Trial:
    generated("mmdet.version")
    absent("mmdet.ops.nms.nms_cpu", "mmdet.ops.nms.nms_cuda", "mmdet.ops.nms.soft_nms_cpu", "asynctest")
    absent("mmdet.ops.roi_align.roi_align_cuda", "mmdet.ops.roi_pool.roi_pool_cuda")
    absent("mmdet.ops.masked_conv.masked_conv2d_cuda", "mmdet.ops.utils.compiling_info")
    absent("mmdet.ops.sigmoid_focal_loss.sigmoid_focal_loss_cuda")
    config = resolve_name("mmcv:Config").fromfile("configs/solov2/solov2_light_512_dcn_r50_fpn_8gpu_3x.py")
    model = resolve_name("mmdet.models.builder:build_detector")(
        dict(config.model, pretrained=None), config.train_cfg, config.test_cfg
    )

    # without the mask branch, which changes the output of a ReLU in place: an error in today's torch
    return Trial(model, lambda: model.bbox_head(model.extract_feat(picture(1, 3, 96, 128))))


def fapn() -> Trial:
    backbone = resolve_name("detectron2.modeling.backbone")
    backbone.__path__.append("detectron2/modeling/backbone")  # its README copies the file there
    config = resolve_name("detectron2.config:get_cfg")()
    config.MODEL.RESNETS.OUT_FEATURES = config.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    shape = resolve_name("detectron2.layers:ShapeSpec")(channels=3)
    model = resolve_name("detectron2.modeling.backbone.fan:build_resnet_fan_backbone")(config, shape)
    return Trial(model, lambda: model(picture(2, 3, 64, 96)))


# mmcv 1.7


def co_detr() -> Trial:
    config = resolve_name("mmcv:Config").fromfile(
        "projects/configs/co_deformable_detr/co_deformable_detr_r50_1x_coco.py"
    )
    resolve_name("projects.models")
    config.model.backbone.init_cfg = None
    config.model.query_head.update(num_query=10)
    config.model.query_head.transformer.update(two_stage_num_proposals=10)
    model = resolve_name("mmdet.models:build_detector")(config.model)
    meta = dict(img_shape=(96, 128, 3), pad_shape=(96, 128, 3), batch_input_shape=(96, 128), scale_factor=1.0)
    boxes = torch.tensor([[10.0, 12, 60, 70], [30, 20, 90, 80]])

    def call() -> object:
        pictures = picture(2, 3, 96, 128)
        return model.forward_train(pictures, [meta, meta], [boxes, boxes], [torch.tensor([0, 1])] * 2)

    return Trial(model, call)


def vit_adapter() -> Trial:
    model = resolve_name("mmdet_custom.models.backbones:ViTAdapter")(
        patch_size=16,
        embed_dim=48,
        depth=4,
        num_heads=3,
        conv_inplane=16,
        deform_num_heads=6,
        interaction_indexes=[[0, 0], [1, 1], [2, 2], [3, 3]],
        window_attn=[False] * 4,
        window_size=[None] * 4,
    ).eval()
    return Trial(model, lambda: model(picture(2, 3, 64, 96)), own_attention("ops"))


def bev_encoder(modules: str) -> Trial:
    """BEVFormer and UniAD: the encoder, without the packages' own imports, such as mmdet3d and nuscenes."""
    *packages, _ = modules.split(".")
    for number in range(1, len(packages) + 1):
        package = ModuleType(".".join(packages[:number]))
        package.__path__ = ["/".join(packages[:number])]
        sys.modules[package.__name__] = package
    encoder = resolve_name(f"{modules}.encoder:BEVFormerEncoder")
    for name in ("temporal_self_attention", "spatial_cross_attention"):
        resolve_name(f"{modules}.{name}")
    sizes = [-8.0, -8, -2, 8, 8, 2]
    sampling = dict(type="MSDeformableAttention3D", embed_dims=256, num_points=4, num_levels=1)
    cameras = dict(type="SpatialCrossAttention", embed_dims=256, num_cams=2, pc_range=sizes)
    layer = dict(
        type="BEVFormerLayer",
        attn_cfgs=[
            dict(type="TemporalSelfAttention", embed_dims=256, num_levels=1),
            dict(cameras, deformable_attention=sampling),
        ],
        feedforward_channels=64,
        ffn_dropout=0.0,
        operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    )
    model = encoder(
        transformerlayers=layer,
        num_layers=1,
        pc_range=sizes,
        num_points_in_pillar=4,
        return_intermediate=False,
    ).eval()
    matrix = [[8.0, 0, 0, 64], [0, 8, 0, 48], [0, 0, 0, 1], [0, 0, 0, 1]]
    meta = dict(lidar2img=[matrix, matrix], img_shape=[(96, 128, 3)] * 2)
    shapes, starts = torch.tensor([[6, 8]]), torch.tensor([0])

    def call() -> object:
        query, features = torch.rand(25, 1, 256), torch.rand(2, 48, 1, 256)
        levels = dict(spatial_shapes=shapes, level_start_index=starts, shift=torch.zeros(1, 2))
        return model(
            query,
            features,
            features,
            bev_h=5,
            bev_w=5,
            bev_pos=torch.rand(25, 1, 256),
            img_metas=[meta],
            **levels,
        )

    return Trial(model, call, lambda: disabled("MultiScaleDeformableAttnFunction"))


def lw_detr() -> Trial:
    options = "--encoder vit_tiny --vit_encoder_num_layers 6 --window_block_indexes 0 2 4 --group_detr 2"
    options += (
        " --two_stage --out_feature_indexes 1 3 5 --projector_scale P4 --bbox_reparam --lite_refpoint_refine"
    )
    options += " --hidden_dim 64 --sa_nheads 2 --ca_nheads 4 --num_queries 10 --dec_layers 2 --device cpu"
    arguments = resolve_name("main:get_args_parser")().parse_args(options.split())
    model = resolve_name("models:build_model")(arguments)[0].eval()
    pictures = [picture(3, 128, 128), picture(3, 128, 128)]
    core = resolve_name("models.ops.functions.ms_deform_attn_func:ms_deform_attn_core_pytorch")

    def apply(
        value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, _: int
    ) -> Tensor:
        return core(value.permute(0, 2, 3, 1).contiguous(), shapes, locations, weights.flatten(3))

    layer, own = resolve_name("models.ops.modules.ms_deform_attn"), SimpleNamespace(apply=apply)
    return Trial(
        model, lambda: model(pictures), lambda: mock.patch.object(layer, "MSDeformAttnFunction", own)
    )


def one_former() -> Trial:
    absent("natten", "diffdist", "diffdist.functional", "imutils", "wandb", "clip", "ftfy")
    config = resolve_name("detectron2.config:get_cfg")()
    resolve_name("detectron2.projects.deeplab:add_deeplab_config")(config)
    for name in ("common", "swin", "dinat", "convnext", "oneformer"):
        resolve_name(f"oneformer:add_{name}_config")(config)
    config.merge_from_file("configs/ade20k/oneformer_R50_bs16_160k.yaml")
    config.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ONE_FORMER.NUM_OBJECT_QUERIES", 10])
    modeling = resolve_name("detectron2.modeling")
    backbone = modeling.build_backbone(config)
    head = modeling.build_sem_seg_head(config, backbone.output_shape())
    model = nn.ModuleList([backbone, head]).eval()
    pictures, task = picture(2, 3, 96, 128), picture(2, config.MODEL.ONE_FORMER.HIDDEN_DIM)
    return Trial(
        model, lambda: head(backbone(pictures), task), lambda: disabled("ms_deform_attn_core_pytorch")
    )


DETECTRON2 = "../facebookresearch+detectron2"


DATE = "2026-11-26"  # of the last run of all projects
PROJECTS = {
    "DCNv2": Project(
        "CharlesShang/DCNv2@c7f778f28b84c66d3af2bf16f19148a07051dac1", dcn_v2_module, ("_ext",), ran="layer"
    ),
    "YOLACT++": Project(
        "dbolya/yolact@902073d414728280b496c5f0a59a8e8285b3c13c", yolact, ("dcn_v2",), cpu=True
    ),
    "FairMOT": Project(
        "ifzhang/FairMOT@4aa62976bde6266cbafd0509e24c3d98a7d0899f", fair_mot, ("dcn_v2",), ("src/lib",)
    ),
    "CenterTrack": Project(
        "xingyizhou/CenterTrack@e4e7534cc2ebfbd31e0cde680988f286c65fe34f",
        center_track,
        ("dcn_v2",),
        ("src/lib",),
    ),
    "TraDeS": Project(
        "JialianW/TraDeS@0443c36c2ec716ade2fd2e9748deed1d36f172cd", trades, ("dcn_v2",), ("src/lib",)
    ),
    "BasicSR": Project(
        "XPixelGroup/BasicSR@8d56e3a045f9fb3e1d8872f92ee4a4f07f886b0a",
        basicsr_layers,
        ("deform_conv_ext",),
        ran="deformable layers",
    ),
    "EDVR": Project(
        "xinntao/EDVR@b02e63a0fc5854cad7b11a87f74601612e356eff",
        lambda: edvr("basicsr.models.archs"),
        ("deform_conv_ext",),
    ),
    "STDF": Project(
        "ryanxingql/stdf-pytorch@8bedc89e840117f2634cf5183a7eb9441c302360", stdf, ("deform_conv_cuda",)
    ),
    "AlphaPose": Project(
        "MVIG-SJTU/AlphaPose@c60106d19afb443e964df6f06ed1842962f5f1f7", alpha_pose, ("deform_conv_cuda",)
    ),
    "D3Dnet": Project(
        "XinyiYing/D3Dnet@b65af8cfccfa1c076d0be85015b196f8efc3848a", d3dnet, ("D3D",), ("code",)
    ),
    "Deformable DETR": Project(
        "fundamentalvision/Deformable-DETR@11169a60c33333af00a4849f1808023eba96a931",
        deformable_detr,
        ("MultiScaleDeformableAttention",),
        ran="network, *equal*",
    ),
    "DINO": Project(
        "IDEA-Research/DINO@faa8520fe9604c23ad65a48bc583550a44c0e3ab",
        dino,
        ("MultiScaleDeformableAttention",),
        ran="network, *equal*",
    ),
    "MOTR": Project(
        "megvii-research/MOTR@8690da3392159635ca37c31975126acf40220724",
        motr,
        ("MultiScaleDeformableAttention",),
        ran="losses, *equal*",
    ),
    "TrackFormer": Project(
        "timmeinhardt/trackformer@e468bf156b029869f6de1be358bc11cd1f517f3c",
        track_former,
        ("MultiScaleDeformableAttention",),
        ("src",),
        ran="network, *equal*",
    ),
    "Grounding DINO": Project(
        "IDEA-Research/GroundingDINO@856dde20aee659246248e20734ef9ba5214f5e44",
        grounding_dino,
        ("groundingdino._C",),
        ran="network, *equal*",
    ),
    "detectron2": Project(
        "facebookresearch/detectron2@02b5c4e295e990042a714712c21dc79b731e8833",
        detectron2,
        ("detectron2._C",),
        ran="losses of Mask R-CNN",
    ),
    "CenterNet2": Project(
        "xingyizhou/CenterNet2@bfc8b72e4e2a1612b4aa4c12f7b3db9cdd7b34c4",
        center_net2,
        ("detectron2._C",),
        (".", DETECTRON2),
        ran="losses",
    ),
    "AdelaiDet": Project(
        "aim-uofa/AdelaiDet@36721221eb572256206e60df6e9095ed00b2e08c",
        adelai_det,
        ("adet._C", "detectron2._C"),
        (".", DETECTRON2),
        ran="losses of FCOS",
    ),
    "Mask2Former": Project(
        "facebookresearch/Mask2Former@9b0651c6c1d5b3af2e6da0589b719c514ec0d69a",
        mask2former,
        ("MultiScaleDeformableAttention", "detectron2._C"),
        (".", DETECTRON2),
        ran="network, *equal*",
    ),
    "MaskDINO": Project(
        "IDEA-Research/MaskDINO@3831d8514a3728535ace8d4ecc7d28044c42dd14",
        mask_dino,
        ("MultiScaleDeformableAttention", "detectron2._C"),
        (".", DETECTRON2),
        ran="network, *equal*",
    ),
    "DeepSolo": Project(
        "ViTAE-Transformer/DeepSolo@dbadae995035246bad3376c7a44c015c69e9b313",
        lambda: text_spotter("detection_transformer"),
        ("adet._C", "detectron2._C"),
        ("DeepSolo", DETECTRON2),
        ran="network, *equal*",
    ),
    "TESTR": Project(
        "mlpc-ucsd/TESTR@f369f138e041d1d27348a1f6600e456452001d23",
        lambda: text_spotter("testr"),
        ("adet._C", "detectron2._C"),
        (".", DETECTRON2),
        ran="network, *equal*",
    ),
    "detrex": Project(
        "IDEA-Research/detrex@e244e6c3da3e84566728c52c21fb061d23ce0e2f",
        detrex,
        ("detrex._C", "detectron2._C"),
        (".", DETECTRON2),
        ran="losses of Deformable DETR",
    ),
    "InternImage": Project(
        "OpenGVLab/InternImage@31c962dc6c1ceb23e580772f7daaa6944694fbe6",
        intern_image,
        ("DCNv3",),
        ("classification",),
        ran="network, *equal*",
    ),
    "FlashInternImage": Project(
        "OpenGVLab/DCNv4@4b848f7dd7da74ff03f7d278f902c6fd05b391b5",
        flash_intern_image,
        ("DCNv4",),
        ("classification",),
    ),
    "the N-d op": Project(
        "seungjun-Park/Pytorch-Implmentation-of-Deformable-Convolution-Nd@bb3c8943c02efd4eeffcd00045ea86d3951cccc2",
        nd_op,
        ("custom_op",),
        ran="2-d and 3-d layers",
    ),
    "SOLO": Project(
        "WXinlong/SOLO@f4cd03b9404e3bd84ca0be45966fb61d20d2efe6",
        solo,
        ("deform_conv_cuda",),
        packages=("mmcv==0.4.4",),
        ran="backbone and head",
    ),
    "FaPN": Project(
        "EMI-Group/FaPN@4d400719d3f2b9a4dc38c2132b9984be66219719",
        fapn,
        ("dcn_v2", "detectron2._C"),
        (DETECTRON2,),
        ran="backbone",
    ),
    "Co-DETR": Project(
        "Sense-X/Co-DETR@26653521e47157fdd819e764b4bb949057ea9f3b",
        co_detr,
        ("torchvision",),
        packages=("mmcv==1.7.0",),
        cpu=True,
        ran="losses",
    ),
    "ViT-Adapter": Project(
        "czczup/ViT-Adapter@fd64a5190f9f4530e8e5961cc87b2a3ad591190b",
        vit_adapter,
        ("MultiScaleDeformableAttention",),
        ("detection",),
        ("mmcv==1.7.0", "mmdet==2.28.2"),
        ran="backbone, *equal*",
    ),
    "BEVFormer": Project(
        "fundamentalvision/BEVFormer@66b65f3a1f58caf0507cb2a971b9c0e7f842376c",
        lambda: bev_encoder("projects.mmdet3d_plugin.bevformer.modules"),
        ("MultiScaleDeformableAttnFunction",),
        packages=("mmcv==1.7.0", "mmdet==2.28.2"),
        ran="encoder, *equal*",
    ),
    "UniAD": Project(
        "OpenDriveLab/UniAD@dd161b220c22de1c874c3fb8d55979054b24d716",
        lambda: bev_encoder("projects.mmdet3d_plugin.uniad.modules"),
        ("MultiScaleDeformableAttnFunction",),
        packages=("mmcv==1.7.0", "mmdet==2.28.2"),
        ran="encoder, *equal*",
    ),
    "LW-DETR": Project(
        "Atten4Vis/LW-DETR@d5e6e6c4add2d24dafb965ced8b50163c50b9788",
        lw_detr,
        ("MultiScaleDeformableAttention",),
        ran="network, *equal*",
    ),
    "OneFormer": Project(
        "SHI-Labs/OneFormer@4962ef6a96ffb76a76771bfa3e8b3587f209752b",
        one_former,
        ("ms_deform_attn_core_pytorch", "detectron2._C"),
        (".", DETECTRON2),
        ran="network, *equal*",
    ),
    "VAD": Project(
        "hustvl/VAD@1688c4b1c3a9e2e7873ca9700ff8058170c0e3c8",
        lambda: bev_encoder("projects.mmdet3d_plugin.VAD.modules"),
        ("MultiScaleDeformableAttnFunction",),
        packages=("mmcv==1.7.0", "mmdet==2.28.2"),
        ran="encoder, *equal*",
    ),
}
