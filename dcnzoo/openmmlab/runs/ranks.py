"""Connect the processes of a distributed run, share decisions, and compare their settings and data.

If a rank fails, the launcher (torchrun, srun or mpirun) names it and ends the others.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mmengine.config import Config
from mmengine.dist import (
    all_gather_object,
    barrier,
    broadcast_object_list,
    get_rank,
    init_dist,
    is_distributed,
)
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch import distributed

from dcnzoo.openmmlab.checkpoints import content_digest
from dcnzoo.openmmlab.classes import data_sets
from dcnzoo.openmmlab.config.tree import annotation_file, child, dicts
from dcnzoo.openmmlab.runs.network import address_towards, interface_of
from dcnzoo.utils.errors import JointError, UserError, describe
from dcnzoo.utils.text import counted

Result = TypeVar("Result")
# settings that may differ between machines
_OF_A_MACHINE = {
    *("env_cfg", "launcher", "load_from", "resume", "data_root", "save_dir", "out_dir"),
    *("num_workers", "persistent_workers", "pin_memory", "prefetch_factor", "backend_args"),
}
_first = True


@contextlib.contextmanager
def joined(cfg: Config) -> Iterator[None]:
    """Context in which the launcher's processes form a process group, which is destroyed at the end.

    Do the work of rank 0 alone, such as a report, after this context: in it, a data set's barrier would wait
    for the other ranks, which may have ended. A group that the caller has created is kept.
    """
    global _first
    if cfg.launcher == "none" or is_distributed():
        yield
        return
    env = cfg.get("env_cfg") or {}
    if "SLURM_JOB_ID" in os.environ:  # jobs may share a machine
        os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ["SLURM_JOB_ID"]) % 12000))
    if cfg.launcher == "mpi":  # mmengine's runner reads LOCAL_RANK, but its mpi launcher does not set it
        os.environ.setdefault("LOCAL_RANK", os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])
    # between machines, gloo would use the host name's interface: on Debian and Ubuntu, that is the loopback
    if cfg.launcher == "slurm":
        total, local = int(os.environ.get("SLURM_NNODES", 1)), 1  # machines
    else:
        total, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    first = os.environ.get("MASTER_ADDR") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if total > local and (interface := interface_of(address_towards(first))):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    set_multi_processing(**env.get("mp_cfg", {}), distributed=True)
    init_dist(cfg.launcher, **env.get("dist_cfg", {}))
    _first = get_rank() == 0
    yield  # an error ends the process
    barrier()
    distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process of rank 0, also after :func:`joined`."""
    return get_rank() == 0 if is_distributed() else _first


def exchange(decide: Callable[[], Result]) -> Result:
    """Return the decision of rank 0 on all ranks; if rank 0 raises an error, all ranks raise it."""
    if not is_distributed():
        return decide()
    message: list[Any] = [None, ()]
    if get_rank() == 0:
        try:
            message[0] = decide()
        except Exception as error:
            message[1] = error.args if isinstance(error, UserError) else [describe(error)]
    broadcast_object_list(message)
    result, lines = message
    return _refuse(*lines) if lines else result


def _refuse(*lines: str) -> NoReturn:
    """Raise JointError on all ranks, once all have the lines: if one ends, the launcher ends the others."""
    with contextlib.suppress(Exception):  # a rank that has left the barrier may have ended
        barrier()
    raise JointError(*lines)


def agree(seen: Mapping[str, object]) -> None:
    """Raise JointError on all ranks if a rank has other values than rank 0; the error names this rank."""
    (first, expected), *others = all_gather_object((socket.gethostname(), dict(seen)))
    for rank, (host, own) in enumerate(others, 1):
        for name in (name for name in {**expected, **own} if expected.get(name) != own.get(name)):
            text = f"{name}: expected {expected.get(name)}, as on rank 0 on {first}, got {own.get(name)}"
            _refuse(f"rank {rank} on {host}: {text}")


class AgreementHook(Hook):
    """Before the first step, require the same settings, versions, data and weights on all ranks.

    Args:
        cfg: the config. Its paths and machine-specific settings may differ between ranks.
    """

    priority = "VERY_LOW"

    def __init__(self, cfg: Config) -> None:
        self._cfg = cfg

    def before_run(self, runner: Runner) -> None:
        if not is_distributed():
            return
        seen = {"work_dir": self._cfg.work_dir, **_settings(self._cfg)}
        seen |= {f"version of {name}": version(name) for name in ("torch", "mmengine", "mmdet", "dcnzoo")}
        for name in ("train", "val", "test"):
            loop = getattr(runner, f"_{name}_loop")
            if not isinstance(loop, dict | None):
                seen[f"{name}_dataloader"] = counted(len(loop.dataloader.dataset), "pictures")
        for loader, dataset, _ in data_sets(self._cfg):
            if loader in seen:
                file = annotation_file(dataset)
                seen[f"{loader}, {Path(file).name}"] = content_digest(file)
        if (file := runner._load_from) and "://" not in file:
            seen["resume" if runner._resume else "weights"] = f"{Path(file).name} ({content_digest(file)})"
        agree(seen)


def _settings(cfg: Config) -> dict[str, object]:
    """Return the settings by their paths, without those that may differ between machines."""
    values: dict[str, object] = {}
    for path, node in dicts({key: value for key, value in cfg.items() if key not in _OF_A_MACHINE}):
        for key, value in node.items():
            is_path = isinstance(value, str) and "/" in value and "://" not in value
            if not (is_path or key in _OF_A_MACHINE) and next(dicts(value), None) is None:
                values[child(path, key)] = getattr(value, "__qualname__", str(value))
    return values
