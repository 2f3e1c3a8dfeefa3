"""The samples of ``tests/op_cases`` in every form that ``dcnzoo.export`` writes and every installed runtime.

A test records the largest error of an operator's samples, relative to the largest value (at least 1), or the
runtime's message. It fails if results are wrong, or if a runtime refuses what it is not known to refuse
(``REFUSED``). ``page.py`` writes docs/conformance.md from the junit file.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.conformance import runtimes
from dcnzoo.export import export_onnx
from tests.op_cases import Operator, Sample, is_plain_convolution, operators

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2}
FORMS = {  # of deformable convolution: the number of axes it supports
    "native": 2,
    "gathernd": 3,
    "gatherelements": 3,
    "gridsample": 2,
}
ONNX = ("onnx reference", "onnxruntime", "OpenVINO")
REFUSED = (  # substrings of "form runtime type"
    "gridsample onnxruntime float16",  # it has GridSample in float32 and float64 only
    "ExecuTorch",  # it runs only operators that are compiled into it
)
OPERATORS = {op.name: op for op in operators(differentiable=False)}
UNTRANSLATED = [name for name in OPERATORS if "transpose" in name or "rotated" in name]


def samples_of(op: Operator, dynamic: bool) -> list[Sample]:
    """Return the samples without empty tensors, which no runtime accepts, and without plain convolutions."""
    samples = op.resized_samples() if dynamic else op.samples()
    full = (s for s in samples if all(t is None or t.numel() for t in s.tensors))
    # ONNX's max pooling takes the maximum of weighted neighbours, not of samples
    return [s for s in full if not is_plain_convolution(s) and s.kwargs.get("pool_mode") != "max"]


class Calls(nn.Module):
    """Calls of an operator. Weight and bias of a convolution are parameters; other tensors are inputs."""

    def __init__(self, calls: Sequence[tuple[Callable[[Sample], Tensor], Sample]]) -> None:
        super().__init__()
        self.calls, self.samples = calls, [sample for _, sample in calls]
        self.constants = nn.ParameterDict()
        for i, sample in enumerate(self.samples):
            for place in set(range(len(sample.tensors))) - set(inputs_of(sample)):
                if sample.tensors[place] is not None:
                    self.constants[f"{i}_{place}"] = nn.Parameter(sample.tensors[place])

    def forward(self, *args: Tensor) -> list[Tensor]:
        remaining, results = iter(args), []
        for i, (call, sample) in enumerate(self.calls):
            tensors = [self.constants.get(f"{i}_{place}") for place in range(len(sample.tensors))]
            for place in inputs_of(sample):
                tensors[place] = next(remaining)
            results.append(call(Sample(sample.name, tuple(tensors), sample.kwargs)))
        return results


def inputs_of(sample: Sample) -> list[int]:
    """Return the positions of a call's tensors that are inputs of the graph."""
    convolution = len(sample.tensors) == 5  # input, weight, offset, mask, bias
    return [i for i, t in enumerate(sample.tensors) if t is not None and not (convolution and i in (1, 4))]


def arrays(*samples: Sample) -> tuple[Tensor, ...]:
    return tuple(sample.tensors[i] for sample in samples for i in inputs_of(sample))


def torchvision_call(sample: Sample) -> Tensor:
    from torchvision.ops import deform_conv2d

    input, weight, offset, mask, bias = sample.tensors
    geometry = {k: v for k, v in sample.kwargs.items() if k in ("stride", "padding", "dilation")}
    return deform_conv2d(input, offset, weight, bias, mask=mask, **geometry)


