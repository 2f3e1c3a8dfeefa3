"""Run the CUDA kernels on a GPU or, without one, emulated on the host.

The emulation needs a C++ compiler. The unchanged kernels, launches and host code of ``ops/**/*_cuda.cu``
are compiled against a replacement for ``cuda_runtime.h`` (tests/cuda/emulation). The operators are still
registered for the CUDA dispatch key; the tests select that key and pass CPU tensors.
"""

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from dcnzoo.ops import with_cuda
from tests.helpers.operators import largest, moved
from tests.helpers.processes import ROOT, compile_cpp
from tests.op_cases import deform_conv, results

# torch reads this once, before the first matrix product on a GPU; without it, deterministic products fail
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """cuDNN's convolutions use TF32 by default, which is less accurate than float32's tolerance."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def skip_without_kernels(request):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "op" in parameters and not parameters["op"].cuda:
        pytest.skip(f"{parameters['op'].name} has no CUDA kernels")


def run_program(text: str, folder: Path, *options: str) -> str:
    """Compile a C++ program that includes headers of ``ops``, run it and return what it prints."""
    source = folder / "main.cpp"
    source.write_text(text)
    program = compile_cpp(source, folder / "main", "-std=c++17", "-Wall", "-Werror", *options)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Kernels:
    device: str
    emulated: bool

    def __call__(self, overload: torch._ops.OpOverload, *arguments):
        """Run the CUDA kernel of an operator on tensors of ``device``, below autograd."""
        if not self.emulated:
            return overload(*arguments)
        return overload.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)


@pytest.fixture(scope="session", params=["gpu" if with_cuda() else "emulated"])
def kernels(request) -> Kernels:
    if request.param == "gpu":
        return Kernels("cuda", emulated=False)
    if torch.version.cuda is not None:
        pytest.skip("no GPU; emulation needs a torch without CUDA")
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or not (ROOT / "ops").exists():
        pytest.skip("emulation needs the sources and a C++ compiler")
    folder = ROOT / "build/emulation"  # shared by all workers and later runs
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        library = build(compiler, folder)
    torch.ops.load_library(library)
    return Kernels("cpu", emulated=True)


def build(compiler: str, folder: Path) -> Path:
    """Compile each ``.cu`` that has changed, or all if a header has, and link them."""
    torch_folder = Path(torch.__file__).parent
    flags = [  # without FORTIFY, which forbids longjmp to another stack
        *("-x", "c++", "-std=c++17", "-O0", "-U_FORTIFY_SOURCE", "-fPIC", "-fvisibility=hidden", "-w"),
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        *("-I", ROOT / "tests/cuda/emulation", "-I", torch_folder / "include"),
    ]
    headers = [p for name in ("ops", "tests/cuda/emulation") for p in sorted((ROOT / name).rglob("*.*h"))]
    common = b"".join(path.read_bytes() for path in (*headers, Path(__file__)))
    common += f"{torch.__version__} {compiler}".encode()

    def path_for(name: str, text: bytes) -> Path:
        return folder / f"{name}-{hashlib.sha256(common + text).hexdigest()[:16]}"

    def compile(source: Path) -> Path:
        target = path_for(source.stem, source.read_bytes()).with_suffix(".o")
        if not target.exists():
            unfinished = target.with_suffix(".unfinished")
            subprocess.run([compiler, *flags, "-c", source, "-o", unfinished], check=True)
            unfinished.replace(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, sorted((ROOT / "ops").rglob("*_cuda.cu"))))
    library = path_for("library", "".join(path.name for path in objects).encode()).with_suffix(".so")
    if not library.exists():
        link = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
        subprocess.run([compiler, "-shared", *objects, "-o", library, *link], check=True)
    for stale in {*folder.glob("*.o"), *folder.glob("*.so")} - {*objects, library}:
        stale.unlink()
    return library


@torch.no_grad()
def assert_captured(op) -> None:
    """A replayed CUDA graph writes the output of the call that it has recorded."""
    sample = moved(next(iter(op.samples())).to(torch.float32))
    expected = op.call(sample)  # compile and look up kernels before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = op.call(sample)
    output.zero_()
    graph.replay()
    torch.testing.assert_close(output, expected)


def assert_same_bits(op, sample) -> None:
    """Five calls in deterministic mode are equal, and close to a call in the other mode."""
    sample = moved(sample.to(torch.float32))
    atomic = results(op.call, sample)
    torch.use_deterministic_algorithms(True)
    try:
        ordered = [results(op.call, sample) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in ordered:
        assert all(map(torch.equal, run, ordered[0]))
    for result, expected in zip(ordered[0], atomic, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * largest(expected))


def assert_current_stream(sample) -> None:
    """Check that deform_conv2d runs on the current stream of the last device."""
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    sample = sample.to(torch.float32).map(lambda t: t.to(device))
    expected = deform_conv.call(sample)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda._sleep(10_000_000)  # work on another stream would read the input too early
        output = deform_conv.call(sample.map(lambda t: t * 1))
    torch.cuda.synchronize(device)
    assert output.device == device
    torch.testing.assert_close(output, expected)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.cuda)
