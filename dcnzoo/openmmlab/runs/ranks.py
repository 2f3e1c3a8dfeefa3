"""The processes of a distributed run agree, exchange their results and name those that have ended."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier, broadcast_object_list, get_rank, is_distributed
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import distributed

from dcnzoo.openmmlab.checkpoints import content_digest
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.datasets.digest import data_digest
from dcnzoo.openmmlab.runs.joining import hosts
from dcnzoo.utils.errors import JointError, UserError, describe, one_line
from dcnzoo.utils.lock import OWNER
from dcnzoo.utils.text import counted, few

Result = TypeVar("Result")
# settings that may differ between machines
_OF_A_MACHINE = {
    *("env_cfg", "launcher", "load_from", "resume", "data_root", "save_dir", "out_dir"),
    *("num_workers", "persistent_workers", "pin_memory", "prefetch_factor", "backend_args"),
}
_ANSWER = 5  # seconds in which the ranks that are alive report after a fault


# Agree


def exchange(decide: Callable[[], Result]) -> Result:
    """Return on all ranks what rank 0 decides; if it refuses, all end."""
    if not is_distributed():
        return decide()
    message: list[Any] = [None, ()]
    if get_rank() == 0:
        try:
            message[0] = decide()
        except UserError as error:
            message[1] = error.args
        except Exception as error:
            message[1] = [describe(error)]
    broadcast_object_list(message)
    decision, refusal = message
    if refusal:
        _refuse(*(f"rank 0 on {hosts[0]}: {line}" for line in refusal))
    return decision


def _refuse(*lines: str) -> NoReturn:
    """End all ranks, after all of them have the lines: the first one to end cuts off the others."""
    with contextlib.suppress(Exception):  # a rank that has left the barrier may have ended
        barrier()
    raise JointError(*lines)


def agree(seen: Mapping[str, object]) -> None:
    """Require that all ranks see the same.

    Raises:
        JointError: on all ranks; it names the first rank with a difference.
    """
    if not is_distributed():
        return
    expected, *others = all_gather_object(dict(seen))
    for rank, own in enumerate(others, 1):
        for name in (name for name in {**expected, **own} if expected.get(name) != own.get(name)):
            text = f"{name}: expected {expected.get(name)}, as on rank 0 on {hosts[0]}, got {own.get(name)}"
            _refuse(f"rank {rank} on {hosts[rank]}: {text}")


def agree_on_config(cfg: Config) -> None:
    """Require the same settings, except paths, and the same versions; name machines with other folders."""
    if not is_distributed():
        return
    versions = {f"version of {name}": version(name) for name in ("torch", "mmengine", "mmdet", "dcnzoo")}
    # other processes in place of those of this run: two jobs with one port
    agree({"work_dir": cfg.work_dir, **versions, **_settings(cfg)})
    owner = Path(cfg.work_dir, OWNER)  # rank 0 of a training has written it
    texts = all_gather_object(owner.read_text() if owner.is_file() else None)
    others = sorted({host for host, text in zip(hosts, texts, strict=True) if text != texts[0]})
    if others and get_rank() == 0:
        print(
            f"work_dir: {few(others)} has another folder {cfg.work_dir} than rank 0 on {hosts[0]}, which "
            "writes all files; resume=True requires a folder that all machines share"
        )


def _settings(cfg: Config) -> dict[str, str]:
    values = {}
    for path, node in dicts({key: value for key, value in cfg.items() if key not in _OF_A_MACHINE}):
        for key, value in node.items():
            is_path = isinstance(value, str) and "/" in value and "://" not in value
            if not (is_path or key in _OF_A_MACHINE) and next(dicts(value), None) is None:
                values[f"{path}.{key}".lstrip(".")] = getattr(value, "__qualname__", str(value))
    return values


class AgreementHook(Hook):
    """Before the first step, require the same data and weights on all ranks."""

    priority = "VERY_LOW"

    def before_run(self, runner: Runner) -> None:
        if not is_distributed():
            return
        seen: dict[str, object] = {}
        for name in ("train", "val", "test"):
            loop = getattr(runner, f"_{name}_loop")
            if not isinstance(loop, dict | None):
                data = loop.dataloader.dataset
                seen[f"{name}_dataloader"] = (
                    f"{counted(len(data), 'pictures')} (names, annotations: {data_digest(data)})"
                )
        if (file := runner._load_from) and "://" not in file:
            seen["resume" if runner._resume else "weights"] = f"{Path(file).name} ({content_digest(file)})"
        agree(seen)


# Exchange results


def build_evaluator(runner: Runner, build: Callable, evaluator: Any) -> Evaluator:
    """Build an evaluator whose metrics exchange their results by the process group.

    By default, mmengine's write them to files in the current folder, which machines need not share. A metric
    with ``collect_dir`` or ``collect_device`` in the config keeps its setting.
    """
    built = build(runner, evaluator)
    own = evaluator.get("metrics", evaluator) if isinstance(evaluator, Mapping) else evaluator
    own = own if isinstance(own, list | tuple) else [own]
    for metric, setting in zip(built.metrics, own, strict=False):
        if isinstance(setting, Mapping) and not {"collect_dir", "collect_device"} & setting.keys():
            metric.collect_device = "gpu"  # the name of this way, also without a GPU
    return built


# End


@contextlib.contextmanager
def faults(hint: str = "") -> Iterator[None]:
    """Context that names the ranks that have ended if the connection to them is lost.

    Args:
        hint: what to do then.

    Raises:
        UserError: the connection was lost.
    """
    try:
        yield
    except Exception as error:
        is_fault = isinstance(error, distributed.DistError) or re.search(r"gloo/|NCCL|TCPStore", str(error))
        if not (is_distributed() and is_fault):
            raise
        ended = _ended_ranks()
        names = few([f"rank {rank} on {hosts[rank]}" for rank in ended], 4)
        if len(ended) > 1:  # a busy rank may only be late
            names = f"one or more of {names}"
        # a stopped process, or one behind a cut link, looks the same
        reason = (
            f"{names} ended or cannot be reached" if ended else "the connection of the processes was lost"
        )
        raise UserError(f"{reason}{hint} ({one_line(error)})") from error


def _ended_ranks() -> list[int]:
    """Return the ranks that do not report within some seconds; rank 0, if its store cannot be reached."""
    ranks: list[int] = [0] if get_rank() else []

    def ask() -> None:
        with contextlib.suppress(Exception):  # the store has ended, or torch has renamed it
            store = distributed.distributed_c10d._get_default_store()
            store.set(f"dcnzoo/alive/{get_rank()}", "")
            end = time.monotonic() + _ANSWER
            while time.monotonic() < end:
                ranks[:] = [n for n in range(len(hosts)) if not store.check([f"dcnzoo/alive/{n}"])]
                if not ranks:
                    break
                time.sleep(0.2)

    thread = threading.Thread(target=ask, daemon=True)  # a machine without network never answers
    thread.start()
    thread.join(2 * _ANSWER)
    return ranks
