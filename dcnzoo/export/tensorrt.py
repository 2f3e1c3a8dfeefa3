"""Build TensorRT engines from ONNX files. Requires tensorrt ≥ 10.1, torch (for GPU memory) and a GPU.

Written from TensorRT's documentation and not yet run: no machine with TensorRT was available.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np

from dcnzoo.export.runtime import release

FIRST = (10, 1)  # the first version whose parser supports DeformConv


def why_not() -> str | None:
    """Return the reason why this machine cannot build an engine; None if it can."""
    try:
        import tensorrt
        import torch
    except ModuleNotFoundError as error:
        return str(error)
    if release(tensorrt.__version__) < FIRST:
        return f"expected TensorRT 10.1 or later, got {tensorrt.__version__}"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def build_engine(path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Build and serialise a float32 engine for one shape of each input.

    Raises:
        ImportError: TensorRT or a GPU is missing.
        ValueError: TensorRT cannot read the file or build the engine.
    """
    reason = why_not()
    if reason is not None:
        raise ImportError(f"backend: expected TensorRT and a GPU: {reason}")
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    trt.init_libnvinfer_plugins(logger, "")  # DeformConv and NonMaxSuppression are plugins
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ValueError(f"{path}: expected an ONNX model that TensorRT can parse: {errors}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(f"{path}: expected an ONNX model that TensorRT supports, got no engine: see its log")
    return bytes(engine)


def open_engine(path: str, device: str) -> tuple[dict, list[str], dict[str, str], Callable]:
    """Open a model for :class:`dcnzoo.export.runtime.Session`. Builds an engine for each new input shape."""
    reason = why_not()
    if reason is not None:
        raise ImportError(f"backend: expected TensorRT and a GPU: {reason}")
    if not device.startswith("cuda"):
        raise ValueError(f"device: expected cuda for tensorrt, got {device!r}")
    import onnx

    model = onnx.load(path, load_external_data=False)
    inputs = {
        value.name: tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    names = [value.name for value in model.graph.output]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    engines: dict[tuple, Callable] = {}

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        key = tuple(value.shape for value in feed.values())
        if key not in engines:
            engines[key] = _runner(build_engine(path, {k: v.shape for k, v in feed.items()}), names, device)
        return engines[key](feed)

    return inputs, names, metadata, run


def _runner(engine_bytes: bytes, names: list[str], device: str) -> Callable:
    import tensorrt as trt
    import torch

    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(engine_bytes)
    context = engine.create_execution_context()

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.cuda.device(device):
            tensors = {name: torch.from_numpy(value).to(device) for name, value in feed.items()}
            for name, tensor in tensors.items():
                context.set_input_shape(name, tuple(tensor.shape))
            for name in names:
                kind = torch.from_numpy(np.empty(0, trt.nptype(engine.get_tensor_dtype(name)))).dtype
                tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device=device)
            for name, tensor in tensors.items():
                context.set_tensor_address(name, tensor.data_ptr())
            stream = torch.cuda.current_stream()
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError("TensorRT: the engine did not run: see its log")
            stream.synchronize()
            return [tensors[name].cpu().numpy() for name in names]

    return run
