"""Patches for models, their optimizers, and trainings without a GPU."""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mmcv.ops
import mmengine
import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.dist import utils as dist_utils
from mmengine.logging import HistoryBuffer
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import checkpoint as loading
from mmengine.structures import InstanceData
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes
from dcnzoo.layers.offsets import OffsetPredictor

# mmdet is optional: the functions that patch it import it.


def on_cpu() -> bool:
    """Return whether a run uses the CPU: its option decides, or else what the machine has."""
    return get_device() == "cpu"


class CpuAmpOptimWrapper(AmpOptimWrapper):
    """``AmpOptimWrapper``, on the CPU with bfloat16 autocast, which needs no loss scaling."""

    def __init__(
        self,
        loss_scale: object = "dynamic",
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        **kwargs: object,
    ) -> None:
        if not on_cpu():
            super().__init__(loss_scale, dtype, use_fsdp, **kwargs)
            return
        if dtype not in (None, "bfloat16", torch.bfloat16):
            raise ValueError(f"AmpOptimWrapper: dtype: expected bfloat16 on the CPU, got {dtype}")
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.cast_dtype = torch.bfloat16


def amp_on_cpu(changes: Changes) -> None:
    changes.set_item(OPTIM_WRAPPERS.module_dict, "AmpOptimWrapper", CpuAmpOptimWrapper)


def distributed_without_cuda(changes: Changes) -> None:
    def launch_on_cpu(launch: Callable, backend: str = "nccl", **kwargs: object) -> None:
        with Changes() as during_launch:
            if on_cpu():
                during_launch.set(torch.cuda, "set_device", lambda device: None)
                backend = "gloo" if backend == "nccl" else backend
            launch(backend=backend, **kwargs)

    def construct(original: Callable, self, module: nn.Module, *args: object, **kwargs: object) -> None:
        if on_cpu():
            kwargs["device_ids"] = None
        original(self, module, *args, **kwargs)

    for name in ("_init_dist_pytorch", "_init_dist_slurm", "_init_dist_mpi"):
        changes.wrap(dist_utils, name, launch_on_cpu)
    changes.wrap(MMDistributedDataParallel, "__init__", construct)


def offset_lr_mult(changes: Changes) -> None:
    """Apply ``dcn_offset_lr_mult`` to the convolutions of :mod:`dcnzoo.layers` that predict offsets or masks.

    As for mmcv's layers, ``custom_keys`` that match a parameter take precedence.
    """

    def add_params(
        original: Callable,
        self: DefaultOptimWrapperConstructor,
        params: list[dict],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: object = None,
    ) -> None:
        before = len(params)
        original(self, params, module, prefix, is_dcn_module)
        factor = self.paramwise_cfg.get("dcn_offset_lr_mult")
        if factor is None or not isinstance(module, OffsetPredictor):
            return
        names = {id(parameter): f"{prefix}.{name}" for name, parameter in module.named_parameters()}
        for group in params[before:]:
            name = names[id(group["params"][0])]
            if not any(key in name for key in self.paramwise_cfg.get("custom_keys", {})):
                group["lr"] = self.base_lr * factor

    changes.wrap(DefaultOptimWrapperConstructor, "add_params", add_params)


def short_histories(changes: Changes) -> None:
    """Keep the last 20,000 values of each name: https://github.com/open-mmlab/mmengine/issues/1446.

    Means over longer windows, such as ``global``, are those of these values.
    """

    def construct(original: Callable, self: HistoryBuffer, *args: object, **kwargs: object) -> None:
        original(self, *args, **({"max_length": 20_000} | kwargs if len(args) < 3 else kwargs))

    changes.wrap(HistoryBuffer, "__init__", construct)


def weights_by_name(changes: Changes) -> None:
    """Without torchvision, look up the addresses of its weights in the table that mmengine contains."""

    def addresses(original: Callable) -> Mapping[str, str]:
        if find_spec("torchvision"):
            return original()
        table = Path(mmengine.__file__).parent / "hub" / "torchvision_0.12.json"
        known = {name: url for name, url in json.loads(table.read_text(encoding="utf-8")).items() if url}
        return known | {f"{name}.imagenet1k_v1": url for name, url in known.items()}

    changes.wrap(loading, "get_torchvision_models", addresses)


