"""Measure time and memory of many contestants that take turns in one process."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from families import Call
from json_server import JsonServer
from torch import Tensor

# Duration of a sample, the mean of several calls: makes the cost of clock and loop negligible.
SAMPLE_SECONDS = 0.005
MOST_GRAPH_CALLS = 50
# Pause between samples: the threads of OpenMP and onnxruntime spin for a while after their last job and would
# slow the next contestant.
PAUSE_SECONDS = 0.01
PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and quartiles of ``count`` samples."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        if not samples:
            raise ValueError("samples: expected at least 1, got 0")
        low, median, high = (quantile(samples, q) for q in (0.25, 0.5, 0.75))
        return cls(median, low, high, len(samples))

    @property
    def spread(self) -> float:
        """Interquartile range relative to the median."""
        return (self.high - self.low) / self.median


def quantile(values: Sequence[float], q: float) -> float:
    """Return a quantile, interpolated linearly between the two nearest values."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


@dataclass(frozen=True)
class Effort:
    """How long to measure a contestant on a case: until ``seconds``, with ``least`` to ``most`` samples."""

    seconds: float = 0.5
    least: int = 3
    most: int = 20


@dataclass
class Runner:
    """A contestant for one case, pass and number of threads."""

    run: Callable[[], object]
    threads: int
    device: str
    samples: list[float] = field(default_factory=list)
    calls: int = 1
    spent: float = 0.0
    graph: torch.cuda.CUDAGraph | None = None

    def warm_up(self) -> None:
        """Run once for initialisation, then once to estimate the duration of a call."""
        first = self._time(1)
        once = first if first > 1 else self._time(1)
        self.calls = max(1, min(1000, math.ceil(SAMPLE_SECONDS / once)))
        if self.device == "cuda":
            self.calls = min(self.calls, MOST_GRAPH_CALLS)
            self._capture()

    def _capture(self) -> None:
        """Record the calls of a sample in a CUDA graph: a replay spends no time in Python.

        A call that synchronises cannot be recorded and is timed with its launches.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for _ in range(self.calls):
                    self.run()
        except RuntimeError as error:
            print(f"no CUDA graph: {str(error).splitlines()[0][:100]}", flush=True)
            return
        self.graph = graph
        self._time(self.calls)

    def sample(self) -> None:
        seconds = self._time(self.calls)
        self.spent += seconds
        self.samples.append(seconds / self.calls)

    def wants_more(self, effort: Effort) -> bool:
        count = len(self.samples)
        return count < effort.least or (count < effort.most and self.spent < effort.seconds)

    def _time(self, calls: int) -> float:
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if self.device == "cuda":
            return self._time_cuda(calls)
        start = time.perf_counter()
        for _ in range(calls):
            self.run()
        return time.perf_counter() - start

    def _time_cuda(self, calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        if self.graph is not None:
            self.graph.replay()  # of self.calls calls
        else:
            for _ in range(calls):
                self.run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3


def take_turns(runners: Mapping[Hashable, Runner], effort: Effort, seed: int = 0) -> Iterator[None]:
    """Sample all runners, round after round, in random order; yield after each sample.

    A disturbance of the machine then affects all runners equally, and no runner always follows the same
    other.
    """
    shuffle = random.Random(seed).shuffle  # nosec B311  # no secret
    waiting = list(runners.values())
    while waiting := [runner for runner in waiting if runner.wants_more(effort)]:
        shuffle(waiting)
        for runner in waiting:
            time.sleep(PAUSE_SECONDS)
            runner.sample()
            yield


def make_pass(
    call: Call,
    name: str,
    out_shape: Sequence[int],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Callable[[], object] | None:
    """Return the function to time; None if the contestant has no backward.

    Args:
        memory_format: that of the output's gradient.
    """
    if name == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return call.forward()

        return forward
    if not call.leaves:
        return None
    grad = torch.randn(tuple(out_shape), generator=torch.Generator().manual_seed(1)).to(call.leaves[0])
    grad = grad.contiguous(memory_format=memory_format)

    def forward_backward() -> tuple[Tensor, ...]:
        output = call.forward()
        return output.detach(), *torch.autograd.grad(output, call.leaves, grad)

    return forward_backward


def disagreement(got: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinity if the shapes differ."""
    if got.shape != want.shape:
        return math.inf
    if not want.numel():
        return 0.0
    got, want = got.detach().double(), want.detach().double()
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item()


# Memory


@dataclass(frozen=True)
class Memory:
    """Memory of a call, in bytes.

    Attributes:
        extra: peak, in addition to the memory before the call and to the results.
        needed: inputs, weights and results.
    """

    extra: int
    needed: int


class MemoryProbe:
    """Measures the peak memory of calls on the CPU, each in a new process (memory_server.py).

    Allocators, thread pools and kernel caches keep their memory, so the high-water mark of a process that has
    run something before is useless. The server imports everything and computes nothing; it forks for each
    request.
    """

    def __init__(self) -> None:
        self._server: JsonServer | None = None

    def __enter__(self) -> MemoryProbe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    def measure(self, **request: object) -> Memory:
        """Measure one call.

        Raises:
            RuntimeError: it cannot be measured; with the reason.
        """
        if self._server is None:
            self._server = JsonServer([sys.executable, Path(__file__).with_name("memory_server.py")])
        try:
            answer = self._server.ask(request)
        except RuntimeError as error:
            raise RuntimeError(f"memory: {error}") from error
        if "error" in answer:
            raise RuntimeError(f"memory: {answer['error']}")
        return Memory(**answer)


def cuda_memory(run: Callable[[], object], tensors: Mapping[str, Tensor | None]) -> Memory:
    """Measure the memory of a call on a GPU, by torch's allocator."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run()
    torch.cuda.synchronize()
    returned = size_of(results)
    extra = torch.cuda.max_memory_allocated() - before - returned
    return Memory(max(0, extra), size_of(list(tensors.values())) + returned)


def size_of(tensors: object) -> int:
    """Return the bytes of one or several tensors."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(size_of(t) for t in tensors if t is not None)
