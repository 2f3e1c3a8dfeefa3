"""Mends for mmengine 0.10.7 and mmdet 3.3.0 on today's PyTorch and on machines without a GPU.

``import dcnzoo.openmmlab.models`` applies them. Each says what fails without it, asks whether it is needed,
and changes nothing where it is not.
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.dist import utils as dist_utils
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from torch import Tensor

from dcnzoo.compat import patches
from dcnzoo.layers.convert import to_deformable
from dcnzoo.layers.offsets import OFFSET_PREDICTORS
from dcnzoo.openmmlab.checkpoints import checkpoints_run_nothing, load_own_checkpoints
from dcnzoo.openmmlab.packages import hub_finds_packages, inherit_from_packages
from dcnzoo.openmmlab.pretrained import weights_by_name


def apply() -> None:
    """All of them that :mod:`dcnzoo.compat.patches` does not switch off."""
    fixes = [
        *(inherit_from_packages, hub_finds_packages, load_own_checkpoints, checkpoints_run_nothing),
        weights_by_name,
        *(amp_on_cpu, distributed_without_cuda, sync_batch_norm_on_cpu, offsets_have_their_learning_rate),
        *(roi_align_without_torchvision, sync_batch_norm_alone, configs_take_to_deformable),
    ]
    if find_spec("mmdet"):
        fixes += [ssd_predicts, cascade_rpn_alone, teachers_are_found, masks_outside_the_image]
    for fix in fixes:
        patches.apply_fix(fix)


# Mixed precision


class CpuAmpOptimWrapper(AmpOptimWrapper):
    """``AmpOptimWrapper`` where there is no GPU: bfloat16 autocast, which needs no loss scaling."""

    def __init__(
        self,
        loss_scale: object = "dynamic",
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        **kwargs: object,
    ) -> None:
        if dtype not in (None, "bfloat16", torch.bfloat16):
            raise ValueError(f"AmpOptimWrapper: dtype: expected bfloat16 on the CPU, got {dtype}")
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.cast_dtype = torch.bfloat16


def amp_on_cpu() -> None:
    """``--amp`` stops at ``AmpOptimizerWrapper is only available … gpu``."""
    if get_device() != "cpu":
        return
    try:
        AmpOptimWrapper(optimizer=torch.optim.SGD([torch.zeros(1)], lr=0.0))
    except AssertionError:
        OPTIM_WRAPPERS.register_module("AmpOptimWrapper", module=CpuAmpOptimWrapper, force=True)


# Several processes


def distributed_without_cuda() -> None:
    """Launchers call ``torch.cuda.set_device`` and DDP is given a GPU's number, GPU or not."""
    if get_device() != "cpu" or hasattr(dist_utils, "_dcnzoo"):
        return
    dist_utils._dcnzoo = True  # applied

    def wrap_launcher(launch):
        @functools.wraps(launch)
        def wrapper(backend: str = "nccl", **kwargs: object) -> None:
            with mock.patch.object(torch.cuda, "set_device"):
                launch(backend="gloo" if backend == "nccl" else backend, **kwargs)

        return wrapper

    for name in ("_init_dist_pytorch", "_init_dist_slurm", "_init_dist_mpi"):
        setattr(dist_utils, name, wrap_launcher(getattr(dist_utils, name)))

    construct = MMDistributedDataParallel.__init__

    @functools.wraps(construct)
    def on_cpu(self, module: torch.nn.Module, *args: object, **kwargs: object) -> None:
        construct(self, module, *args, **{**kwargs, "device_ids": None})

    MMDistributedDataParallel.__init__ = on_cpu


class _Sum(torch.autograd.Function):
    """The sum over the processes of a group; so is that of the gradients."""

    @staticmethod
    def forward(ctx, group: object, tensor: torch.Tensor) -> torch.Tensor:
        ctx.group = group
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return None, _Sum.apply(ctx.group, gradient)


