"""Packages of AOTInductor: models compiled ahead of time, which run in Python and in C++.

A package needs torch and the library of dcnzoo's operators at run time, but no Python. Requires a C++
compiler to write one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dcnzoo.export.postprocess import TRACEABLE
from dcnzoo.utils.files import replacing

NAMES = "dcnzoo.names"  # key in the metadata: shapes of the inputs, names of the outputs


def trace(model: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    """Trace a model to operators of torch and of dcnzoo's library, without those defined in Python."""
    with torch.no_grad():
        return torch.export.export(model, args, strict=False).run_decompositions(TRACEABLE)


def export_pt2(
    model: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    path: str | os.PathLike,
    *,
    input_names: list[str],
    output_names: list[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Compile a model for the shapes of ``args`` and for the CPU of this machine; write it atomically.

    Args:
        model: compiled in its current mode: call ``eval()`` first.
        args: example inputs.
        metadata: entries for the metadata of the package.

    Raises:
        ValueError: the model cannot be compiled.
    """
    shapes = {name: list(value.shape) for name, value in zip(input_names, args, strict=True)}
    texts = {**(metadata or {}), NAMES: json.dumps({"inputs": shapes, "outputs": output_names})}
    with TemporaryDirectory() as folder:
        program = trace(model, args)
        whole = Path(folder) / "model.pt2"  # torch requires this suffix
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(whole), inductor_configs={"aot_inductor.metadata": texts}
            )
        except RuntimeError as error:
            raise ValueError(f"model: expected one that AOTInductor can compile: {error}") from error
        with replacing(path) as partial:
            partial.write_bytes(whole.read_bytes())


def open_package(path: str, device: str, threads: int | None) -> tuple[dict, list[str], dict, Callable]:
    """Open a package for :class:`dcnzoo.export.runtime.Session`.

    Raises:
        ValueError: it is not a package of :func:`export_pt2`.
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

    return {name: tuple(shape) for name, shape in names["inputs"].items()}, names["outputs"], metadata, run
