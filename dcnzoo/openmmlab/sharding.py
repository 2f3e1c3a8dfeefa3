"""Shard a detector across processes: mmengine's strategy for torch's ``fully_shard`` (FSDP2)."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.registry import STRATEGIES
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dcnzoo.openmmlab.patches.distributed import train_sync_batch_norm_on_cpu


@STRATEGIES.register_module()
class FullyShardStrategy(DDPStrategy):
    """Shards parameters, gradients and optimizer states across the processes.

    mmengine's ``FSDPStrategy`` uses torch's first FSDP, which requires a GPU; this strategy also runs on the
    CPU. The parameters of a block are gathered when it runs and freed afterwards. Checkpoints are ordinary
    single files: a run can be resumed with any number of processes, or without this strategy. A single
    process shards nothing.

    Args:
        shard: names of the classes whose modules are gathered one at a time, such as ``['Block']`` for
            (Flash)InternImage; derived classes are included. The rest of the model is gathered together.
        reshard_after_forward: free a block's parameters between its forward and backward pass. False keeps
            them, which costs memory and saves one gather.
        **kwargs: of mmengine's ``DDPStrategy``.

    Raises:
        ValueError: the model has no module of one of these classes.
    """

    def __init__(self, *, shard: Sequence[str], reshard_after_forward: bool = True, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.shard = [shard] if isinstance(shard, str) else list(shard)
        self.reshard_after_forward = reshard_after_forward

    def convert_model(self, model: nn.Module) -> nn.Module:
        return (DDPStrategy if is_distributed() else SingleDeviceStrategy).convert_model(self, model)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        model = self.convert_model(model).to(get_device())
        if not is_distributed():
            return model
        if get_device() == "cpu":
            train_sync_batch_norm_on_cpu(model)
        modules = [(module, {cls.__name__ for cls in type(module).__mro__}) for module in model.modules()]
        for name in self.shard:
            if not any(name in names for _, names in modules):
                there = sorted({type(module).__name__ for module, _ in modules})
                raise ValueError(
                    f"{type(self).__name__}: shard: expected classes of the model's modules, got {name!r}; "
                    f"available: {', '.join(there)}"
                )
        blocks = [module for module, names in modules if names.intersection(self.shard)]
        for part in [*reversed(blocks), model]:  # inner modules first
            fully_shard(part, reshard_after_forward=self.reshard_after_forward)
        return model

    def save_checkpoint(self, filename: str, *, save_optimizer: bool = True, **kwargs: object) -> None:
        if is_main_process():
            super().save_checkpoint(filename, save_optimizer=save_optimizer, **kwargs)
            return
        self.model_state_dict()  # gathering is collective: all processes must take part
        if save_optimizer and hasattr(self, "optim_wrapper"):
            self.optim_state_dict()

    def model_state_dict(self) -> dict:
        state = self.model.state_dict()
        for name, value in state.items():  # in place, to keep its attribute _metadata
            state[name] = _whole(value)
        return state

    def load_model_state_dict(self, state_dict: dict, **kwargs: object) -> None:
        super().load_model_state_dict(self.shard_like_model(state_dict), **kwargs)

    def shard_like_model(self, state_dict: dict) -> dict:
        """Return this process's shard of each tensor."""
        own = self.model.state_dict()
        parts = {name.removeprefix("module."): value for name, value in state_dict.items()}
        return {name: _part(value, own.get(name)) for name, value in parts.items()}

    def optim_state_dict(self) -> dict:
        saved = super().optim_state_dict()
        states = {i: {k: _whole(v) for k, v in state.items()} for i, state in saved["state"].items()}
        return {**saved, "state": states}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        parameters = [p for group in self.optim_wrapper.optimizer.param_groups for p in group["params"]]
        states = {
            i: {k: _part(v, parameters[i]) for k, v in state.items()}
            for i, state in state_dict["state"].items()
        }
        super().load_optim_state_dict({**state_dict, "state": states})


def _whole(value: object) -> object:
    """Gather a tensor into the first process's main memory: a GPU may not have room for all of them."""
    if not isinstance(value, Tensor):
        return value
    tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return tensor.detach().cpu() if is_main_process() else None


def _part(value: object, like: Tensor | None) -> object:
    """Return this process's shard of ``value``, sharded like the tensor ``like``."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
