"""The operators in plain PyTorch: against the reference, without the library, and on other devices."""

import itertools
import math
import re
from random import Random

import pytest
import torch

from dcnzoo.ops import _library, choose
from dcnzoo.ops.operator import OPERATORS
from tests import op_cases
from tests.helpers.operators import INVENTED_DEVICE
from tests.helpers.processes import python_with_torch

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2}
SCHEMAS = _library._SCHEMAS.read_text().splitlines()
WITHOUT_LIBRARY = """
import sys
import torch

def load_library(path):
    raise OSError("made for another system")

torch.ops.load_library = load_library
from tests.ops.test_plain import refused, results
import dcnzoo.ops
assert not dcnzoo.ops.has_ops() and dcnzoo.ops.cpu_capability() == "none"
torch.save((results(), refused()), sys.argv[1])
"""


def results():
    """Outputs and gradients of every operator on some of its samples."""
    found = {}
    for operator in op_cases.operators(differentiable=False):
        random = (operator.random_sample(Random(seed), "") for seed in range(10))
        samples = random if not operator.differentiable else itertools.islice(operator.samples(), 12)
        for number, sample in enumerate(samples):
            types = TOLERANCES if number == 0 else (torch.float64,)
            for dtype in types:
                name = f"{operator.name} {number} {sample.name} {dtype}"
                found[name] = operator.results(sample.to(dtype))
    return found


def refused():
    """Return the function and the argument that the error for each invalid sample names."""
    blamed = {}
    for operator in op_cases.operators(differentiable=False):
        for sample, _ in operator.invalid():
            with pytest.raises((RuntimeError, TypeError)) as error:
                operator.call(sample)
            blamed[f"{operator.name} {sample.name}"] = str(error.value).split(":")[:2]
    return blamed


def test_without_the_library(tmp_path):
    file = tmp_path / "results.pt"
    child = python_with_torch(WITHOUT_LIBRARY, file)
    told = re.findall(r"UserWarning: (dcnzoo: .*)", child.stderr)
    assert len(told) == 1 and "_C_cpu.so does not load: made for another system" in told[0], told
    expected, (found, blamed) = results(), torch.load(file)
    assert blamed == refused()
    assert found.keys() == expected.keys()
    for name, got in found.items():
        assert got[0].stride() == expected[name][0].stride() or not got[0].numel(), name
        for g, w in zip(got, expected[name], strict=True):
            tolerance = TOLERANCES[getattr(torch, name.rpartition(".")[2])]
            largest = w.abs().max().item() if w.numel() else 0
            close = {"atol": tolerance * largest, "rtol": tolerance}
            torch.testing.assert_close(g, w, **close, msg=lambda text, name=name: f"{name}: {text}")


# Coordinates that touch every rule of the border, and pixels that only their readers may show


