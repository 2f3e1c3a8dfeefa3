"""Write OpenVINO's IR. ``make_core`` reads ONNX files with ``DeformConv``.

:mod:`dcnzoo.export.writing` calls :func:`save_ir`; :mod:`dcnzoo.detect.backends.openvino` runs the files.
"""

import os
from pathlib import Path

from dcnzoo.detect.backends.openvino import extension, make_core

__all__ = ["make_core", "save_ir"]


def save_ir(path: str | os.PathLike, out: Path, float16: bool = False) -> None:
    """Convert an ONNX file to OpenVINO's IR: ``out``, which ends in ``.xml``, and its weights in ``.bin``.

    OpenVINO reads the IR without dcnzoo. It contains the metadata of the ONNX file. If the network of the
    file is quantised to int8, so is that of the IR.

    Args:
        float16: store the weights in float16.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
    """
    import openvino

    # convert_model, not Core.read_model, also folds the shapes of biases, which the ONNX reader computes in
    # the graph, but not the weights in int8
    model = openvino.convert_model(path, extension=extension())
    openvino.save_model(model, out, compress_to_fp16=float16)
