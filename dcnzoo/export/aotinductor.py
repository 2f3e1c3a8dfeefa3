"""Packages of AOTInductor: models compiled ahead of time, which run in Python and in C++.

A package needs torch and the library of dcnzoo's operators at run time, but no Python. Requires a C++
compiler to write one.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dcnzoo.detect.backends.aotinductor import NAMES
from dcnzoo.export.fixed_size import TRACEABLE
from dcnzoo.export.passes import attributes_restored, one_at_a_time
from dcnzoo.utils.files import replacing
from dcnzoo.utils.marks import KEY, append_mark
from dcnzoo.utils.steps import begin_step


def trace(model: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    """Trace a model to operators of torch and of dcnzoo's library, without those defined in Python."""
    with one_at_a_time, torch.no_grad(), attributes_restored(model):
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
        begin_step("tracing")
        program = trace(model, args)
        begin_step("compiling")
        whole = Path(folder) / "model.pt2"  # torch requires this suffix
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(whole), inductor_configs={"aot_inductor.metadata": texts}
            )
        except RuntimeError as error:
            raise ValueError(f"model: expected one that AOTInductor can compile: {error}") from error
        with replacing(path) as partial:
            partial.write_bytes(whole.read_bytes())
            if KEY in texts:
                append_mark(partial, texts[KEY].rstrip("|"))
