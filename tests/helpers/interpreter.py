"""Run Triton's interpreter in a separate process, because Triton selects it when it is imported."""

import warnings
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import torch
from torch import Tensor

from tests import op_cases
from tests.helpers.processes import SERVER, set_variables
from tests.op_cases import Sample, results

ENVIRONMENT = {"TRITON_INTERPRET": "1", "DCNZOO_BACKEND": "fused", "OMP_NUM_THREADS": "1"}
OPERATORS = {op.name: op for op in op_cases.operators(differentiable=False)}


class Interpreter:
    """Call functions of this module in the other process."""

    def __init__(self):
        self.pool = ProcessPoolExecutor(1, SERVER, set_variables, (ENVIRONMENT,))

    def __call__(self, function, *arguments):
        return self.pool.submit(function, *arguments).result()


def run_operator(
    name: str, sample: Sample, grad: Tensor | None, long_indices: bool = False, ordered: bool = False
) -> tuple[list[tuple[str, list[bool] | None]], list[Tensor]]:
    """Call a public function.

    Returns:
        the operators that Triton ran, each with its ``output_mask``; the output and the gradients.
    """
    from dcnzoo.ops import run as runner
    from dcnzoo.ops.fused import launch

    ran, run = [], runner.run_fused

    def record(operator, launches, call):
        ran.append((operator.name, getattr(call, "output_mask", None)))
        return run(operator, launches, call)

    size_class = (lambda tensor: 2) if long_indices else launch.size_class
    patches = (
        mock.patch.object(runner, "run_fused", record),
        mock.patch.object(launch, "size_class", size_class),
        mock.patch.object(runner, "is_deterministic", lambda tensor: ordered),
    )
    with patches[0], patches[1], patches[2]:
        if not OPERATORS[name].differentiable:
            return ran, [OPERATORS[name].call(sample)]
        return ran, results(OPERATORS[name].call, sample, grad)


def by_plan_and_anew(name: str, sample: Sample, other: Sample, grad: Tensor) -> list[list[Tensor]]:
    """Return the results of ``other``, of the same shape, by the plan of ``sample`` and by a new one."""
    from dcnzoo.ops import plans

    results(OPERATORS[name].call, sample, grad)
    stored = dict(plans._plans)
    by_plan = results(OPERATORS[name].call, other, grad)
    assert plans._plans == stored
    plans._plans.clear()
    return [by_plan, results(OPERATORS[name].call, other, grad)]


def run_not_finite(case: int, value: float) -> None:
    """The test of Inf and NaN in each argument; the public function runs fused kernels where they fit."""
    from tests.helpers import not_finite as tests

    tests.assert_reaches_what_the_formula_reads(*tests.CASES[case], torch.float32, (value,))


def chosen_by_auto(sample: Sample, grad: Tensor, listed: dict) -> list[str]:
    """Return the operators that Triton runs if the table lists these types as faster from so many pixels on.

    In a process with ``DCNZOO_BACKEND=fused``, the CPU's operators choose at every call, as CUDA's do.
    """
    from dcnzoo.ops import choose, plans
    from dcnzoo.ops.fused import available

    entry = mock.patch.dict(available.table()["interpreter"], auto=listed)
    runs = mock.patch.object(choose, "triton_runs_on", lambda key: True)
    no_plans = mock.patch.object(plans, "_plans", {})
    with entry, runs, no_plans, mock.patch.object(choose, "backend", "auto"):
        return [name for name, _ in run_operator("deform_conv2d", sample, grad)[0]]


def chosen_without_compiler(sample: Sample, grad: Tensor) -> tuple[list[str], list[str]]:
    """Return the operators that Triton runs if it cannot compile, and the warnings."""
    from dcnzoo.ops import plans
    from dcnzoo.ops.fused import available, launch

    available.triton_works.cache_clear()
    no_plans = mock.patch.object(plans, "_plans", {})
    failing = mock.patch.object(launch, "run_trial", side_effect=RuntimeError("no C compiler"))
    try:
        with failing, no_plans, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            listed = {"bfloat16": {"forward": 0, "backward": 0}}
            ran = [*chosen_by_auto(sample, grad, listed), *chosen_by_auto(sample, grad, listed)]
            ran += run_operator("deform_conv2d", sample, grad)[0]  # DCNZOO_BACKEND=fused
    finally:
        available.triton_works.cache_clear()
    return ran, [str(warning.message) for warning in caught]
