"""Block sizes by architecture, from a committed table, so that no call waits for autotuning."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

TABLE = Path(__file__).with_name("configs.json")
# Number of programs that keeps a large GPU busy: two on each of 132 multiprocessors. If a configuration
# makes fewer, a smaller one is tried.
ENOUGH_PROGRAMS = 264
INTERPRETER = "interpreter"


class Config(NamedTuple):
    """Block sizes and launch options of a kernel.

    A program computes ``BM`` pixels by ``BN`` channels of the result and sums over ``BK`` channels at a time.
    In grad_weight it computes ``BN`` input by ``BK`` output channels and sums over ``BM`` pixels at a time.
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
    """The current device's architecture as a key of the table: ``sm_90``, ``gfx942``, ``interpreter``."""
    if interpreted:
        return INTERPRETER
    import triton

    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def entry_of(target: str) -> dict:
    """The table's entry for an architecture, or the default, which needs the least shared memory."""
    return table().get(target) or table()["default"]


def choose(
    target: str, kernel: str, dtype: torch.dtype, widths: tuple[int, int], programs: Callable[[Config], int]
) -> Config:
    """The first (largest) configuration whose blocks fit and that makes enough programs, else the last.

    Args:
        widths: number of channels that ``BN`` and ``BK`` split.
        programs: number of programs that a configuration makes for the call.
    """
    kind = "float32" if dtype == torch.float32 else "half"
    configs = [Config(*sizes) for sizes in entry_of(target)[kernel][kind]]
    for config in configs:
        too_wide = widths[0] < config.BN or widths[1] < config.BK
        if not too_wide and programs(config) >= ENOUGH_PROGRAMS:
            return config
    return configs[-1]
