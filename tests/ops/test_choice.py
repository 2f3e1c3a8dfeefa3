"""Which kernels run on a GPU, with and without the compiled library and Triton."""

import re
import warnings

import pytest
import torch

from dcnzoo.ops import _library, choose, plans, run
from dcnzoo.ops._arguments import arguments_of
from dcnzoo.ops.fused import available
from dcnzoo.ops.operator import OPERATORS
from tests import op_cases
from tests.op_cases import deform_conv

COMPILED, FUSED, PLAIN = choose.COMPILED, choose.FUSED, choose.PLAIN
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def call_of(name: str, **changed) -> tuple:
    """The arguments of the registered operator."""
    size = {"deform_conv1d": 1, "deform_conv2d": 2, "deform_conv3d": 3}.get(name)
    if size is not None:
        given = {"size": deform_conv.SIZE[size], "kernel": deform_conv.KERNEL[size], "padding": 1}
        sample = deform_conv.make("choice", **(given | changed))
    else:
        (operator,) = (op for op in op_cases.operators() if op.name == name)
        sample = next(s for s in operator.samples() if s.kwargs.items() >= changed.items())
    (operator,) = (op for op in op_cases.operators() if op.name == name)
    overload, arguments = operator.overload_calls(sample)[0]
    return overload.name().removeprefix("dcnzoo::"), arguments


BOXES = torch.rand(9, 4)
CALLS = {
    "deform_conv2d": call_of("deform_conv2d", channels=32, out_channels=32),
    "depthwise": call_of("deform_conv2d", groups=6, out_channels=6),
    "deform_conv1d": call_of("deform_conv1d"),
    "deform_conv3d": call_of("deform_conv3d"),
    "mask in other groups": call_of("deform_conv2d", mask_groups=3, channels=96, out_channels=32),
    **{name: call_of(name) for name in ("dcnv3", "dcnv4", "ms_deform_attn", "deform_roi_pool")},
    "deform_conv_transpose2d": call_of("deform_conv_transpose2d"),
    "roi_align": call_of("roi_align"),
    "nms": ("nms", (BOXES, torch.rand(9), 0.5, 0)),
    "nms, offset 1": ("nms", (BOXES, torch.rand(9), 0.5, 1)),
}
ONLY_PLAIN = {"deform_conv3d", "deform_conv_transpose2d"}


def choice(call: str, dtype: torch.dtype) -> tuple[str, str]:
    """Return the kernel that runs a call on a GPU, and why no others do."""
    name, arguments = CALLS[call]
    cast = lambda a: a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a  # noqa: E731
    query = choose.Query(OPERATORS[name], "cuda", arguments_of(name)(*map(cast, arguments)))
    kernels, reason = choose.kernels_for(query)
    return kernels[0], reason


def chosen(call: str, dtype: torch.dtype) -> str:
    return choice(call, dtype)[0]


@pytest.fixture
def loaded(monkeypatch):
    """Pretend that the compiled CUDA library is not loaded; return a function that changes this."""
    monkeypatch.setattr(plans, "_plans", {})
    monkeypatch.setattr(available, "triton_works", lambda device: True)
    monkeypatch.setattr(available, "is_faster", lambda name, call: False)
    monkeypatch.setattr(choose, "has_weighted_sums", lambda device: True)  # as in a CUDA build

    def set_loaded(compiled: bool) -> None:
        devices = ("cpu", "cuda") if compiled else ("cpu",)
        monkeypatch.setattr(_library, "kernels", {device: dict.fromkeys(OPERATORS) for device in devices})

    set_loaded(False)
    return set_loaded


@pytest.mark.parametrize("call", CALLS)
def test_the_compiled_library_comes_first(loaded, call):
    plain = {dtype for dtype in TYPES if call in ONLY_PLAIN or dtype == torch.float64}
    assert [chosen(call, dtype) for dtype in TYPES] == [PLAIN if t in plain else FUSED for t in TYPES]
    loaded(True)
    assert {chosen(call, dtype) for dtype in TYPES} == {COMPILED}


