"""``dcnzoo run --cpu``: CUDA calls on the CPU."""

import os

import pytest
import torch
from dcnzoo.compat.cpu import on_cpu
from torch import nn

CUDA_CALLS = {
    "cuda": lambda x: x.cuda(0, non_blocking=True),
    "name": lambda x: x.to("cuda:1"),
    "index": lambda x: x.to(0),
    "device": lambda x: x.to(torch.device("cuda"), torch.float64, non_blocking=True),
    "keyword": lambda x: x.to(device="cuda"),
    "pinned": lambda x: x.pin_memory(),
    "function": lambda x: torch.zeros(2, device="cuda"),
    "method": lambda x: x.new_zeros(2, device=torch.cuda.current_device()),
    "module": lambda x: nn.Linear(2, 2).cuda().to(0).to("cuda").to(device=torch.device("cuda"))(x),
    "parallel": lambda x: nn.DataParallel(nn.Linear(2, 2), device_ids=[0]).cuda()(x),
}


@pytest.mark.parametrize("call", CUDA_CALLS)
def test_cuda_calls_on_the_cpu(call):
    with on_cpu():
        output = CUDA_CALLS[call](torch.ones(2))
    assert output.device.type == "cpu" and output.shape == (2,)
    assert output.dtype == (torch.float64 if call == "device" else torch.float32)


def test_set_device_by_keyword():
    with on_cpu():
        torch.cuda.set_device(device=0)


@pytest.mark.parametrize("location", [None, "cuda", torch.device("cuda", 0)])
def test_load_on_the_cpu(tmp_path, monkeypatch, location):
    file = tmp_path / "saved_on_a_gpu.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(torch.ones(2), file)
    with on_cpu():
        assert torch.load(file, location).device.type == "cpu"
        assert torch.load(file, map_location="meta").is_meta
        torch.cuda.synchronize()
        with torch.cuda.device(0):
            torch.cuda.set_device(0)


def test_on_cpu_is_undone():
    owners = [(torch, "load"), (nn.Module, "to"), (torch.cuda, "synchronize"), (torch.cuda, "device")]
    before = [getattr(*each) for each in owners], dict(os.environ)
    with pytest.raises(ZeroDivisionError), on_cpu():
        assert getattr(*owners[0]) is not before[0][0] and not torch.cuda.is_available()
        raise ZeroDivisionError
    assert ([getattr(*each) for each in owners], dict(os.environ)) == before
    assert torch.ones(2, device="meta").is_meta
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.ones(2, device="cuda")