def sync_batch_norm_on_cpu() -> None:
    """``SyncBN``, as in InternImage's Cascade R-CNN, trains on GPUs only.

    (``SyncBatchNorm expected input tensor to be on GPU``.) On the CPU it is written out here, over gloo.
    """
    forward = torch.nn.SyncBatchNorm.forward
    if hasattr(forward, "__wrapped__"):
        return

    @functools.wraps(forward)
    def on_cpu(self, input: torch.Tensor) -> torch.Tensor:
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and several and input.device.type == "cpu"):
            return forward(self, input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.new_tensor([x.numel() / x.shape[1]])  # processes may have batches of different sizes
        sums = _Sum.apply(self.process_group, torch.cat([x.sum(axes), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - mean.view(shape)
        variance = _Sum.apply(self.process_group, centred.square().sum(axes)) / count
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            unbiased = variance.detach() * (count / (count - 1))
            self.running_mean.lerp_(mean.detach().to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    torch.nn.SyncBatchNorm.forward = on_cpu
    if get_device() == "cpu":  # DDP asks whether there is such a layer, and refuses it without a GPU
        MMDistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None


# Optimizers


def offsets_have_their_learning_rate() -> None:
    """``dcn_offset_lr_mult`` knows mmcv's two convolutions only, and passes over every other layer.

    What predicts offsets or masks in a layer of :mod:`dcnzoo.layers` has that rate too. As there,
    ``custom_keys`` that name a parameter go before.
    """
    add = DefaultOptimWrapperConstructor.add_params
    if hasattr(add, "__wrapped__"):
        return

    @functools.wraps(add)
    def add_params(
        self, params: list[dict], module: torch.nn.Module, prefix: str = "", is_dcn_module: object = None
    ) -> None:
        before = len(params)
        add(self, params, module, prefix, is_dcn_module)
        factor = self.paramwise_cfg.get("dcn_offset_lr_mult")
        if factor is None or not isinstance(module, OFFSET_PREDICTORS):
            return
        names = {id(parameter): f"{prefix}.{name}" for name, parameter in module.named_parameters()}
        for group in params[before:]:
            name = names[id(group["params"][0])]
            if not any(key in name for key in self.paramwise_cfg.get("custom_keys", {})):
                group["lr"] = self.base_lr * factor

    DefaultOptimWrapperConstructor.add_params = add_params


# Models


def roi_align_without_torchvision() -> None:
    """``RoIAlign(use_torchvision=True)``, as in CrowdDet's config, where there is no torchvision.

    (``No module named 'torchvision'``.) Its RoIAlign is mmcv's, with averages whatever ``pool_mode`` says.
    """
    from mmcv.ops import RoIAlign

    construct = RoIAlign.__init__
    if find_spec("torchvision") or hasattr(RoIAlign, "_dcnzoo"):
        return
    RoIAlign._dcnzoo = True  # applied

    @functools.wraps(construct)
    def on_own_operator(self, *args: object, **kwargs: object) -> None:
        construct(self, *args, **kwargs)
        if self.use_torchvision:
            self.use_torchvision, self.pool_mode = False, "avg"

    RoIAlign.__init__ = on_own_operator


def sync_batch_norm_alone() -> None:
    """``MMSyncBN``, as in strong_baselines' configs, in one process: it is BatchNorm there, as ``SyncBN`` is.

    (``Default process group has not been initialized`` on building it, before mmengine can revert it.)
    """
    from mmcv.ops import SyncBatchNorm

    construct = SyncBatchNorm.__init__
    if hasattr(construct, "__wrapped__"):
        return

    @functools.wraps(construct)
    def alone(self, *args: object, **kwargs: object) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            construct(self, *args, **kwargs)
        else:
            with mock.patch.object(torch.distributed, "get_world_size", return_value=1):
                construct(self, *args, **kwargs)

    SyncBatchNorm.__init__ = alone


def configs_take_to_deformable() -> None:
    """``to_deformable=dict(where=…, kind='v2')`` in the config of any module, as a backbone without ``dcn``.

    What is built goes through :func:`dcnzoo.to_deformable`. A backbone that has no ``dcn`` says what to write
    in its place.
    """
    for registry in {id(r): r for r in (MODELS, *MODELS.children.values())}.values():
        if not hasattr(registry.build_func, "__wrapped__"):
            registry.build_func = _with_to_deformable(registry.build_func)


def _with_to_deformable(build: Callable) -> Callable:
    @functools.wraps(build)
    def build_deformable(cfg: object, *args: object, **kwargs: object) -> object:
        if not isinstance(cfg, dict):
            return build(cfg, *args, **kwargs)
        options, plain = cfg.get("to_deformable"), cfg.copy()
        plain.pop("to_deformable", None)
        try:
            module = build(plain, *args, **kwargs)
        except TypeError as error:
            unexpected = re.search(r"unexpected keyword argument '(stage_with_)?dcn'", str(error))
            if "dcn" not in cfg or not unexpected:
                raise
            for name in ("dcn", "stage_with_dcn"):
                plain.pop(name, None)
            raise ValueError(_instead_of_dcn(cfg, build(plain, *args, **kwargs))) from None
        if options is not None:
            if not isinstance(options, dict):
                options = {"where": options}
            try:
                inspect.signature(to_deformable).bind(module, **options)
            except TypeError as error:
                raise ValueError(
                    f"{type(module).__name__}: to_deformable: expected a pattern or the arguments of "
                    f"dcnzoo.to_deformable, such as dict(where='*.conv2', kind='v2'), got {options}: {error}"
                ) from None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "to_deformable: .* left as they are")
                found = to_deformable(module, **options)
            left = "".join(f"; {name} left: {why}" for name, why in found.refused.items())
            replaced = f"{len(found.replaced)} convolutions replaced{left}"
            print_log(f"{type(module).__name__}: to_deformable: {replaced}", "current")
        return module

    return build_deformable


def _instead_of_dcn(cfg: dict, module: torch.nn.Module) -> str:
    spatial = [
        name
        for name, child in module.named_modules()
        if type(child) is torch.nn.Conv2d and max(child.kernel_size) > 1
    ]
    where = f"{spatial[-1].partition('.')[0]}.*" if spatial else "*"
    return (
        f"{type(module).__name__}: dcn: expected an argument of this module, which has none; write "
        f"to_deformable=dict(where='{where}', kind='v2') in place of dcn={cfg['dcn']!r}: where is a pattern "
        f"for the names of convolutions, here {spatial[-1] if spatial else 'none'} and others"
    )


def ssd_predicts() -> None:
    """Prediction asks every dense head for ``loss_cls``; SSD's has none."""
    from mmdet.models import SSDHead

    if not hasattr(SSDHead, "loss_cls"):
        SSDHead.loss_cls = None


def cascade_rpn_alone() -> None:
    """MMDetection's config of Cascade RPN as a whole detector is from before its head's last change.

    (``missing 1 required positional argument: 'num_classes'``, then ``unexpected keyword argument
    'sampling'``.) An RPN has one class, and it samples where ``train_cfg`` has a sampler.
    """
    from mmdet.models import CascadeRPNHead

    construct = CascadeRPNHead.__init__
    if hasattr(construct, "__wrapped__"):
        return

    @functools.wraps(construct)
    def as_configured(self, *args: object, **kwargs: object) -> None:
        if not args:
            kwargs.setdefault("num_classes", 1)
        if "stages" in kwargs:
            stages = ({k: v for k, v in stage.items() if k != "sampling"} for stage in kwargs["stages"])
            kwargs["stages"] = [ConfigDict(stage) for stage in stages]
        construct(self, *args, **kwargs)

    CascadeRPNHead.__init__ = as_configured


def teachers_are_found() -> None:
    """Distillation configs name their teacher's as seen from MMDetection's repository.

    (``configs/gfl/….py``, which is in the installed package, wherever one is.)
    """
    import mmdet
    from mmdet.models import KnowledgeDistillationSingleStageDetector as Detector

    construct = Detector.__init__
    if hasattr(construct, "__wrapped__"):
        return

    @functools.wraps(construct)
    def with_found_teacher(self, *args: object, **kwargs: object) -> None:
        teacher = kwargs.get("teacher_config")
        if isinstance(teacher, str | Path) and not Path(teacher).is_file():
            installed = Path(mmdet.__file__).parent / ".mim" / teacher
            if installed.is_file():
                kwargs["teacher_config"] = installed
        construct(self, *args, **kwargs)

    Detector.__init__ = with_found_teacher


def masks_outside_the_image() -> None:
    """A mask whose box lies outside the image, or is inverted, ends prediction on the CPU (QueryInst).

    (``upper bound and lower bound inconsistent with step sign``: without a GPU only the boxes' region is
    computed, and it ends before it begins.) Outside there is nothing to paste; into an inverted box the mask
    is pasted the other way round, as on a GPU.
    """
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    paste = fcn_mask_head._do_paste_mask
    with suppress(RuntimeError):
        for box in ([-9.0, 1.0, -5.0, 3.0], [1.0, 9.0, 3.0, 4.0]):
            paste(torch.ones(1, 1, 2, 2), torch.tensor([box]), 12, 12)
        return

    @functools.wraps(paste)
    def where_the_image_is(
        masks: Tensor,  # [N, 1, H, W]
        boxes: Tensor,  # [N, 4], x1, y1, x2, y2
        img_h: int,
        img_w: int,
        skip_empty: bool = True,
    ) -> tuple[Tensor, tuple[slice, ...]]:
        if not skip_empty:
            return paste(masks, boxes, img_h, img_w, skip_empty)
        corners = boxes.view(-1, 2, 2)
        low, high = corners.amin(1), corners.amax(1)
        first = (low.amin(0).floor() - 1).clamp(min=0)
        end = (high.amax(0).ceil() + 1).minimum(boxes.new_tensor((img_w, img_h)))
        if not (first < end).all():
            return masks.new_zeros(len(masks), 0, 0), (slice(0, 0), slice(0, 0))
        inverted = (corners[:, 0] > corners[:, 1])[..., None, None, None]  # [N, 2, 1, 1, 1], in x, in y
        masks = torch.where(inverted[:, 0], masks.flip(3), masks)
        masks = torch.where(inverted[:, 1], masks.flip(2), masks)
        return paste(masks, torch.cat([low, high], 1), img_h, img_w, skip_empty)

    fcn_mask_head._do_paste_mask = where_the_image_is
