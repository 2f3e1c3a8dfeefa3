"""Block sizes: a committed table by architecture, so that no call waits for a search."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

TABLE = Path(__file__).with_name("configs.json")
# Programs that keep a large GPU busy, two on each of 132 multiprocessors; with fewer, smaller blocks.
ENOUGH_PROGRAMS = 264
INTERPRETER = "interpreter"


class Config(NamedTuple):
    """``BM`` pixels; ``BN`` is a block of what stays (its other side), ``BK`` of what is summed over.

    In grad_weight ``BN`` are input and ``BK`` output channels, and pixels are summed over.
    """

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int


@cache
def table() -> dict:
    return json.loads(TABLE.read_text())


def target_of(interpreted: bool) -> str:
    """The current device's architecture, as the table calls it: ``sm_90``, ``gfx942``, ``interpreter``."""
    if interpreted:
        return INTERPRETER
    import triton

    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def entry_of(target: str) -> dict:
    """What the table has for an architecture; of one it does not know, what runs on the smallest."""
    return table().get(target) or table()["default"]


def choose(
    target: str, kernel: str, dtype: torch.dtype, widths: tuple[int, int], programs: Callable[[Config], int]
) -> Config:
    """The first, and largest, that is no wider than the sizes and makes enough programs; else the last.

    Args:
        widths: how many channels there are for ``BN`` and ``BK`` to part.
        programs: how many programs a configuration makes of the call.
    """
    kind = "float32" if dtype == torch.float32 else "half"
    configs = [Config(*sizes) for sizes in entry_of(target)[kernel][kind]]
    for config in configs:
        too_wide = widths[0] < config.BN or widths[1] < config.BK
        if not too_wide and programs(config) >= ENOUGH_PROGRAMS:
            return config
    return configs[-1]