def for_torchvision(sample: Sample) -> bool:
    """Whether torchvision has this call: an offset, and as many groups of offset and mask."""
    _, weight, offset, mask, _ = sample.tensors
    taps = weight[0, 0].numel()
    return offset is not None and (mask is None or offset.shape[1] // (2 * taps) == mask.shape[1] // taps)


@functools.cache
def exported(name: str, form: str, dtype: torch.dtype, dynamic: bool) -> list[tuple[Sample, Path]]:
    """Export all samples of an operator to one graph; return each with its part of the graph."""
    samples = [sample.to(dtype) for sample in samples_of(OPERATORS[name], dynamic)]
    if form == "torchvision":
        samples = list(filter(for_torchvision, samples))
    call = torchvision_call if form == "torchvision" else OPERATORS[name].call
    model = Calls([(call, sample) for sample in samples[: 1 if dynamic else None]]).eval()
    args = arrays(*model.samples)
    folder = Path(tempfile.mkdtemp(prefix="dcnzoo-conformance-"))
    path = folder / "model.onnx"
    names = [f"in{i}" for i in range(len(args))], [f"out{i}" for i in range(len(model.samples))]
    shapes = tuple(dynamic_axes(samples)) if dynamic else None
    if form == "torchvision":
        torch.onnx.export(
            model, args, path, dynamo=True, opset_version=19, input_names=names[0], output_names=names[1],
            dynamic_shapes=(shapes,) if dynamic else None, verbose=False,
        )  # fmt: skip
    else:
        export_onnx(
            model, args, path, deform_conv=form if form in FORMS else "auto",
            input_names=names[0], output_names=names[1], dynamic_shapes=(shapes,) if dynamic else None,
        )  # fmt: skip
    if dynamic:
        return [(sample, path) for sample in samples]
    extractor = onnx.utils.Extractor(onnx.load(path))
    remaining, parts = iter(names[0]), []
    for sample, output in zip(samples, names[1], strict=True):
        inputs = [next(remaining) for _ in arrays(sample)]
        parts.append((sample, folder / f"{output}.onnx"))
        onnx.save(extractor.extract_model(inputs, [output]), parts[-1][1])
    return parts


@functools.cache
def packaged(dtype: torch.dtype) -> dict[str, list[tuple[Sample, np.ndarray]]]:
    """Run the samples of all operators in one package of AOTInductor: compiling takes a minute."""
    names = [(name, s.to(dtype)) for name, op in OPERATORS.items() for s in samples_of(op, False)]
    model = Calls([(OPERATORS[name].call, sample) for name, sample in names]).eval()
    results: dict[str, list[tuple[Sample, np.ndarray]]] = {}
    outputs = runtimes.run_pt2(model, arrays(*model.samples))
    for (name, sample), output in zip(names, outputs, strict=True):
        results.setdefault(name, []).append((sample, output))
    return results


def dynamic_axes(samples: Sequence[Sample]) -> Iterator[dict[int, object]]:
    """Yield, for each input, the axes whose size differs between the samples."""
    for tensors in zip(*map(arrays, samples), strict=True):
        sizes = zip(*(tensor.shape for tensor in tensors), strict=True)
        yield {axis: Dim.DYNAMIC for axis, each in enumerate(sizes) if len(set(each)) > 1}


def error(op: Operator, sample: Sample, result: np.ndarray) -> float:
    expected = op.reference(sample.to(torch.float64)).numpy()
    assert result.shape == expected.shape, f"expected shape {expected.shape}, got {result.shape}"
    return float(np.abs(result.astype(np.float64) - expected).max() / max(1.0, np.abs(expected).max()))


def cases() -> Iterator[tuple[str, str, str, torch.dtype, bool]]:
    """Yield operator, form, runtime, type, and whether sizes are dynamic."""
    for name, op in OPERATORS.items():
        if not samples_of(op, False):  # NMS and the overlap of boxes have no samples
            continue
        rank = int(name[-2]) if name.startswith("deform_conv") else 0
        forms = [form for form, most in FORMS.items() if rank <= most] if rank else ["graph"]
        forms += ["torchvision"] * (name == "deform_conv2d")
        for dtype in TOLERANCES:
            for form in () if name in UNTRANSLATED else forms:
                for dynamic in (False, True) if dtype == torch.float32 else (False,):
                    for runtime in (*ONNX, *["OpenVINO IR"] * (form == "native" and not dynamic)):
                        yield name, form, runtime, dtype, dynamic
            yield name, "pt2", "AOTInductor", dtype, False
        yield name, "operator", "ExecuTorch", torch.float32, False
    yield "deform_conv2d", "torchvision", "ncnn", torch.float32, False


def run(name: str, form: str, runtime: str, dtype: torch.dtype, dynamic: bool) -> Iterator[tuple]:
    """Yield each sample's name, and its error or the message of the runtime."""
    op = OPERATORS[name]
    if form == "pt2":
        yield from ((sample.name, error(op, sample, result)) for sample, result in packaged(dtype)[name])
    elif runtime == "ExecuTorch":
        sample = samples_of(op, False)[0].to(dtype)
        model = Calls([(op.call, sample)]).eval()
        yield attempt(op, sample, lambda: runtimes.run_executorch(model, arrays(sample)))
    elif runtime == "ncnn":
        for sample in samples_of(op, False):
            single = sample.to(torch.float32)
            if for_torchvision(single) and single.tensors[0].shape[0] == 1:  # ncnn has no batches
                model = Calls([(torchvision_call, single)]).eval()
                yield attempt(op, single, lambda m=model, s=single: runtimes.run_ncnn(m, arrays(s)))
    else:
        for sample, path in exported(name, form, dtype, dynamic):
            feed = [tensor.numpy() for tensor in arrays(sample)]
            yield attempt(op, sample, lambda p=path, f=feed: runtimes.ONNX[runtime](p, f))


def attempt(op: Operator, sample: Sample, call: Callable[[], np.ndarray]) -> tuple[str, float | str]:
    try:
        result = call()
    except Exception as problem:  # runtimes have no common base class of exceptions
        return sample.name, runtimes.message(problem)
    return sample.name, error(op, sample, result)


@pytest.mark.parametrize(("name", "form", "runtime", "dtype", "dynamic"), [
    pytest.param(*case, id=" ".join([*case[:3], str(case[3])[6:], "dynamic" * case[4]]).strip())
    for case in cases()
])  # fmt: skip
def test_conformance(name, form, runtime, dtype, dynamic, record_property):
    for package in runtimes.PACKAGES.get(runtime, ()) + ("torchvision",) * (form == "torchvision"):
        if find_spec(package) is None:
            pytest.skip(f"not run: {package} is not installed")
    record_property(
        "case", "|".join([name, form, runtime, str(dtype)[6:], "dynamic" if dynamic else "fixed"])
    )
    try:
        results = list(run(name, form, runtime, dtype, dynamic))
    except Exception as problem:
        results = [("", runtimes.message(problem))]
    errors = [value for _, value in results if isinstance(value, float)]
    messages = {sample: value for sample, value in results if isinstance(value, str)}
    largest = max(errors, default=math.nan)
    parts = [f"{largest:.0e}"] * bool(errors)
    if messages:
        sample, message = next(iter(messages.items()))
        parts.append(
            f"{len(messages)} of {len(results)} refused ({sample}): {message}" if sample else message
        )
    record_property("result", "; ".join(parts))
    assert not errors or largest <= TOLERANCES[dtype], f"error {largest:.1e}: {results}"
    known = any(part in f"{form} {runtime} {str(dtype)[6:]}" for part in REFUSED)
    assert known or not messages, messages
    if messages:
        pytest.skip(f"known: {messages}")