def roi_align_without_torchvision(changes: Changes) -> None:
    """Use mmcv's RoIAlign for torchvision's; ``pool_mode`` becomes 'avg', the only mode of torchvision."""

    def construct(original: Callable, self: mmcv.ops.RoIAlign, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        if self.use_torchvision:
            self.use_torchvision, self.pool_mode = False, "avg"

    changes.wrap(mmcv.ops.RoIAlign, "__init__", construct)


def mm_sync_batch_norm(changes: Changes) -> None:
    """Give the layer a group of size 1 in a single process; mmengine then reverts it to BatchNorm."""

    def construct(original: Callable, self: nn.Module, *args: object, **kwargs: object) -> None:
        with Changes() as during_construction:
            if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
                during_construction.set(torch.distributed, "get_world_size", lambda group=None: 1)
            original(self, *args, **kwargs)

    changes.wrap(mmcv.ops.SyncBatchNorm, "__init__", construct)


def short_resnets(changes: Changes) -> None:
    """Accept ``depth=14`` and ``depth=26``: one or two Bottlenecks per stage."""
    from mmdet.models.backbones.resnet import Bottleneck, ResNet

    depths = {14: (Bottleneck, (1, 1, 1, 1)), 26: (Bottleneck, (2, 2, 2, 2))}
    changes.set(ResNet, "arch_settings", {**depths, **ResNet.arch_settings})


def ssd_head(changes: Changes) -> None:
    from mmdet.models import SSDHead

    changes.set(SSDHead, "loss_cls", None)


def cascade_rpn_head(changes: Changes) -> None:
    """Set one class, as for any RPN, and drop ``sampling``: ``train_cfg`` decides whether to sample."""
    from mmdet.models import CascadeRPNHead

    def construct(original: Callable, self: CascadeRPNHead, *args: object, **kwargs: Any) -> None:
        if not args:
            kwargs.setdefault("num_classes", 1)
        if "stages" in kwargs:
            kwargs["stages"] = [ConfigDict(stage) for stage in kwargs["stages"]]
            for stage in kwargs["stages"]:
                stage.pop("sampling", None)
        original(self, *args, **kwargs)

    changes.wrap(CascadeRPNHead, "__init__", construct)


def heatmaps_in_channels_last(changes: Changes) -> None:
    """Copy heatmaps to contiguous memory, because ``get_topk_from_heatmap`` views them as matrices."""
    from mmdet.models.dense_heads import centernet_head, corner_head

    def find_peaks(original: Callable, heat: Tensor, kernel: int = 3) -> Tensor:
        return original(heat, kernel).contiguous()

    for module in (centernet_head, corner_head):
        changes.wrap(module, "get_local_maximum", find_peaks)


def teacher_config(changes: Changes) -> None:
    """Also look up ``teacher_config='configs/gfl/….py'`` in the installed mmdet."""
    import mmdet
    from mmdet.models import KnowledgeDistillationSingleStageDetector as Detector

    def construct(original: Callable, self: Detector, *args: object, **kwargs: object) -> None:
        teacher = kwargs.get("teacher_config")
        if isinstance(teacher, str | Path) and not Path(teacher).is_file():
            installed = Path(mmdet.__file__).parent / ".mim" / teacher
            if installed.is_file():
                kwargs["teacher_config"] = installed
        original(self, *args, **kwargs)

    changes.wrap(Detector, "__init__", construct)


def masks_outside_the_image(changes: Changes) -> None:
    """Paste nothing for a box outside the image, and a flipped mask for an inverted box, as on a GPU.

    On a CPU, mmdet pastes only into the region of the boxes, which may be empty or inverted.
    """
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    def paste_inside(
        paste: Callable,
        masks: Tensor,  # [N, 1, H, W]
        boxes: Tensor,  # [N, 4], x1, y1, x2, y2
        img_h: int,
        img_w: int,
        skip_empty: bool = True,
    ) -> tuple[Tensor, tuple[slice, ...]]:
        corners = boxes.view(-1, 2, 2)
        first = (corners.amin((0, 1)).floor() - 1).clamp(min=0)
        end = (corners.amax((0, 1)).ceil() + 1).minimum(boxes.new_tensor((img_w, img_h)))
        if skip_empty and not (first < end).all():
            return masks.new_zeros(len(masks), 0, 0), (slice(0, 0), slice(0, 0))
        inverted = (corners[:, 0] > corners[:, 1]).any()
        return paste(masks, boxes, img_h, img_w, skip_empty and not inverted)

    changes.wrap(fcn_mask_head, "_do_paste_mask", paste_inside)


def masks_of_the_image_size(changes: Changes) -> None:
    """Resize the masks of RTMDet-Ins to the picture if its two scale factors differ.

    ``scale_factor`` is (width, height). MMDetection's method scales boxes by it in this order, and the
    masks as if it were (height, width).
    """
    from mmdet.models import RTMDetInsHead
    from mmdet.structures.bbox import scale_boxes

    def process(
        original: Callable,
        self: RTMDetInsHead,
        results: InstanceData,
        mask_feat: Tensor,
        cfg: ConfigDict,
        rescale: bool = False,
        with_nms: bool = True,
        img_meta: dict | None = None,
    ) -> InstanceData:
        if rescale and img_meta is not None:
            across, down = img_meta["scale_factor"]
            # the method divides the boxes by the exchanged factors
            results.bboxes = scale_boxes(results.bboxes, (down / across, across / down))
            img_meta = {**img_meta, "scale_factor": (down, across)}
        return original(self, results, mask_feat, cfg, rescale, with_nms, img_meta)

    changes.wrap(RTMDetInsHead, "_bbox_mask_post_process", process)
