"""Packages of AOTInductor. Requires torch."""

import json

import numpy as np
import torch

from dcnzoo.detect.backends import Opened

NAMES = "dcnzoo.names"  # key in the metadata: shapes of the inputs, names of the outputs


def open_file(path: str, device: str, threads: int | None, precision: str) -> Opened:
    """Open a package for :class:`dcnzoo.detect.session.Session`.

    Raises:
        ValueError: it is not a package of :func:`dcnzoo.export.export_pt2`.
    """
    import dcnzoo.ops  # noqa: F401  loads the operators

    if device != "cpu":
        raise ValueError(f"device: expected cpu for aotinductor, got {device!r}")
    if threads is not None:
        torch.set_num_threads(threads)  # of the whole process: torch has no other setting
    try:
        model = torch._inductor.aoti_load_package(path)
        metadata = dict(model.get_metadata())
        names = json.loads(metadata[NAMES])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: expected a package of dcnzoo export --out x.pt2: {error}") from error

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            return [value.numpy() for value in model(*map(torch.from_numpy, feed.values()))]

    return (
        {name: tuple(shape) for name, shape in names["inputs"].items()},
        names["outputs"],
        metadata,
        run,
        "cpu",
    )
