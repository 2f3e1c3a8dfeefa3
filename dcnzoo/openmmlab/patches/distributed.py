"""Mixed precision and distributed training on machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.dist import utils as dist_utils
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

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
    optimizer: Any = SimpleNamespace(param_groups=[])  # one of torch would import torch._dynamo: seconds
    try:
        AmpOptimWrapper(optimizer=optimizer)
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
