"""Block sizes by architecture, from a committed table, so that no call waits for autotuning."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

TABLE = Path(__file__).with_name("configs.json")
INTERPRETER = "interpreter"


class Config(NamedTuple):
    """Block sizes and launch options of a kernel.

    A program computes ``BLOCK_M`` pixels by ``BLOCK_N`` channels of the result and sums over ``BLOCK_K``
    channels at a time. In grad_weight it computes ``BLOCK_N`` input by ``BLOCK_K`` output channels and sums
    over ``BLOCK_M`` pixels at a time.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
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


def choose(target: str, kernel: str, dtype: torch.dtype, cost: Callable[[Config], float]) -> Config:
    """The configuration of least cost; of equals, the first in the table.

    Args:
        cost: an estimate of a configuration's time for the call, in any unit.
    """
    kind = "float32" if dtype == torch.float32 else "half"
    return min((Config(*sizes) for sizes in entry_of(target)[kernel][kind]), key=cost)
