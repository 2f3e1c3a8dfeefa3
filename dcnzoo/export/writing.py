"""Convert the ONNX file of a module to the precision and the format of its options."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dcnzoo.export.openvino import save_ir
from dcnzoo.export.options import ExportOptions, Int8
from dcnzoo.export.precision import to_float16, to_int8

SIZES = "img_shape"  # the input with the sizes of the pictures


def finish_file(
    graph: Path, options: ExportOptions, calibration: Iterable[Mapping[str, np.ndarray]]
) -> tuple[Path, ...]:
    """Convert an ONNX file to the precision and the format of the options; return the files.

    Args:
        graph: has the folder and the stem of ``options.path``. It is changed, and removed for OpenVINO.
        calibration: samples of inputs for int8.
    """
    path = options.files[0]
    if options.simplify:
        import onnxslim

        onnx.save(onnxslim.slim(str(graph)), str(graph))
    if isinstance(options.precision, Int8):
        to_int8(graph, calibration)
    elif path.suffix == ".onnx" and options.precision == "float16":
        to_float16(graph)
    if path.suffix == ".xml":
        save_ir(graph, path, options.precision == "float16")
        graph.unlink()
    elif options.img_shape == "optional":
        model = onnx.load(graph)
        if any(value.name == SIZES for value in model.graph.input):
            onnx.save(_with_default_size(model), graph)
    return options.files


def _with_default_size(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make ``img_shape`` optional: by default, -1 for all images.

    An initializer with the name of an input is its default value. As the number of images may be dynamic, it
    has one row, which is repeated.
    """
    graph, helper = model.graph, onnx.helper
    images, sizes = (next(value for value in graph.input if value.name == name) for name in ("input", SIZES))
    count, rows = images.type.tensor_type.shape.dim[0], sizes.type.tensor_type.shape.dim[0]
    if not count.dim_value:
        rows.dim_param = "sizes"
        for node in graph.node:
            node.input[:] = [f"{SIZES}_of_images" if name == SIZES else name for name in node.input]
        constants = {"image_axis": [0], "two_numbers": [2]}
        for name, value in constants.items():
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), f"{SIZES}_{name}"))
        nodes = (
            ("Shape", ["input"], f"{SIZES}_input"),
            ("Gather", [f"{SIZES}_input", f"{SIZES}_image_axis"], f"{SIZES}_count"),
            ("Concat", [f"{SIZES}_count", f"{SIZES}_two_numbers"], f"{SIZES}_shape"),
            ("Expand", [SIZES, f"{SIZES}_shape"], f"{SIZES}_of_images"),
        )
        for i, (operator, inputs, output) in enumerate(nodes):
            options: dict[str, Any] = {"axis": 0} if operator in ("Gather", "Concat") else {}
            graph.node.insert(i, helper.make_node(operator, inputs, [output], **options))
    default = np.full((max(count.dim_value, 1), 2), -1, np.int64)
    graph.initializer.append(onnx.numpy_helper.from_array(default, SIZES))
    return model
