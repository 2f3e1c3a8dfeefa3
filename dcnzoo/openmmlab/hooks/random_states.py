"""The three random generators that transforms and samplers use: Python's, NumPy's and torch's."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """Return a seed of 31 bits, to which mmengine can add a worker's index without overflow."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@contextlib.contextmanager
def random_states() -> Iterator[None]:
    """Context that restores the states of the generators."""
    before = states()
    try:
        yield
    finally:
        restore_states(before)


def states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def restore_states(before: tuple[Any, ...]) -> None:
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    torch.set_rng_state(before[2])
