"""ONNX files in onnxruntime."""

from __future__ import annotations

from dcnzoo.detect.backends import Opened, outputs_to_read

FIRST_DEFORM_CONV = (1, 25)  # the first release of onnxruntime with DeformConv


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to compare it."""
    return tuple(int(part) for part in version.split(".")[:2])


def open_file(path: str, device: str, threads: int | None) -> Opened:
    import onnxruntime

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.split(":")[0])
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ValueError(f"device: expected one of {', '.join(available)}, got {device!r}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        if "DeformConv" in str(error) and release(onnxruntime.__version__) < FIRST_DEFORM_CONV:
            first = ".".join(map(str, FIRST_DEFORM_CONV))
            raise ValueError(
                f"{path}: expected onnxruntime {first} or later for DeformConv, got "
                f"{onnxruntime.__version__}: update it, or export with --deform-conv gathernd"
            ) from error
        raise ValueError(f"{path}: expected an ONNX model that onnxruntime can load: {error}") from error
    inputs = {
        node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
        for node in (*session.get_inputs(), *session.get_overridable_initializers())
    }
    names = outputs_to_read(output.name for output in session.get_outputs())
    metadata = session.get_modelmeta().custom_metadata_map
    return inputs, names, metadata, lambda feed: session.run(names, feed)
