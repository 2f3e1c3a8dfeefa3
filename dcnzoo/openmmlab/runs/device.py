"""The device of a detector, a training or a test."""

import contextlib
from collections.abc import Iterator

import torch
from mmengine.device import utils as mmengines

from dcnzoo.compat.patches import Changes
from dcnzoo.utils.errors import UserError


def require_device(name: str | torch.device) -> torch.device:
    """Return the device; for ``auto`` a GPU if torch detects one, else the CPU.

    Raises:
        UserError: torch cannot use the device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    gpus = f"or a GPU from cuda:0 to cuda:{count - 1}" if count else "(torch detects no GPU)"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type == "meta" or (device.type == "cuda" and (device.index or 0) >= count):
        raise UserError(f"device: expected auto, cpu {gpus}, got {name}")
    return device


@contextlib.contextmanager
def use_device(name: str | torch.device, launcher: str = "none") -> Iterator[None]:
    """Context in which MMEngine's runners use a device. With a launcher, each process uses one of its own.

    Raises:
        UserError: torch cannot use the device, or a launcher assigns the devices.
    """
    if launcher != "none":
        if name != "auto":
            raise UserError(f"device: expected auto with launcher={launcher}, got {name}")
        yield
        return
    device = require_device(name)
    with Changes() as changes:
        changes.set(mmengines, "DEVICE", device.type)  # what get_device returns
        if device.type == "cuda":
            changes.enter_context(torch.cuda.device(device))
        yield
