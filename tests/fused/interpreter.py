"""Run Triton's interpreter in a separate process, because Triton selects it when it is imported."""

import warnings
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import torch
from torch import Tensor

from .. import op_cases
from ..op_cases import Sample, deform_conv, results
from ..processes import SERVER, set_variables

GRADIENTS = ("input", "weight", "offset", "mask", "bias")
ENVIRONMENT = {"TRITON_INTERPRET": "1", "DCNZOO_BACKEND": "fused", "OMP_NUM_THREADS": "1"}


class Interpreter:
    """Call functions of this module in the other process."""

    def __init__(self):
        self.pool = ProcessPoolExecutor(1, SERVER, set_variables, (ENVIRONMENT,))

    def __call__(self, function, *arguments):
        return self.pool.submit(function, *arguments).result()


def run_kernels(
    sample: Sample, grad: Tensor, long_indices: bool = False, forward_only: bool = False
) -> dict[str, Tensor]:
    """Output and gradients of the fused kernels, even where another backend would be chosen."""
    from dcnzoo.ops.fused import deform_conv as fused
    from dcnzoo.ops.fused import launch

    input, weight, offset, mask, bias = sample.tensors
    geometry = [list(v) for v in deform_conv.geometry(sample, stride=1, padding=0, dilation=1)]
    problem = fused.Problem(
        input, weight, offset, mask, *geometry, sample.kwargs.get("groups", 1), allow_tf32=False
    )
    extent = launch.extent
    try:
        if long_indices:
            launch.extent = lambda tensor: 2**31
        results = {"output": fused.forward(problem, bias)}
        if forward_only:
            return results
        results["weight"] = fused.grad_weight(problem, grad)
        wanted = (True, offset is not None, mask is not None)
        gradients = fused.grad_samples(problem, grad, *wanted)
    finally:
        launch.extent = extent
    results |= dict(zip(("input", "offset", "mask"), gradients, strict=True))
    return {name: result for name, result in results.items() if result is not None}


def run_not_finite(case: int) -> None:
    """The test of Inf and NaN in each argument; the public function runs fused kernels where they fit."""
    from ..ops import test_not_finite

    test_not_finite.test_reaches_what_the_formula_reads(*test_not_finite.CASES[case], torch.float32)


