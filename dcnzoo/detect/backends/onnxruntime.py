"""ONNX files in onnxruntime."""

import contextlib
import re

from dcnzoo.detect.backends import Opened

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FIRST_DEFORM_CONV = (1, 25)  # the first release of onnxruntime with DeformConv


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to compare it."""
    return tuple(int(part) for part in version.split(".")[:2])


def open_file(path: str, device: str, threads: int | None, precision: str) -> Opened:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "auto":
        if CUDA in available:
            with contextlib.suppress(ValueError):  # no GPU that works, or an invalid file
                return open_file(path, "cuda", threads, precision)
        device = "cpu"
    match = re.fullmatch(r"(cpu)|cuda(?::(\d+))?", device)
    if not match:
        raise ValueError(f"device: expected cpu, cuda or a number, cuda:1, for onnxruntime, got {device!r}")
    number = int(match[2] or 0)
    provider = (CPU, {}) if match[1] else (CUDA, {"device_id": str(number)})
    if provider[0] not in available:
        raise ValueError(f"device: expected cpu, for this onnxruntime has no {provider[0]}, got {device!r}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
        used = session.get_providers()[0]
    except Exception as error:  # onnxruntime's exceptions have no common base class
        if "DeformConv" in str(error) and release(onnxruntime.__version__) < FIRST_DEFORM_CONV:
            first = ".".join(map(str, FIRST_DEFORM_CONV))
            raise ValueError(
                f"{path}: expected onnxruntime {first} or later for DeformConv, got "
                f"{onnxruntime.__version__}: update it, or export with deform_conv='gathernd'"
            ) from error
        raise ValueError(f"{path}: expected an ONNX model that onnxruntime can load: {error}") from error
    if used != provider[0]:  # it only warns
        raise ValueError(f"device: expected one that onnxruntime can use, got {device!r}: it uses {used}")
    inputs = {
        node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
        for node in (*session.get_inputs(), *session.get_overridable_initializers())
    }
    names = [output.name for output in session.get_outputs()]
    metadata = session.get_modelmeta().custom_metadata_map
    run_on = "cpu" if match[1] else f"cuda:{number}"
    return Opened(inputs, names, metadata, lambda feed: session.run(names, feed), run_on)
