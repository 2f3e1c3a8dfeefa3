"""Start Python in a new process."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(
    *arguments: object, status: int = 0, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess:
    """Run ``python ARGUMENTS`` with these environment variables. An unexpected exit status fails the test."""
    command, environment = [sys.executable, *map(str, arguments)], {**os.environ, **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, errors="replace")
    assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def run_code(code: str, *arguments: object, **variables: str) -> str:
    """What the code prints."""
    return python("-c", code, *arguments, **variables).stdout


def compile_cpp(source: Path, target: Path, *options: str) -> Path:
    """Compile a C++ program, or a library with ``-shared``. The test is skipped without g++."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or not (ROOT / "ops").exists():
        pytest.skip("needs the sources and a C++ compiler")
    torch = Path(find_spec("torch").origin).parent
    headers = [f"-isystem{torch / path}" for path in ("include", "include/torch/csrc/api/include")]
    libraries = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    command = [compiler, f"-I{ROOT / 'ops'}", *headers, *options, source, "-o", target, *libraries]
    subprocess.run(command, check=True)
    return target


# a process that has imported torch, which takes seconds, and forks
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch"])


def set_variables(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def _execute(code: str, arguments: list[str], variables: dict[str, str], folder: str) -> None:
    for number, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    set_variables(variables)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def python_with_torch(
    code: str, *arguments: object, status: int | None = 0, **variables: str
) -> subprocess.CompletedProcess:
    """Run ``python -c CODE ARGUMENTS``, with torch already imported. With ``status=None``, it may fail."""
    with tempfile.TemporaryDirectory() as folder:
        child = SERVER.Process(target=_execute, args=(code, [*map(str, arguments)], variables, folder))
        child.start()
        child.join()
        output, errors = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
    assert status in (None, child.exitcode), f"{output[-2000:]}\n{errors[-4000:]}"
    return subprocess.CompletedProcess(code, child.exitcode, output, errors)


OPENMMLAB = ("mmengine", "mmcv", "mmdet")


def only(*packages: str) -> str:
    """Code that lets Python import only dcnzoo, these packages and the standard library."""
    return f"""
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        package = name.partition(".")[0]
        if package.startswith("_sysconfigdata"):  # of the standard library, named after the platform
            return
        if package not in {("dcnzoo", *packages)} and package not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent)
"""
