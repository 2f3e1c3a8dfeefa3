"""Run code with hard-coded CUDA calls on the CPU: ``dcnzoo run --cpu``.

A function mode of torch changes calls of tensors and of functions that create them, in the thread that
enters it. It does not receive calls of modules, ``torch.load`` and ``torch.cuda``, so these are patched.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dcnzoo.compat.patches import Changes

_NO_OPS = ("synchronize", "set_device", "ipc_collect", "reset_peak_memory_stats")


def _cpu(value: object) -> object:
    """``value``, or the CPU if it is a CUDA device, as an object, a name or an index."""
    if isinstance(value, str | torch.device):
        return "cpu" if str(value).partition(":")[0] == "cuda" else value
    return "cpu" if type(value) is int else value


def _to(to, owner: Tensor | nn.Module, *args: object, device: object = None, **kwargs: object):
    devices = () if device is None else (_cpu(device),)
    return to(owner, *devices, *map(_cpu, args), **kwargs)


class _OnCpu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (Tensor.cuda, Tensor.pin_memory):
            return args[0]
        if function is Tensor.to:
            return _to(function, *args, **kwargs)
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": _cpu(kwargs["device"])}
        return function(*args, **kwargs)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """A context in which CUDA is not available, and CUDA devices mean the CPU.

    Enter it before CUDA is initialised. ``docs/migration.md`` lists the calls.
    """

    def load(original, f, map_location=None, *args, **kwargs):
        return original(f, _cpu(map_location) or "cpu", *args, **kwargs)

    with Changes() as changes, _OnCpu():
        changes.set_item(os.environ, "CUDA_VISIBLE_DEVICES", "")
        changes.wrap(nn.Module, "to", _to)
        changes.wrap(torch, "load", load)
        for name in _NO_OPS:
            changes.set(torch.cuda, name, lambda *args, **kwargs: None)
        changes.set(torch.cuda, "current_device", lambda: 0)
        changes.set(torch.cuda, "device", lambda device: contextlib.nullcontext())
        yield
