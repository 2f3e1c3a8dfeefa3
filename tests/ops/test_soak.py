"""Memory stays constant and nothing fails with several threads and processes. `nox -s crash` runs longer."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.helpers.processes import ROOT, python
from tests.op_cases import deform_conv, ramp, results

SECONDS = float(os.environ.get("DCNZOO_SOAK_SECONDS", "20"))
# Threads keep memory for their largest call, which a short warm-up may not include.
MOST = 0.02 if SECONDS >= 1800 else 0.12


@pytest.mark.slow
def test_memory_is_flat():
    done = python("-m", "tests.programs.soak", f"--seconds={SECONDS}", f"--most={MOST}", cwd=ROOT)
    print(done.stdout)  # `nox -s crash` shows it
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["fewest_calls_of_an_operator"] >= 10


def test_gradients_from_several_threads():
    """Gradients are right if each thread has its own graph of shared parameters, and if all share a graph."""
    sample = deform_conv.make("shared", batch=3, padding=1).leaves()
    output = deform_conv.call(sample)
    grad = ramp(output)
    expected = torch.autograd.grad(output, sample.given, grad, retain_graph=True)
    together = threading.Barrier(4)

    def of_one_graph(_):
        together.wait(60)
        return torch.autograd.grad(output, sample.given, grad, retain_graph=True)

    def of_own_graph(_):
        together.wait(60)
        return torch.autograd.grad(deform_conv.call(sample), sample.given, grad)

    for work in (of_one_graph, of_own_graph):
        with ThreadPoolExecutor(4) as pool:
            for gradients in pool.map(work, range(4)):
                assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


class Outputs(Dataset):
    """Item i is an operator's output and gradient, computed in the process that loads it."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> torch.Tensor:
        # more pixels than one tile, so that several threads work
        sample = deform_conv.make(f"item {i}", batch=2, size=(20, 21), padding=1)
        output, gradient, *_ = results(deform_conv.call, sample)
        return torch.cat([output.flatten(), gradient.flatten()])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(context):
    items = Outputs()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # creates a thread pool, which fork does not copy
        expected = torch.stack([items[i] for i in range(len(items))])
    finally:
        torch.set_num_threads(threads)
    loader = DataLoader(items, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=120)
    assert torch.equal(torch.stack(list(loader)), expected)
