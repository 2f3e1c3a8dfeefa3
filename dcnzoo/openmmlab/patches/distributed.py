"""Mixed precision and distributed training on machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.dist import utils as dist_utils
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes

# Mixed precision


class CpuAmpOptimWrapper(AmpOptimWrapper):
    """``AmpOptimWrapper`` for the CPU: bfloat16 autocast, which needs no loss scaling."""

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


def amp_needs_a_gpu() -> bool:
    try:
        AmpOptimWrapper(optimizer=torch.optim.SGD([torch.zeros(1)], lr=0.0))
    except AssertionError:
        return True
    return False


def amp_on_cpu(changes: Changes) -> None:
    changes.set_item(OPTIM_WRAPPERS.module_dict, "AmpOptimWrapper", CpuAmpOptimWrapper)


# Several processes


def distributed_without_cuda(changes: Changes) -> None:
    def launch_on_cpu(launch: Callable, backend: str = "nccl", **kwargs: object) -> None:
        with Changes() as during_launch:
            during_launch.set(torch.cuda, "set_device", lambda device: None)
            launch(backend="gloo" if backend == "nccl" else backend, **kwargs)

    def construct(original: Callable, self, module: nn.Module, *args: object, **kwargs: object) -> None:
        original(self, module, *args, **{**kwargs, "device_ids": None})

    for name in ("_init_dist_pytorch", "_init_dist_slurm", "_init_dist_mpi"):
        changes.wrap(dist_utils, name, launch_on_cpu)
    changes.wrap(MMDistributedDataParallel, "__init__", construct)


class _Sum(torch.autograd.Function):
    """Sum a tensor over the processes of a group, and its gradient likewise."""

    @staticmethod
    def forward(ctx, group: object, tensor: Tensor) -> Tensor:
        ctx.group = group
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return None, _Sum.apply(ctx.group, gradient)


class CpuSyncBatchNorm(nn.SyncBatchNorm):
    """``SyncBatchNorm`` that also trains on the CPU, over gloo. Batch sizes may differ between processes."""

    def forward(self, input: Tensor) -> Tensor:
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and several and input.device.type == "cpu"):
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.new_tensor([x.numel() / x.shape[1]])  # batch sizes may differ between processes
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


def train_sync_batch_norm_on_cpu(model: nn.Module) -> None:
    """Change the class of each ``SyncBatchNorm`` in a model to :class:`CpuSyncBatchNorm`.

    Registering another ``SyncBN`` is not enough: RTMDet and ``sync_bn='torch'`` create torch's class
    directly.
    """
    for layer in model.modules():
        # subclasses too: mmengine registers one as SyncBN
        if isinstance(layer, nn.SyncBatchNorm) and type(layer).forward is nn.SyncBatchNorm.forward:
            layer.__class__ = CpuSyncBatchNorm


def sync_batch_norm_on_cpu(changes: Changes) -> None:
    """Replace the method of DDP that rejects ``SyncBatchNorm`` on the CPU."""
    changes.set(
        MMDistributedDataParallel,
        "_passing_sync_batchnorm_handle",
        lambda ddp, module: train_sync_batch_norm_on_cpu(module),
    )
