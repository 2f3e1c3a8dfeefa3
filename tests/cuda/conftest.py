"""Run the CUDA kernels on a GPU or, without one, emulated on the host.

The emulation needs a C++ compiler. The unchanged kernels, launches and host code of ``ops/**/*_cuda.cu``
are compiled against a replacement for ``cuda_runtime.h`` (tests/cuda/emulation). The operators are still
registered for the CUDA dispatch key; the tests select that key and pass CPU tensors.
"""

from __future__ import annotations

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

# torch reads it once, before the first matrix product on a GPU, and refuses deterministic products without it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """cuDNN's convolutions use TF32 by default, which is less accurate than float32's tolerance."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def run_program(text: str, folder: Path, *options: str) -> str:
    """Compile a C++ program that includes headers of ``ops``, run it and return what it prints."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or not (ROOT / "ops").exists():
        pytest.skip("needs the sources and a C++ compiler")
    source, program = folder / "main.cpp", folder / "main"
    source.write_text(text)
    command = [
        compiler,
        "-std=c++17",
        "-Wall",
        "-Werror",
        *options,
        f"-I{ROOT / 'ops'}",
        source,
        "-o",
        program,
    ]
    subprocess.run(command, check=True)
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
    folders = (ROOT / "ops", ROOT / "tests/cuda/emulation")
    sources = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]
    texts = b"".join(path.read_bytes() for path in (*sources, Path(__file__)))
    version = hashlib.sha256(texts + f"{torch.__version__} {compiler}".encode()).hexdigest()
    library = ROOT / "build/emulation" / f"{version[:16]}.so"  # shared by all workers and later runs
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            for stale in library.parent.glob("*.so"):
                stale.unlink()
            build(compiler, library)
    torch.ops.load_library(library)
    return Kernels("cpu", emulated=True)


def build(compiler: str, library: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    flags = [
        *("-x", "c++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w"),
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        *("-I", ROOT / "tests/cuda/emulation", "-I", torch_folder / "include"),
    ]
    sources = sorted((ROOT / "ops").rglob("*_cuda.cu"))
    objects = [library.with_name(f"{library.stem}-{source.stem}.o") for source in sources]

    def compile(source: Path, target: Path) -> None:
        subprocess.run([compiler, *flags, "-c", source, "-o", target], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile, sources, objects))
    link = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    linked = library.with_suffix(".linked")
    subprocess.run([compiler, "-shared", *objects, "-o", linked, *link], check=True)
    linked.replace(library)
    for path in objects:
        path.unlink()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.cuda)
