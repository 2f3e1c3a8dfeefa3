"""The patches of OpenMMLab's packages, for current PyTorch and for machines without a GPU.

:func:`dcnzoo.openmmlab.setup` applies them; :mod:`dcnzoo.compat.patches` switches them off.
``versions`` lists the versions with the fault, ``target`` the file and line in which it is.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from dcnzoo.compat.patches import Changes, Patch
from dcnzoo.openmmlab.checkpoints import enforce_weights_only, load_own_checkpoints
from dcnzoo.openmmlab.patches import configs, models
from dcnzoo.openmmlab.patches.deformable_configs import deformable_configs


def installed(package: str) -> bool:
    return find_spec(package) is not None


def fix(
    change: Callable[[Changes], None],
    package: str,
    versions: str,
    needed: Callable[[], bool] = lambda: True,
    **description: Any,
) -> Patch:
    """Create a patch of a package, with the name of its function."""
    return Patch(
        change.__name__,
        versions=versions,
        change=change,
        needed=lambda: installed(package) and needed(),
        **description,
    )


of_mmengine = partial(fix, package="mmengine", versions="mmengine 0.10.7")
of_mmcv = partial(fix, package="mmcv", versions="mmcv 2.1.0")
of_mmdet = partial(fix, package="mmdet", versions="mmdet 3.3.0")

TABLE = (
    of_mmengine(
        configs.inherit_from_packages,
        target="mmengine/config/config.py:1247, Config._get_cfg_path",
        reason="_base_ = 'dcnzoo::…' is unknown; the lookup needs pkg_resources, which setuptools 82 removed",
    ),
    of_mmengine(
        configs.types_import_no_modules,
        target="mmengine/registry/registry.py:506, get_object_from_string",
        reason="an unknown type imports the module of this name, such as train.py in the current folder",
    ),
    of_mmengine(
        configs.config_text,
        target="mmengine/config/config.py:1489, Config.pretty_text",
        reason="the text is formatted anew for each checkpoint; names with braces become templates",
    ),
    of_mmengine(
        load_own_checkpoints,
        target="mmengine/runner/checkpoint.py:347, torch.load: its safe globals",
        reason="torch.load rejects the log in mmengine's checkpoints (Weights only load failed)",
        versions="mmengine 0.10.7, torch ≥ 2.6",
    ),
    of_mmengine(
        enforce_weights_only,
        target="mmengine/runner/checkpoint.py:311, CheckpointLoader.load_checkpoint; :371, load_url",
        reason="a downloaded or resumed checkpoint can run code",
    ),
    of_mmengine(
        models.short_histories,
        target="mmengine/logging/history_buffer.py:76, HistoryBuffer",
        reason="all logged values are copied in each iteration, and saved in each checkpoint",
    ),
    of_mmengine(
        models.weights_by_name,
        target="mmengine/runner/checkpoint.py:142, get_torchvision_models",
        reason="'torchvision://resnet50' requires torchvision (No module named 'torchvision')",
    ),
    of_mmengine(
        models.amp_on_cpu,
        target="mmengine/optim/optimizer/amp_optimizer_wrapper.py:76, AmpOptimWrapper",
        reason="amp=True requires a GPU (AmpOptimizerWrapper is only available … gpu)",
    ),
    of_mmengine(
        models.distributed_without_cuda,
        target="mmengine/dist/utils.py:130, :164, :221, set_device; runner/runner.py:900, device_ids",
        reason="launchers call torch.cuda.set_device, and DDP receives the index of a GPU",
    ),
    of_mmengine(
        models.offset_lr_mult,
        target="mmengine/optim/optimizer/default_constructor.py:281, add_params",
        reason="dcn_offset_lr_mult has no effect on layers other than mmcv's two convolutions",
    ),
    of_mmcv(
        models.roi_align_without_torchvision,
        target="mmcv/ops/roi_align.py:197, RoIAlign",
        reason="use_torchvision=True, as in CrowdDet's config, needs torchvision",
        needed=lambda: not installed("torchvision"),
    ),
    of_mmcv(
        models.mm_sync_batch_norm,
        target="mmcv/ops/sync_bn.py:213, SyncBatchNorm",
        reason="MMSyncBN cannot be built in one process (Default process group has not been initialized)",
    ),
    of_mmengine(
        deformable_configs,
        target="mmengine/registry/registry.py:548, Registry.build of models",
        reason="configs lack dcn=True and to_deformable=dict(where=…)",
    ),
    of_mmdet(
        models.short_resnets,
        target="mmdet/models/backbones/resnet.py:361, ResNet.arch_settings",
        reason="ResNet has no depth below 18, and none of Bottlenecks below 50",
    ),
    of_mmdet(
        models.ssd_head,
        target="mmdet/models/dense_heads/base_dense_head.py:376, SSDHead.loss_cls",
        reason="prediction reads loss_cls of every dense head, but SSDHead has none",
    ),
    of_mmdet(
        models.cascade_rpn_head,
        target="mmdet/models/dense_heads/cascade_rpn_head.py:921, CascadeRPNHead",
        reason="mmdet's config of Cascade RPN does not fit its class (missing … 'num_classes')",
    ),
    of_mmdet(
        models.heatmaps_in_channels_last,
        target="mmdet/models/utils/gaussian_target.py:226, get_topk_from_heatmap",
        reason="CenterNet and CornerNet reject channels-last maps (view size is not compatible)",
    ),
    of_mmdet(
        models.teacher_config,
        target="mmdet/models/detectors/kd_one_stage.py:64, KnowledgeDistillationSingleStageDetector",
        reason="distillation configs give the teacher's path relative to mmdet's repository",
    ),
    of_mmdet(
        models.masks_outside_the_image,
        target="mmdet/models/roi_heads/mask_heads/fcn_mask_head.py:436, _do_paste_mask",
        reason="on the CPU, a mask fails if its box is inverted or outside the image (QueryInst)",
    ),
    of_mmdet(
        models.masks_of_the_image_size,
        target="mmdet/models/dense_heads/rtmdet_ins_head.py:503, RTMDetInsHead",
        reason="masks have another size than the picture if its sides are scaled by different factors",
    ),
)