def test_triton_runs_without_any_library(loaded, monkeypatch):
    """Triton needs no compiled library, because the checks of arguments are in Python."""
    before = {call: chosen(call, torch.float32) for call in CALLS}
    monkeypatch.setattr(_library, "kernels", {})
    assert {call: chosen(call, torch.float32) for call in CALLS} == before
    assert FUSED in before.values() and PLAIN in before.values()


def test_every_operator_runs_compiled_on_a_cpu():
    kernels = [choose.kernels_for(choose.Query(operator, "cpu")) for operator in OPERATORS.values()]
    assert set(kernels) == {((COMPILED,), "")}


def test_an_operator_that_the_library_lacks_runs_elsewhere(loaded, monkeypatch):
    loaded(True)
    del _library.kernels["cuda"]["dcnv3"]
    assert [chosen(call, torch.float32) for call in ("dcnv3", "dcnv4")] == [FUSED, COMPILED]
    assert choice("dcnv3", torch.float64)[1].endswith("no compiled kernels for cuda")
    assert choose.table("cuda")["dcnv3"] == ((FUSED, PLAIN), "no compiled kernels for cuda")


def test_a_slow_kernel_is_named_once_with_its_operators(loaded, monkeypatch):
    """Also if each operator has a Triton kernel for other calls."""
    monkeypatch.setattr(run, "_warned", set())
    slow = plans.Plan(PLAIN, "no compiled kernels for cuda", None)
    with pytest.warns(UserWarning, match="deform_conv_transpose, others in float64") as caught:
        run.warn_of_slow_kernel("cuda", slow)
        run.warn_of_slow_kernel("cuda", slow)
    assert len(caught) == 1
    monkeypatch.setattr(choose, "OPERATORS", {"nms": OPERATORS["nms"]})
    monkeypatch.setattr(run, "_warned", set())
    with pytest.warns(UserWarning, match="as long: others in float64 and 3-D"):
        run.warn_of_slow_kernel("cuda", slow)


def test_the_choice_says_why(loaded, monkeypatch):
    def reason(call, dtype=torch.float32):
        return choice(call, dtype)[1]

    assert "no compiled kernels for cuda" in reason("dcnv3")
    assert "float64" in reason("dcnv3", torch.float64)
    loaded(True)
    assert reason("deform_conv2d") == "Triton is not listed as faster"
    monkeypatch.setattr(choose, "backend", "compiled")
    assert reason("deform_conv2d") == "DCNZOO_BACKEND=compiled"
    monkeypatch.setattr(choose, "backend", "plain")
    for compiled in (True, False):
        loaded(compiled)
        assert {chosen(call, torch.float32) for call in CALLS} == {PLAIN}
        assert reason("deform_conv2d").split("; ")[0] == "DCNZOO_BACKEND=plain"
    loaded(True)
    assert reason("deform_conv2d") == "DCNZOO_BACKEND=plain"


