"""How the processes of a launcher join: they meet at a store, then connect to each other."""

import contextlib
import json
import os
import socket
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta

from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier, get_rank, init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing
from torch import distributed

from dcnzoo.utils.errors import JointError, UserError, one_line
from dcnzoo.utils.network import address_towards, interface_of
from dcnzoo.utils.text import few

SECONDS = 300  # in which all ranks come, unless env_cfg.dist_cfg has a timeout
hosts: list[str] = []  # of the ranks
_stores: list[distributed.Store] = []  # of the meetings; rank 0 may serve the others


@contextlib.contextmanager
def joined(cfg: Config) -> Iterator[None]:
    """Context in which the processes of the launcher are one run. Then they are separate ones again.

    Work of rank 0 alone, such as a report, comes after it: the others may have ended, and a barrier of a data
    set would wait for them. A group that the caller has made stays.

    Raises:
        UserError: the port is in use, or the launcher has not set its variables.
        JointError: a rank is missing, or has refused before it joined.
    """
    if cfg.launcher == "none" or is_distributed():
        hosts[:] = all_gather_object(socket.gethostname())
        yield
        return
    env = cfg.get("env_cfg") or {}
    for line in ("Setting ..._NUM_THREADS", "`broadcast_buffers` is deprecated"):
        warnings.filterwarnings("ignore", line)  # of mmengine, once per rank
    set_multi_processing(**env.get("mp_cfg", {}), distributed=True)
    settings = env.get("dist_cfg", {})
    with _join_errors(cfg.launcher):
        _set_variables(cfg.launcher)
        _meet(settings.get("timeout") or SECONDS)
        if len(_stores) > 1:  # rank 0's store has the addresses of the group before, where nobody answers
            store = distributed.PrefixStore("group", _stores[-1])
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            settings = {**settings, "store": store, "rank": rank, "world_size": size}
        init_dist(cfg.launcher, **settings)
    hosts[:] = all_gather_object(socket.gethostname())
    yield  # an error ends the process
    barrier()
    distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process of rank 0, also after :func:`joined`."""
    has_left = not is_distributed() and len(hosts) > 1
    return (int(os.environ["RANK"]) if has_left else get_rank()) == 0


def launch_name() -> str:
    """Return a name that stays when a launcher starts this process again; empty if it does not."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:  # the parent process is torchrun
        return f"torchrun {os.getppid()} on {socket.gethostname()}"
    return f"job {env['SLURM_JOB_ID']}, step {env.get('SLURM_STEP_ID')}" if "SLURM_PROCID" in env else ""


@contextlib.contextmanager
def refusals(launcher: str) -> Iterator[None]:
    """Context of what each process does before it joins: an error ends those that wait for it, too."""
    before = len(_stores)
    try:
        yield
    except Exception as error:
        if launcher != "none" and len(_stores) == before and not is_distributed():
            with contextlib.suppress(KeyError, distributed.DistError):
                _set_variables(launcher)
                _meet(SECONDS, error.args if isinstance(error, UserError) else [one_line(error)])
        raise


def _set_variables(launcher: str) -> None:
    """Set the variables of torchrun under Slurm and MPI, of which mmengine sets most later."""
    env = os.environ
    if launcher == "slurm":
        if "SLURM_JOB_ID" in env:  # jobs may share a machine
            job, step = (int(env.get(f"SLURM_{name}_ID", 0)) for name in ("JOB", "STEP"))
            env.setdefault("MASTER_PORT", str(20000 + (job + 1009 * step) % 12000))
        env.update(RANK=env["SLURM_PROCID"], WORLD_SIZE=env["SLURM_NTASKS"])
        if "MASTER_ADDR" not in env:
            command = ["scontrol", "show", "hostname", env["SLURM_NODELIST"]]
            env["MASTER_ADDR"] = subprocess.check_output(command, text=True).split()[0]
    if launcher == "mpi":
        for name, own in (("RANK", "RANK"), ("WORLD_SIZE", "SIZE"), ("LOCAL_RANK", "LOCAL_RANK")):
            env[name] = env[f"OMPI_COMM_WORLD_{own}"]
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        env[name]  # KeyError if the launcher has not set it
    env.setdefault("MASTER_PORT", "29500")


@contextlib.contextmanager
def _join_errors(launcher: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise UserError(
            f"launcher: expected a process that {launcher} has started, found no {error.args[0]}"
        ) from error
    except RuntimeError as error:  # also torch's DistError
        port, text = os.environ.get("MASTER_PORT"), one_line(error)
        if "EADDRINUSE" in text:
            raise UserError(
                f"port: expected a free one, got {port}, which is in use on {socket.gethostname()}; the "
                "variable PORT of the scripts, or MASTER_PORT, selects another one"
            ) from error
        network = os.environ.get("GLOO_SOCKET_IFNAME", "that of the host name")
        raise UserError(
            f"launcher: the processes cannot join: {text}. The network interface is {network}; "
            "GLOO_SOCKET_IFNAME, for NCCL NCCL_SOCKET_IFNAME, selects another one"
        ) from error


def _meet(seconds: float, refusal: Sequence[object] = ()) -> None:
    """Wait until all ranks have come, before they connect to each other.

    Args:
        seconds: to wait at most.
        refusal: lines of an error of this rank.

    Raises:
        JointError: on all ranks; one is missing, or has refused.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit, store = timedelta(seconds=seconds), _store(rank, size, seconds)

    def end(lines: Sequence[str]) -> None:
        store.compare_set("error", "", json.dumps(lines))
        store.set("decided", "")

    store.set(f"rank {rank}", "")
    if refusal:
        end([f"rank {rank} on {socket.gethostname()}: {line}" for line in refusal])
    if store.add("come", 1) == size:
        store.set("decided", "")
    try:
        store.wait(["decided"], limit)
    except distributed.DistStoreError:
        missing = [f"rank {n} of {size}" for n in range(size) if not store.check([f"rank {n}"])]
        end([f"launcher: {few(missing)} missing after {seconds:.0f} seconds"])
        size -= len(missing)
    if not store.check(["error"]):
        return
    if store.add("told", 1) >= size:
        store.set("all told", "")
    with contextlib.suppress(distributed.DistError):  # this process may serve the others
        store.wait(["all told"], min(limit, timedelta(seconds=60)))
    raise JointError(*json.loads(store.get("error")))


def _store(rank: int, size: int, seconds: float) -> distributed.Store:
    """Connect to the store of torchrun, or else of rank 0, for a meeting; choose gloo's network interface."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if size > int(os.environ.get("LOCAL_WORLD_SIZE", 1)) and (name := interface_of(address_towards(address))):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank == 0 and not is_torchruns
    limit = timedelta(seconds=seconds)
    try:
        store = distributed.TCPStore(
            address, port, None, serves, limit, wait_for_workers=False, multi_tenant=True
        )
    except distributed.DistNetworkError as error:
        if serves:
            raise
        raise JointError(
            f"launcher: rank 0 of {size} missing: no answer at {address}:{port} after {seconds:.0f} seconds"
        ) from error
    # torchrun's store has the meetings before. That of rank 0 is new, and machines count their own restarts
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0) if is_torchruns else 0
    _stores.append(distributed.PrefixStore(f"dcnzoo/{attempt}/{len(_stores)}", store))
    return _stores[-1]