def planes_read(sample: Sample, field: str, stride: int) -> list[int]:
    """The planes of offset or mask that the forward reads if they are ``stride`` elements apart."""
    import numpy
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from dcnzoo.ops.fused import deform_conv as fused

    base = sample.tensors[2 if field == "offset" else 3].data_ptr()
    bytes_apart = 4 * stride
    pixels = sample.tensors[2][0, 0].numel()
    read, places, load = set(), fused._places, InterpreterBuilder.create_masked_load

    def masked_load(builder, pointers, mask, other, *options):
        distance = pointers.data.astype(numpy.int64) - base
        is_plane = (distance >= 0) & (distance < 64 * bytes_apart) & (distance % bytes_apart < 4 * pixels)
        if not (is_plane | ~mask.data).all():
            return load(builder, pointers, mask, other, *options)
        read.update((distance[mask.data] // bytes_apart).tolist())
        element = pointers.get_element_ty()
        return TensorHandle(numpy.zeros(distance.shape, numpy.float32), element)

    def with_stride(name, tensor):
        return places(name, tensor) | ({f"{name}_channel": stride} if name == field else {})

    patch_load = mock.patch.object(InterpreterBuilder, "create_masked_load", masked_load)
    with patch_load, mock.patch.object(fused, "_places", with_stride):
        run_kernels(sample, torch.zeros(()), long_indices=True, forward_only=True)
    return sorted(read)


def call_operator(sample: Sample, grad: Tensor, ordered: bool = False) -> tuple[list[str], dict[str, Tensor]]:
    """Call the public function. Returns the kernels that ran, the output and the gradients."""
    from dcnzoo.ops import _choice
    from dcnzoo.ops.fused import deform_conv as fused

    ran = []

    def recorded(name: str):
        function = getattr(fused, name)

        def record(problem, *arguments, **options):
            ran.append(f"{name}{arguments[1:]}" if name == "grad_samples" else name)
            return function(problem, *arguments, **options)

        return mock.patch.object(fused, name, record)

    deterministic = mock.patch.object(_choice, "is_deterministic", lambda tensor: ordered)
    with recorded("forward"), recorded("grad_weight"), recorded("grad_samples"), deterministic:
        values = results(deform_conv.call, sample, grad)
    return ran, named(sample, values)


def named(sample: Sample, values: list[Tensor]) -> dict[str, Tensor]:
    """The output and the gradients of the tensors, by their names."""
    names = [name for name, tensor in zip(GRADIENTS, sample.tensors, strict=True) if tensor is not None]
    return dict(zip(["output", *names], values, strict=True))


def chosen_by_auto(sample: Sample, grad: Tensor, listed: dict) -> list[str]:
    """The kernels that run if the table lists these types as faster, from so many output pixels on.

    In a process with ``DCNZOO_BACKEND=fused``, the CPU's operators choose at every call, as CUDA's do.
    """
    from dcnzoo.ops import _choice
    from dcnzoo.ops.fused import deform_conv as fused

    entry = mock.patch.dict(fused.table()["interpreter"], auto=listed)
    order = mock.patch.object(_choice, "order", lambda *_: (_choice.FUSED, _choice.COMPILED))
    with entry, order, _choice.using("auto"):
        return call_operator(sample, grad)[0]


def chosen_without_compiler(sample: Sample, grad: Tensor) -> tuple[list[str], list[str]]:
    """The kernels that run if Triton cannot compile, and the warnings."""
    from dcnzoo.ops.fused import available, launch

    available.triton_works.cache_clear()
    failing = mock.patch.object(launch, "run_trial", side_effect=RuntimeError("no C compiler"))
    try:
        with failing, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            listed = {"bfloat16": {"forward": 0, "backward": 0}}
            ran = [*chosen_by_auto(sample, grad, listed), *chosen_by_auto(sample, grad, listed)]
            ran += call_operator(sample, grad)[0]  # DCNZOO_BACKEND=fused
    finally:
        available.triton_works.cache_clear()
    return ran, [str(warning.message) for warning in caught]


def run_operator(
    name: str, sample: Sample, grad: Tensor | None, long_indices: bool = False
) -> tuple[list[str], list[Tensor]]:
    """Call a public function. Returns the operators that Triton ran, the output and the gradients."""
    from dcnzoo.ops.fused import launch, operators

    (operator,) = (op for op in op_cases.operators(differentiable=False) if op.name == name)
    ran, run = [], operators.run

    def record(name, arguments):
        ran.append(name)
        return run(name, arguments)

    extent = (lambda tensor: 2**31) if long_indices else launch.extent
    with mock.patch.object(operators, "run", record), mock.patch.object(launch, "extent", extent):
        if not operator.differentiable:
            return ran, [operator.call(sample)]
        return ran, results(operator.call, sample, grad)


def opcheck(sample: Sample) -> None:
    for overload, arguments in deform_conv.OPERATORS[1].overload_calls(sample):
        torch.library.opcheck(overload, arguments)


def nodes_when_compiled(sample: Sample) -> list[str]:
    """The operators in torch.compile's only graph."""
    from torch._dynamo.testing import EagerAndRecordGraphs

    graphs = EagerAndRecordGraphs()
    compiled = torch.compile(lambda sample: deform_conv.call(sample), backend=graphs, fullgraph=True)
    compiled(sample)
    (graph,) = graphs.graphs
    return [str(node.target) for node in graph.graph.nodes if node.op.startswith("call")]


def opcheck_operator(name: str) -> None:
    (operator,) = (op for op in op_cases.operators() if op.name == name)
    for overload, arguments in operator.overload_calls(next(iter(operator.samples())).to(torch.float32)):
        torch.library.opcheck(overload, arguments)