def test_listed_kernels_run_if_they_work_here_and_were_measured(loaded, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(available, "is_faster", lambda name, call: True)
    loaded(True)
    assert choice("deform_conv2d", torch.bfloat16) == (FUSED, "")
    assert choice("depthwise", torch.bfloat16) == (COMPILED, "Triton's kernel has no measurements")
    assert choice("dcnv3", torch.bfloat16) == (COMPILED, "Triton is not listed as faster")
    monkeypatch.setattr(choose, "failed", {"deform_conv"})
    assert choice("deform_conv2d", torch.bfloat16) == (COMPILED, "Triton's kernel failed before")
    monkeypatch.setattr(choose, "failed", set())
    monkeypatch.setattr(available, "triton_works", lambda device: False)
    assert choice("deform_conv2d", torch.bfloat16) == (COMPILED, "Triton does not work here")
    assert choose.table("cuda")["deform_conv"] == ((COMPILED,), "Triton does not work here")


def test_no_kernel_is_tried_while_operators_are_registered(loaded, monkeypatch):
    loaded(True)
    monkeypatch.setattr(available, "triton_works", lambda device: pytest.fail("a trial"))
    monkeypatch.setattr(_library, "loaded", dict.fromkeys(("cpu", "cuda")))
    keys = []
    monkeypatch.setattr(run, "choose_at_every_call", lambda operator, key: keys.append((operator.name, key)))
    for operator in OPERATORS.values():
        run.register(operator)
    backwards = {name for name, operator in OPERATORS.items() if operator.is_backward}
    assert {name for name, key in keys if key == run.EVERY_KEY} == OPERATORS.keys()
    assert {name for name, key in keys if key == "CUDA"} == {"deform_conv", *backwards}
    assert not [name for name, key in keys if key == "CPU"]


def test_a_kernel_that_fails_once_is_not_tried_again(loaded, monkeypatch):
    def fail(operator, launches, call):
        tried.append(operator.name)
        raise OSError("no space left on device")

    tried = []
    monkeypatch.setattr(run, "run_fused", fail)
    monkeypatch.setattr(choose, "failed", set())
    monkeypatch.setattr(run, "warn_of_slow_kernel", lambda *_: None)
    name, arguments = CALLS["dcnv3"]
    arguments = tuple(a.float() if isinstance(a, torch.Tensor) else a for a in arguments)
    keyset = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    # not by the dispatcher: tests/cuda may have loaded the emulated library in this process
    kernel = run.kernel_of(OPERATORS[name], "CUDA")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [kernel(keyset, *arguments) for _ in range(2)]
    assert tried == ["dcnv3"] and len(caught) == 1 and "no space left" in str(caught[0].message)
    expected = getattr(torch.ops.dcnzoo, name)(*arguments)
    for result in results:
        torch.testing.assert_close(result, expected)


def test_a_mistake_in_a_launch_is_not_hidden(loaded, monkeypatch):
    def fail(operator, launches, call):
        raise KeyError("USE_INT64")

    monkeypatch.setattr(run, "run_fused", fail)
    monkeypatch.setattr(choose, "failed", set())
    name, arguments = CALLS["dcnv3"]
    arguments = tuple(a.float() if isinstance(a, torch.Tensor) else a for a in arguments)
    keyset = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(KeyError, match="USE_INT64"):
        run.kernel_of(OPERATORS[name], "CUDA")(keyset, *arguments)
    assert not choose.failed


@pytest.mark.parametrize("name", sorted({name for name, _ in CALLS.values()}))
def test_arguments_are_checked_on_a_gpu_without_the_library(loaded, monkeypatch, name):
    """Errors name the same function and argument as the compiled kernels, whichever kernel would run."""
    monkeypatch.setattr(run, "warn_of_slow_kernel", lambda *_: None)
    keyset = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for operator in op_cases.operators(differentiable=False):
        for sample, _ in operator.invalid():
            if operator.name.rstrip("123d") != name and operator.name != name:
                continue
            try:
                with torch.no_grad(), op_cases.Recorder() as recorder:
                    operator.call(sample)
            except (RuntimeError, TypeError) as error:
                message = str(error)
            # the last two need the values, for which only the CPU's kernels wait
            if re.search("got meta|image number|for level", message):
                continue
            for overload, arguments in recorder.calls:
                kernel = run.kernel_of(OPERATORS[overload.name().removeprefix("dcnzoo::")], "CUDA")
                with pytest.raises(RuntimeError) as caught:
                    kernel(keyset, *arguments)
                assert str(caught.value).split(":")[:2] == message.split(":")[:2]


def test_every_device_has_a_kernel():
    """Plain PyTorch runs where no other kernel does."""
    keys = ("CPU", "CUDA", "XLA", "HPU", "MTIA", "IPU", "XPU", "MPS", "PrivateUse1")
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    missing = [(name, key) for name in OPERATORS for key in keys if not has_kernel(f"dcnzoo::{name}", key)]
    assert not missing
