"""Runtimes of exported files: each module has ``open_file(path, device, threads)``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Shape = tuple[int | None, ...]  # None: any size
# inputs, names of the outputs, metadata, and a function that runs the model
Opened = tuple[
    dict[str, Shape], list[str], dict[str, str], Callable[[dict[str, np.ndarray]], list[np.ndarray]]
]
