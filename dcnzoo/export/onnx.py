"""Write ONNX files of modules with dcnzoo's operators.

:func:`export_onnx` calls :func:`trace`, by ``torch.export``, and then ``torch.onnx.export``. What their
graphs need changed is in :mod:`dcnzoo.export.passes`. The nodes of an operator are in
:mod:`dcnzoo.export.operators`, those of post-processing in :mod:`dcnzoo.export.fixed_size`.
"""

import contextlib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from dcnzoo.compat import patches
from dcnzoo.export import opsets, passes
from dcnzoo.export.fixed_size import LOOPS
from dcnzoo.export.registration import translation_table
from dcnzoo.utils.files import replacing


def export_onnx(
    model: torch.nn.Module,
    args: tuple,
    path: str | os.PathLike,
    *,
    opset_version: int = opsets.DEFAULT,
    deform_conv: str = "auto",
    dynamic_shapes: Any = None,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model with dcnzoo's operators to an ONNX file, atomically.

    Args:
        model: exported in its current mode: call ``eval()`` first.
        args: example inputs.
        dynamic_shapes: the dynamic axes, as for :func:`torch.onnx.export`: ``Dim``, or a name of the file's.
        opset_version, deform_conv: as for :func:`translation_table`.
        metadata: entries for the metadata of the file.

    Raises:
        ValueError: as :func:`translation_table`; an operator of the model has no translation; its code
            cannot be traced: the message names file and line; or ``output_names`` has another length.
    """
    import onnx

    table = translation_table(opset_version, deform_conv)
    with torch.no_grad(), quiet(), without_slow_rule():
        program = trace(model, args, dynamic_shapes)
        try:
            onnx_program = torch.onnx.export(
                program,
                opset_version=opset_version,
                input_names=input_names,
                output_names=output_names or None,
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=table,
                dynamo=True,
                verbose=False,
            )
        except RuntimeError as error:  # torch wraps it in a long report
            raise ValueError(str(first_cause(error))) from error
    assert onnx_program is not None  # with dynamo=True
    number = len(onnx_program.model.graph.outputs)
    if output_names and len(output_names) != number:
        raise ValueError(f"output_names: expected {number}, as many as outputs, got {output_names}")
    passes.name_nodes(onnx_program.model)
    passes.remove_default_reductions(onnx_program.model)
    model_proto = onnx_program.model_proto  # from here on, changes of the model have no effect
    passes.copy_constants_into_scans(model_proto)
    for key, value in (metadata or {}).items():
        model_proto.metadata_props.add(key=key, value=value)
    with replacing(path) as partial:
        onnx.save(model_proto, partial)


@torch.no_grad()
def trace(model: torch.nn.Module, args: tuple, dynamic_shapes: Any = None) -> ExportedProgram:
    """Return the program of a model for ``torch.onnx.export``, with the arguments of :func:`export_onnx`.

    ``torch.onnx.export`` would also trace, but inside it, MMDetection takes outdated branches.
    """
    with named_errors(model):
        # without names of axes, whose ranges torch.export would check
        shapes = tree_map(lambda axis: Dim.DYNAMIC if isinstance(axis, str) else axis, dynamic_shapes)
        program = torch.export.export(model, args, dynamic_shapes=shapes, strict=False)
    passes.check_ranges(program, dynamic_shapes)
    passes.remove_assertions(program)  # before the decompositions, which trace the program again
    if any(node.target in LOOPS for node in program.graph.nodes):
        program = program.run_decompositions(LOOPS)
    passes.set_types_of_ranges(program)  # after them: they add ranges
    return program


@contextlib.contextmanager
def without_slow_rule() -> Iterator[None]:
    """Context without a rule of onnxscript's optimiser, which lists all nodes for each: 1 to 6 seconds.

    The optimiser has no argument that leaves it out. A version without a public rule of this name keeps all.
    """
    with patches.Changes() as changes:
        with contextlib.suppress(ImportError):
            from onnxscript.rewriter.rules.common import slice_split_rule

            changes.set(slice_split_rule, "try_rewrite", lambda *_, **__: None)
        yield


def first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else first_cause(error.__cause__)


@contextlib.contextmanager
def named_errors(model: torch.nn.Module, argument: str = "export_onnx: model") -> Iterator[None]:
    """Context of tracing, whose errors name the user's line that fails, or else a library's."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        packages = [sys.modules[name] for name in ("dcnzoo", "torch", "mmcv") if name in sys.modules]
        hidden = [folder for package in packages for folder in package.__path__]
        frames = [*traceback.extract_tb(error.__traceback__)]
        frames = [frame for frame in frames if not any(map(Path(frame.filename).is_relative_to, hidden))]
        own = [frame for frame in frames if "site-packages" not in frame.filename]
        places = [f"{frame.filename}:{frame.lineno}" for frame in own or frames]
        lines = str(error).splitlines()
        text = next(iter(lines), "")
        expected = "code that runs for the example inputs"
        if constant := [line.strip(" -") for line in lines if "specialized" in line]:
            text, expected = constant[0], "code that keeps dynamic sizes, or use a fixed size"
        elif re.search("data-dependent|vmap:", str(error), re.IGNORECASE):
            expected = "code that torch.export can trace, whose branches and sizes do not depend on the data"
        kind, place = type(error).__name__, [type(model).__name__, *places][-1]
        raise ValueError(f"{argument}: expected {expected}, got {kind} in {place}: {text}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages that do not concern the user, such as that torchvision is missing."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
