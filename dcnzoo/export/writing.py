"""Convert the ONNX file of a module to the precision and the format of its options.

It is the step between :mod:`dcnzoo.export.onnx` and the verification. :mod:`dcnzoo.export.precision` changes
the weights; :func:`save_ir` writes OpenVINO's IR.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx

from dcnzoo.detect.backends import IMG_SHAPE
from dcnzoo.detect.backends.openvino import extension
from dcnzoo.export.options import ExportOptions, Int8
from dcnzoo.export.precision import to_float16, to_int8


def finish_file(
    graph: Path, options: ExportOptions, calibration: Iterable[Mapping[str, np.ndarray]]
) -> tuple[Path, ...]:
    """Convert an ONNX file to the precision and the format of the options; return the files.

    Args:
        graph: has the folder and the stem of ``options.path``. It is changed, and removed for OpenVINO.
        calibration: samples of inputs for int8.
    """
    path = options.files[0]
    if isinstance(options.precision, Int8):
        to_int8(graph, calibration)
    elif path.suffix == ".onnx" and options.precision == "float16":
        to_float16(graph)
    if path.suffix == ".xml":
        save_ir(graph, path, options.precision == "float16")
        graph.unlink()
    elif has_default_size(options):
        model = onnx.load(graph)
        for value in model.graph.input:
            if value.name == IMG_SHAPE:
                _add_default(model, value)
        onnx.save(model, graph)
    return options.files


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


def has_default_size(options: ExportOptions) -> bool:
    """Whether ``img_shape`` has a default, of one row for all images. OpenVINO's IR has no defaults."""
    return options.img_shape == "optional" and options.files[0].suffix == ".onnx"


def _add_default(model: onnx.ModelProto, sizes: onnx.ValueInfoProto) -> None:
    """Add an initializer with the name of an input: its default value."""
    rows = sizes.type.tensor_type.shape.dim[0]
    default = np.full((rows.dim_value, 2), -1, np.int64)
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        rows.dim_param = "sizes"  # one, or as many as images
    model.graph.initializer.append(onnx.numpy_helper.from_array(default, IMG_SHAPE))
