"""Run ``tests/op_cases`` in every form that ``dcnzoo.export`` writes, in every installed runtime.

A test records the largest error of an operator's samples, relative to the largest value (at least 1), or the
runtime's message. It fails if results are wrong, or if a runtime refuses a case that ``REFUSED`` does
not list. ``page.py`` writes docs/benchmarks/conformance.md from the junit file.
"""

import functools
import itertools
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.conformance import runtimes
from dcnzoo.export import export_onnx
from dcnzoo.export.graph import DYNAMO, translations
from tests.op_cases import Operator, Sample, is_plain_convolution, operators

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-2}
FORMS = {  # of deformable convolution: the number of axes it supports
    "native": 2,
    "gathernd": 3,
    "gatherelements": 3,
}
ONNX = ("onnx reference", "onnxruntime", "OpenVINO")
# the cases that runtimes are known to refuse: operator, form, runtime
REFUSED = re.compile(r"deform_conv1d native onnx reference|gatherelements onnx reference")
OPERATORS = {op.name: op for op in operators(differentiable=False)}
UNTRANSLATED = [
    name for name in OPERATORS if "dcnzoo::" + re.sub("[123]d$", "", name) not in translations[DYNAMO]
]


def samples_of(op: Operator, dynamic: bool) -> list[Sample]:
    """Return the samples without empty tensors, which no runtime accepts, and without plain convolutions."""
    samples = op.resized_samples() if dynamic else list(op.samples()) or random_samples(op)
    full = (s for s in samples if all(t is None or t.numel() for t in s.tensors))
    return [s for s in full if not is_plain_convolution(s)]


def random_samples(op: Operator) -> list[Sample]:
    """Return calls of an operator of boxes. Corners are in order, because ONNX's NMS would reorder them."""
    samples = [op.random_sample(Random(seed), "") for seed in range(8)]
    if op.name == "nms":
        for boxes, _ in (sample.tensors for sample in samples):
            boxes.copy_(torch.cat(torch.stack(boxes.split(2, 1)).sort(0).values.unbind(), 1))
    return samples


class Calls(nn.Module):
    """Calls of an operator. Weight and bias of a convolution are parameters; other tensors are inputs."""

    def __init__(self, calls: Sequence[tuple[str, Sample]]) -> None:
        super().__init__()
        self.calls, self.samples = calls, [sample for _, sample in calls]
        self.constants = nn.ParameterDict()
        for i, sample in enumerate(self.samples):
            for place in set(range(len(sample.tensors))) - set(inputs_of(sample)):
                if sample.tensors[place] is not None:
                    self.constants[f"{i}_{place}"] = nn.Parameter(sample.tensors[place])

    def forward(self, *args: Tensor) -> list[Tensor]:
        remaining, results = iter(args), []
        for i, (name, sample) in enumerate(self.calls):
            tensors = [self.constants.get(f"{i}_{place}") for place in range(len(sample.tensors))]
            for place in inputs_of(sample):
                tensors[place] = next(remaining)
            results.append(OPERATORS[name].call(Sample(sample.name, tuple(tensors), sample.kwargs)))
        return results


def inputs_of(sample: Sample) -> list[int]:
    """Return the positions of a call's tensors that are inputs of the graph."""
    convolution = len(sample.tensors) == 5  # input, weight, offset, mask, bias
    return [i for i, t in enumerate(sample.tensors) if t is not None and not (convolution and i in (1, 4))]


def arrays(*samples: Sample) -> tuple[Tensor, ...]:
    return tuple(sample.tensors[i] for sample in samples for i in inputs_of(sample))


@functools.cache
def exported(name: str, form: str, dtype: torch.dtype, dynamic: bool) -> list[tuple[Sample, Path]]:
    """Export all samples of an operator to one graph; return each sample and the file of its part."""
    samples = [sample.to(dtype) for sample in samples_of(OPERATORS[name], dynamic)]
    if dynamic and len(samples[0].tensors) == 5:  # the weights are constants of the graph
        _, weight, _, _, bias = samples[0].tensors
        samples = [replace(s, tensors=(s.tensors[0], weight, *s.tensors[2:4], bias)) for s in samples]
    model = Calls([(name, sample) for sample in samples[: 1 if dynamic else None]]).eval()
    args = arrays(*model.samples)
    folder = Path(tempfile.mkdtemp(prefix="dcnzoo-conformance-"))
    path = folder / "model.onnx"
    names = [f"in{i}" for i in range(len(args))], [f"out{i}" for i in range(len(model.samples))]
    shapes = tuple(dynamic_axes(samples)) if dynamic else None
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
        if name in UNTRANSLATED:
            continue
        rank = int(name[-2]) if name.startswith("deform_conv") else 0
        forms = [form for form, most in FORMS.items() if rank <= most] if rank else ["graph"]
        resizes = bool(samples_of(op, dynamic=True))
        for dtype, form, dynamic in itertools.product(TOLERANCES, forms, (False, True)):
            if dynamic and not (resizes and dtype == torch.float32):
                continue
            chosen = list(ONNX)
            if form == "native" and rank == 2 and not dynamic:
                # its DeformConv is a loop over pixels and channels: many minutes for all samples
                chosen.remove("onnx reference")
            if form == "native" and not dynamic:
                chosen.append("OpenVINO IR")
            for runtime in chosen:
                yield name, form, runtime, dtype, dynamic


def run(name: str, form: str, runtime: str, dtype: torch.dtype, dynamic: bool) -> Iterator[float | str]:
    """Yield each sample's error, or the message of the runtime."""
    op = OPERATORS[name]
    for sample, path in exported(name, form, dtype, dynamic):
        try:
            (result,) = runtimes.ONNX[runtime](path, [tensor.numpy() for tensor in arrays(sample)])
        except Exception as problem:  # runtimes have no common base class of exceptions
            yield runtimes.message(problem)
        else:
            yield error(op, sample, result)


def parameter(name: str, form: str, runtime: str, dtype: torch.dtype, dynamic: bool):
    """Return a case for pytest. Cases of one file run in one worker, which exports it once."""
    label = f"{name} {form} {runtime} {str(dtype)[6:]}{' dynamic' if dynamic else ''}"
    group = pytest.mark.xdist_group(f"{name} {form} {dtype} {dynamic}")
    return pytest.param(name, form, runtime, dtype, dynamic, id=label, marks=group)


@pytest.mark.parametrize("name, form, runtime, dtype, dynamic", [parameter(*case) for case in cases()])
def test_conformance(name, form, runtime, dtype, dynamic, record_property):
    size = "dynamic" if dynamic else "fixed"
    record_property("case", "|".join([name, form, runtime, str(dtype)[6:], size]))
    record_property("environment", runtimes.environment(runtime))
    results = list(run(name, form, runtime, dtype, dynamic))
    errors = [value for value in results if isinstance(value, float)]
    messages = [value for value in results if isinstance(value, str)]
    largest = max(errors, default=math.nan)
    parts = []
    if errors:
        parts.append(f"{largest:.0e}")
    if messages:
        parts.append(f"{len(messages)} of {len(results)} calls: {messages[0]}")
    record_property("result", "; ".join(parts))
    assert not errors or largest <= TOLERANCES[dtype], f"error {largest:.1e}: {results}"
    assert REFUSED.search(f"{name} {form} {runtime}") or not messages, messages
    if messages:
        pytest.skip(f"known: {messages[0]}")
