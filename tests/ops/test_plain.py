"""The operators without compiled kernels: if the library does not load, and on other devices."""

import itertools
import re
from random import Random

import pytest
import torch

from dcnzoo.ops import _library, choose

from .. import op_cases
from ..processes import python_with_torch

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


def test_schemas_and_a_device_without_compiled_kernels():
    """The calls run on the CPU with the dispatch key of another device, in a separate process, because
    dcnzoo.export defines more operators."""
    code = """
import torch
import dcnzoo.ops
torch.manual_seed(0)
names = torch._C._dispatch_get_all_op_names()
print(*(name.removeprefix("dcnzoo::") for name in names if name.startswith("dcnzoo::")))
key = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)
x, w, offset = torch.randn(1, 3, 5, 6), torch.randn(4, 3, 3, 2), torch.zeros(1, 12, 5, 7)
arguments = (x, w, offset, None, None, [1, 1], [1, 1], [1, 1], 1, None)
output = torch.ops.dcnzoo.deform_conv.default.redispatch(key, *arguments)
assert torch.allclose(output, torch.nn.functional.conv2d(x, w, padding=1), atol=1e-5)
boxes, scores = torch.rand(20, 4), torch.rand(20)
kept = torch.ops.dcnzoo.nms.default.redispatch(key, boxes, scores, 0.3, 0)
assert torch.equal(kept, dcnzoo.ops.nms(boxes, scores, 0.3))
"""
    child = python_with_torch(code)
    schemas = {schema.partition("(")[0]: schema for schema in SCHEMAS}
    assert schemas.keys() == set(child.stdout.split())
    for name, schema in schemas.items():
        assert f"dcnzoo::{schema}" == str(getattr(torch.ops.dcnzoo, name).default._schema)
    assert child.stderr.count("Plain PyTorch runs") == 1
    assert "no compiled kernels for XPU: dcnzoo has them only for CPU and CUDA" in child.stderr


@pytest.mark.parametrize("key", [key for key in choose.DEVICES if key not in ("CPU", "CUDA")])
def test_other_devices_have_every_operator(key):
    for name in (schema.partition("(")[0] for schema in SCHEMAS if not schema.startswith("_")):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dcnzoo::{name}", key), name


def test_names_need_the_schemas(monkeypatch, tmp_path):
    """An empty list would leave every operator out of exports."""
    monkeypatch.setattr(_library, "_SCHEMAS", tmp_path / "schemas.txt")
    with pytest.raises(FileNotFoundError, match=r"schemas.txt is not in .*make setup"):
        _library.names()