def sprinkle(tensor: torch.Tensor, *values: float) -> torch.Tensor:
    """Replace every seventh element by one of the values."""
    result = tensor.clone()
    flat = result.view(-1)
    places = torch.arange(0, len(flat), 7)
    flat[places] = torch.tensor(values, dtype=tensor.dtype)[places // 7 % len(values)]
    return result


CHANGES = {  # name -> (which tensor, its new values)
    "quarters": ("coordinates", lambda t: (t * 4).round() / 4),
    "not finite": ("coordinates", lambda t: sprinkle(t, math.nan, math.inf, -math.inf, 1e30, -1.0)),
    "NaN pixels": ("input", lambda t: sprinkle(t, math.nan, math.inf)),
}
# the position of the tensor with coordinates; dcnv4, which splits its tensor for dcnv3, is left out
COORDINATES = {
    **{f"deform_conv{kind}{rank}d": 2 for kind in ("", "_transpose") for rank in (1, 2, 3)},
    **{"dcnv3": 1, "ms_deform_attn": 1, "roi_align": 1, "deform_roi_pool": 2},
}


def changed(operator: op_cases.Operator, sample: op_cases.Sample, change: str) -> op_cases.Sample:
    which, function = CHANGES[change]
    tensors = list(sample.tensors)
    place = COORDINATES[operator.name] if which == "coordinates" else 0
    if tensors[place] is not None:
        tensors[place] = function(tensors[place])
    if operator.name == "roi_align":  # its images stay
        tensors[1][:, 0] = sample.tensors[1][:, 0]
    return op_cases.Sample(sample.name, tuple(tensors), sample.kwargs, sample.constant)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "operator", [o for o in op_cases.operators() if o.name in COORDINATES], ids=lambda operator: operator.name
)
def test_is_the_reference(operator, change):
    """Values and first gradients are those of the oracle, in float64."""
    for sample in itertools.islice(operator.samples(), 6):
        if op_cases.is_plain_convolution(sample):
            continue
        for overload, arguments in operator.overload_calls(changed(operator, sample, change)):
            record = OPERATORS[overload.name().removeprefix("dcnzoo::")]
            if record.is_backward:
                arguments = (op_cases.ramp(arguments[0]), *arguments[1:])
            with torch.no_grad():
                both = record.plain(*arguments), record.reference(*arguments)
            torch.testing.assert_close(*both, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_transforms_and_other_derivatives():
    """The operators in plain PyTorch have batching, compilation, forward mode and second derivatives."""
    code = """
import torch
from torch.autograd import gradcheck, gradgradcheck
from tests import op_cases
close = torch.testing.assert_close
for operator in op_cases.operators():
    if operator.name.endswith(("1d", "3d")):
        continue
    sample = operator.forms()[0]
    call = lambda *given: operator.call(sample.with_given(given))
    output, *gradients = operator.results(sample)
    pulled = torch.func.vjp(call, *sample.given)[1](op_cases.ramp(output))
    close(pulled, tuple(gradients))
    close(torch.compile(call, backend="aot_eager", fullgraph=True)(*sample.given), output)
    close(torch.vmap(lambda x: call(x, *sample.given[1:]))(sample.given[0][None])[0], output)
    if operator.name in ("deform_conv2d", "deform_roi_pool", "ms_deform_attn"):
        small = [t.clone().requires_grad_() for t in sample.given]
        tangents = tuple(torch.ones_like(t) for t in sample.given)
        close(torch.func.jvp(call, tuple(sample.given), tangents)[0], output)
        assert gradcheck(call, small, fast_mode=True, check_forward_ad=True)
        assert gradgradcheck(call, small, fast_mode=True)
"""
    python_with_torch(code, DCNZOO_BACKEND="plain")


# Other devices


INVENTED = f"""{INVENTED_DEVICE}
import dcnzoo.ops
names = torch._C._dispatch_get_all_op_names()
print(*(name.removeprefix("dcnzoo::") for name in names if name.startswith("dcnzoo::")))
torch.manual_seed(0)
x, w, offset = torch.randn(1, 3, 5, 6), torch.randn(4, 3, 3, 2), torch.zeros(1, 12, 5, 7)
leaves = [Invented(t).requires_grad_() for t in (x, w, offset)]
output = dcnzoo.ops.deform_conv2d(*leaves, padding=1)
gradients = torch.autograd.grad(output, leaves, Invented(torch.ones(output.shape)))
on_cpu = [t.requires_grad_() for t in (x, w, offset)]
expected = dcnzoo.ops.deform_conv2d(*on_cpu, padding=1)
expected = expected.detach(), *torch.autograd.grad(expected.sum(), on_cpu)
for result, right in zip((output.detach(), *gradients), expected, strict=True):
    assert result.device.type == "invented" and torch.allclose(result.on_cpu, right, atol=1e-5)
corners, scores = torch.rand(20, 2), torch.rand(20)
boxes = torch.cat([corners, corners + torch.rand(20, 2)], 1)
kept = dcnzoo.ops.nms(Invented(boxes), Invented(scores), 0.3)
assert torch.equal(kept.on_cpu, dcnzoo.ops.nms(boxes, scores, 0.3))
"""


def test_schemas_and_an_invented_device():
    """A device for which torch has no embedding_bag runs the reference, and the warning says so."""
    child = python_with_torch(INVENTED)
    schemas = {schema.partition("(")[0]: schema for schema in SCHEMAS}
    assert schemas.keys() == set(child.stdout.split())
    for name, schema in schemas.items():
        assert f"dcnzoo::{schema}" == str(getattr(torch.ops.dcnzoo, name).default._schema)
    (warning,) = re.findall(r"UserWarning: (dcnzoo: .*)", child.stderr)
    assert "no compiled kernels for invented" in warning and choose.REFERENCE in warning
    assert "embedding_bag" in warning


@pytest.mark.parametrize("device", ["xla", "hpu", "mtia", "ipu", "xpu", "mps", "privateuseone"])
def test_other_devices_have_every_operator(device):
    key = torch._C._dispatch_key_for_device(device)
    for name in (schema.partition("(")[0] for schema in SCHEMAS):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"dcnzoo::{name}", key), name


@pytest.mark.parametrize("has_sums", [True, False])
def test_plain_runs_where_torch_has_embedding_bag(monkeypatch, has_sums):
    monkeypatch.setattr(choose, "has_weighted_sums", lambda device: has_sums)
    kernel = choose.PLAIN if has_sums else choose.REFERENCE
    assert {kernels for kernels, _ in choose.kernels_by_operator("other").values()} == {(kernel,)}


def test_names_need_the_schemas(monkeypatch, tmp_path):
    """An empty list would leave every operator out of exports."""
    monkeypatch.setattr(_library, "_SCHEMAS", tmp_path / "schemas.txt")
    with pytest.raises(FileNotFoundError, match=r"schemas.txt is not in .*make setup"):
        _library.names()
