"""Write ONNX files of modules with dcnzoo's operators.

:func:`export_onnx` calls ``torch.export`` and then ``torch.onnx.export``; what both need changed is in
:mod:`dcnzoo.export.passes`. The nodes of an operator are in :mod:`dcnzoo.export.operators`, those of
post-processing in :mod:`dcnzoo.export.fixed_size`.
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
        ValueError: as :func:`translation_table`; an operator of the model has no translation; or its code
            cannot be traced: the message names file and line.
    """
    import onnx
    from onnxscript.rewriter.rules.common import slice_split_rule

    table = translation_table(opset_version, deform_conv)
    with torch.no_grad(), quiet(), patches.Changes() as changes:
        # a public rule of onnxscript, which lists all nodes of the graph for each node: 1 to 6 seconds.
        # Its optimiser has no argument that leaves a rule out
        changes.set(slice_split_rule, "try_rewrite", lambda *_, **__: None)
        # torch.export first, outside torch.onnx.export: inside it, MMDetection takes outdated branches for
        # ONNX export
        with named_errors(model):
            program = torch.export.export(model, args, dynamic_shapes=_unnamed(dynamic_shapes), strict=False)
        passes.remove_assertions(program)
        if any(node.target in LOOPS for node in program.graph.nodes):
            program = program.run_decompositions(LOOPS)
        passes.check_ranges(program)
        passes.set_types_of_ranges(program)
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
    passes.name_nodes(onnx_program.model)
    passes.remove_default_reductions(onnx_program.model)
    model_proto = onnx_program.model_proto
    passes.copy_constants_into_scans(model_proto)
    for key, value in (metadata or {}).items():
        model_proto.metadata_props.add(key=key, value=value)
    with replacing(path) as partial:
        onnx.save(model_proto, partial)


def first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else first_cause(error.__cause__)


def _unnamed(shapes: Any) -> Any:
    """Replace the names of dynamic axes: ``torch.export`` would check ranges of named ones."""
    return tree_map(lambda axis: torch.export.Dim.DYNAMIC if isinstance(axis, str) else axis, shapes)


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
        lines = [f"{frame.filename}:{frame.lineno}" for frame in own or frames]
        text = next(iter(str(error).splitlines()), "")
        expected = "code that runs for the example inputs"
        if re.search("data-dependent|vmap:", str(error), re.IGNORECASE):
            expected = "code that torch.export can trace, whose branches and sizes do not depend on the data"
        kind, place = type(error).__name__, [type(model).__name__, *lines][-1]
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
