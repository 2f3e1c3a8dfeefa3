"""Building: never a package without operators, and one clear message for missing requirements."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from elftools.elf.elffile import ELFFile

from dcnzoo import __version__
from dcnzoo.ops import _library

from .processes import ROOT

SOURCES = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "model-index.yml"),
    *("dcnzoo", "ops", "configs", "tools"),
)

if not (ROOT / "setup.py").exists():
    pytest.skip("needs the sources", allow_module_level=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return copy_of_the_sources(tmp_path_factory.mktemp("sources") / "clone")


@pytest.fixture(scope="module")
def built(tree) -> Path:
    """The package without compiled libraries, as setup.py builds it."""
    (tree / "tools" / "__pycache__").mkdir()
    (tree / "tools" / "__pycache__" / "x.pyc").touch()
    return build_py(tree)


def build_py(tree: Path) -> Path:
    result = setup(tree, "build_py")
    assert result.returncode == 0, result.stderr
    (built,) = tree.glob("build/lib*")
    return built


def copy_of_the_sources(tree: Path) -> Path:
    """Only the sources, as in a fresh clone."""
    tree.mkdir()
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=built, symlinks=True)
        else:
            shutil.copy(source, tree / name)
    return tree


def setup(tree: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH")}
    words, variables = [sys.executable, "setup.py", "-q", *command], {**kept, "DCNZOO_CUDA": "0", **variables}
    return subprocess.run(words, cwd=tree, env=variables, capture_output=True, text=True)


def small_clone(folder: Path) -> tuple[Path, dict[str, str]]:
    """Sources with one function instead of the operators, and an empty torch: they compile in a second."""
    tree = copy_of_the_sources(folder / "clone")
    shutil.rmtree(tree / "ops")
    (tree / "ops" / "x").mkdir(parents=True)
    (tree / "ops" / "x" / "x_cpu.cpp").write_text("#include <header.h>\nint two() { return TWO; }\n")
    return tree, empty_torch(folder)


def empty_torch(folder: Path) -> dict[str, str]:
    """Write a torch without content, and return the variables with which setup.py finds it."""
    torch = folder / "modules" / "torch"
    for part in ("include", "lib"):
        (torch / part).mkdir(parents=True)
    version = "class version:\n    cuda = None\n"
    (torch / "__init__.py").write_text(f"__version__ = '2.13.0'\n{version}")
    (torch / "include" / "header.h").write_text("#define TWO 2\n")
    for name in ("torch_cpu", "torch", "c10"):
        (torch / "lib" / f"lib{name}.a").write_text("!<arch>\n")
    return {"PYTHONPATH": str(torch.parent)}


def test_paths_with_special_characters(tmp_path):
    """Of ninja and of the shell, in the paths of the clone and of torch."""
    folder = tmp_path / "sp ace$"
    folder.mkdir()
    tree, torch = small_clone(folder)
    tree = tree.rename(folder / "co:lon")  # not in PYTHONPATH
    for _ in range(2):  # the second build reads the dependencies that the first has written
        result = setup(tree, "build_ext", "--inplace", **torch)
        assert result.returncode == 0, result.stderr
    assert "no work to do" in result.stdout
    assert (tree / "dcnzoo" / "ops" / "_C_cpu.so").exists()


@pytest.mark.parametrize(
    ("variables", "module", "content", "words"),
    [
        (dict(CXX="no-such-compiler -O2"), None, "", ("'no-such-compiler -O2'", "CXX")),
        ({}, "ninja", "raise ImportError\n", ("ninja", "pip install ninja")),
        ({}, "torch", "raise ImportError\n", ("torch is not installed", "--no-build-isolation")),
        ({}, "torch", "__version__ = '2.9.1+cu128'\n", ("2.9.1+cu128", 'pip install "torch>=2.10"')),
        ({}, "setuptools", "__version__ = '65.5.0'\n", ("setuptools>=77",)),
        (dict(CXX=shutil.which("false")), None, "", ("_C_cpu.so", "CXX")),
    ],
    ids=["compiler", "ninja", "torch", "old torch", "old setuptools", "failing compiler"],
)
def test_what_is_missing_is_said(tree, tmp_path, variables, module, content, words):
    variables = {**variables, **empty_torch(tmp_path)}
    if module:
        (tmp_path / "modules" / module).mkdir(exist_ok=True)
        (tmp_path / "modules" / module / "__init__.py").write_text(content)
    if module == "ninja":
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/g++").symlink_to(shutil.which("g++") or pytest.skip("g++ is not installed"))
        variables = {**variables, "PATH": str(tmp_path / "bin")}
    result = setup(tree, "build_ext", "--inplace", **variables)
    lines = [line for line in result.stderr.splitlines() if "warn" not in line.lower()]
    assert result.returncode != 0 and "Traceback" not in result.stderr, result.stderr
    assert all(word in line for word, line in zip(words, lines[-len(words) :], strict=True)), lines
    assert not list(tree.rglob("*.so"))


def test_without_a_compiler_plain_pytorch_is_installed(tree, tmp_path):
    """Unless the build requires a compiler. The schemas that plain PyTorch reads are written."""
    only_python = {"PATH": str(tmp_path), **empty_torch(tmp_path)}
    for variables in (only_python, {"DCNZOO_BUILD": "none", **empty_torch(tmp_path / "torch")}):
        (tree / "dcnzoo/ops/schemas.txt").unlink(missing_ok=True)
        result = setup(tree, "build_ext", "--inplace", **variables)
        assert result.returncode == 0 and "plain PyTorch" in result.stderr, result.stderr
        assert not list(tree.rglob("*.so")) and "deform_conv" in (tree / "dcnzoo/ops/schemas.txt").read_text()
    for mode, words in (
        ("require", "no C++ compiler found"),
        ("yes", "DCNZOO_BUILD: expected auto, require or none"),
    ):
        result = setup(tree, "build_ext", "--inplace", **{**only_python, "DCNZOO_BUILD": mode})
        assert result.returncode != 0 and words in result.stderr and "Traceback" not in result.stderr


def test_source_archive_can_be_built_from(tree, built, tmp_path):
    result = setup(tree, "sdist", "--dist-dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("dcnzoo-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    names = set(files(source))
    assert {f"ops/{name}" for name in files(tree / "ops")} <= names and "setup.py" in names
    assert not any(name.startswith("tests") or name.endswith(".so") for name in names)
    weights = {Path(name).name for name in names if name.endswith(".safetensors")}
    assert weights and all("-mdconv_" in name for name in weights), "those that a wheel has, too"
    assert files(build_py(source)) == files(built), "the archive has everything"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_configs_and_tools_are_in_the_package(tree, built):
    """At the paths that OpenMMLab's programs use, as files: links would point outside the package.

    Of the tools, all but those of this repository.
    """
    mim = built / "dcnzoo" / ".mim"
    brought = {
        f"{folder}/{name}": content
        for folder in ("configs", "tools")
        for name, content in files(tree / folder).items()
        if folder == "configs" or name.endswith((".sh", ".py"))
        if not name.endswith(("demo.py", "model_zoo.py"))
    }
    others = {name for name in brought if name.endswith(".safetensors") and "-mdconv_" not in name}
    for name in others:
        del brought[name]
    assert others
    assert files(mim) == {**brought, "model-index.yml": (tree / "model-index.yml").read_bytes()}
    assert not any(path.is_symlink() for path in mim.rglob("*"))
    assert os.access(mim / "tools/dist_train.sh", os.X_OK)


# The compiled libraries of this working tree, as in a wheel

LIBRARIES = sorted((ROOT / "dcnzoo" / "ops").glob("_C_*.so"))
# torch's own libraries, which are already loaded, and those that every manylinux system has (PEP 600)
MAY_NEED = {
    *("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libstdc++.so.6", "libgcc_s.so.1"),
    *("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"),
    *("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="ELF and glibc")


def symbol_versions(library: Path) -> dict[str, tuple[int, ...]]:
    """The newest required versions of ``GLIBC``, ``GLIBCXX`` and ``CXXABI``."""
    newest = {}
    with open(library, "rb") as file:
        for _, versions in ELFFile(file).get_section_by_name(".gnu.version_r").iter_versions():
            for version in versions:
                name, _, number = version.name.rpartition("_")
                numbers = tuple(int(part) for part in number.split("."))
                newest[name] = max(newest.get(name, (0,)), numbers)
    return newest


@on_linux
@pytest.mark.parametrize("library", LIBRARIES, ids=[library.stem for library in LIBRARIES])
def test_library_of_a_wheel(library):
    with open(library, "rb") as file:
        elf = ELFFile(file)
        tags = list(elf.get_section_by_name(".dynamic").iter_tags())
        (stack,) = (s for s in elf.iter_segments() if s["p_type"] == "PT_GNU_STACK")
        symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())
    # weak: ops/common/torch_errors.h asks whether torch has a function
    names = [symbol.name for symbol in symbols if symbol["st_info"]["bind"] != "STB_WEAK"]
    if library.stem == "_C_cpu":  # as old as those of torch's wheels, wherever it was compiled
        versions = symbol_versions(library)
        assert versions["GLIBC"] <= (2, 28) and versions["GLIBCXX"] <= (3, 4, 25)
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    assert {"libtorch_cpu.so", "libc.so.6"} <= needed <= MAY_NEED
    # no library paths, which could find another torch: this torch's libraries are already loaded
    assert not {"DT_RPATH", "DT_RUNPATH"} & {tag.entry.d_tag for tag in tags}
    assert not stack["p_flags"] & 1, "the stack is not executable"
    assert names and not [name for name in names if name.startswith(("Py", "_Py"))]
    content = library.read_bytes()  # torch's headers put their paths into messages
    assert re.findall(rb"(?<![\w.])/[\w.+/-]+\.(?:h|hpp|cpp|cu|cuh|py)\b", content) == []
    assert not any(bytes(path) in content for path in (ROOT, Path(sys.prefix), Path.home()))


# A wheel of these libraries


@on_linux
def test_what_a_wheel_has(tree, built, tmp_path):
    tree = shutil.copytree(tree, tmp_path / "clone", symlinks=True)
    for library in LIBRARIES:
        shutil.copy(library, tree / built.relative_to(built.parents[1]) / "dcnzoo" / "ops")
    result = setup(tree, "bdist_wheel", "--skip-build", "--dist-dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    glibc = max((2, 28), *(symbol_versions(library)["GLIBC"] for library in LIBRARIES))
    system = f"manylinux_{glibc[0]}_{glibc[1]}_{platform.machine()}"  # the wheel's platform
    assert wheel.name == f"dcnzoo-{__version__}-py3-none-{system}.whl"
    with zipfile.ZipFile(wheel) as archive:
        contents = archive.namelist()
    assert {name.partition("/")[0] for name in contents} == {"dcnzoo", f"dcnzoo-{__version__}.dist-info"}
    package = ROOT / "dcnzoo"
    templates = {f"dcnzoo/{path.relative_to(package)}" for path in package.rglob("*.html")}
    assert templates | {"dcnzoo/py.typed", "dcnzoo/ops/fused/configs.json"} <= set(contents)


# When setup.py compiles the CUDA library, and for which architectures


CUDA_12_0 = ("50", "60", "70", "75", "80", "86", "87", "89", "90")
CUDA_13_0 = ("75", "80", "86", "87", "88", "89", "90", "100", "110", "103", "120", "121")


@pytest.fixture(scope="module")
def setup_py():
    """The functions of setup.py."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Put an nvcc on the PATH that supports these architectures, and set variables."""

    def prepare(archs: tuple[str, ...], environment: dict[str, str]) -> None:
        nvcc = tmp_path / "nvcc"
        lines = "".join(f"compute_{arch}\\n" for arch in archs)
        nvcc.write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && printf "{lines}"\n')
        nvcc.chmod(0o755)
        for name in [name for name in os.environ if "CUDA" in name]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return prepare


@pytest.mark.parametrize(
    ("environment", "torch_cuda", "built"),
    [
        ({}, None, False),
        ({}, "13.0", True),
        ({"DCNZOO_CUDA": "1"}, None, True),
        ({"DCNZOO_CUDA": "0"}, "13.0", False),
    ],
    ids=str,
)
def test_the_cuda_library_is_for_a_torch_that_can_load_it(
    setup_py, prepare, monkeypatch, environment, torch_cuda, built
):
    prepare(CUDA_13_0, environment)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    assert bool(setup_py["find_nvcc"]()) is built


@pytest.mark.parametrize(
    ("built_for", "torch_cuda", "loads"),
    [
        ([13], "12.8", None),  # Triton goes on: a driver for CUDA 12 may be too old for the library
        ([13], "13.0", 13),
        ([12], "13.2", 12),
        ([12, 13], "13.0", 13),
        ([12, 13], "12.9", 12),
    ],
    ids=str,
)
def test_the_cuda_library_that_fits_torch_is_loaded(tmp_path, monkeypatch, built_for, torch_cuda, loads):
    for major in built_for:
        (tmp_path / f"_C_cuda{major}.so").touch()
    loaded, problems = {}, {}
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    monkeypatch.setattr(_library, "loaded", loaded)
    monkeypatch.setattr(_library, "problems", problems)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    _library._load_cuda(torch_cuda)
    if loads:
        assert loaded == {"cuda": tmp_path / f"_C_cuda{loads}.so"} and not problems
    else:
        assert not loaded and "CUDA 13" in problems["cuda"] and "12.8" in problems["cuda"]


def targets(setup_py) -> tuple[list[str], list[str]]:
    """The architectures with machine code, and those with PTX."""
    codes = [option.split(",code=")[1] for option in setup_py["cuda_targets"](setup_py["find_nvcc"]())]
    return (
        [c.removeprefix("sm_") for c in codes if c.startswith("sm_")],
        [c.removeprefix("compute_") for c in codes if c.startswith("compute_")],
    )


ARCHS, LIST = "DCNZOO_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"
ALL = ["75", "80", "86", "89", "90", "100", "120"]
TARGETS = [  # (nvcc's architectures, environment, machine code, PTX)
    (CUDA_12_0, {}, ["75", "80", "86", "89", "90"], ["90"]),
    (CUDA_13_0, {}, ALL, ["120"]),
    (CUDA_13_0, {ARCHS: "80;90"}, ["80", "90"], ["90"]),
    (CUDA_13_0, {ARCHS: "80 100"}, ["80", "100"], ["100"]),
    (CUDA_13_0, {LIST: "8.0;9.0"}, ["80", "90"], []),
    (CUDA_13_0, {LIST: "8.0 9.0a 12.0+PTX"}, ["80", "90a", "120"], ["120"]),
    (CUDA_13_0, {LIST: ""}, ALL, ["120"]),
    (CUDA_13_0, {ARCHS: "75", LIST: "9.0"}, ["75"], ["75"]),
]


@pytest.mark.parametrize(("nvcc", "environment", "code", "ptx"), TARGETS, ids=str)
def test_targets(setup_py, prepare, nvcc, environment, code, ptx):
    prepare(nvcc, {"DCNZOO_CUDA": "1", **environment})
    assert targets(setup_py) == (code, ptx)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"DCNZOO_CUDA": "yes"}, "DCNZOO_CUDA: expected 0 or 1, got 'yes'."),
        ({"CUDA_HOME": "/nowhere"}, "DCNZOO_CUDA=1, but no nvcc found in /nowhere."),
        ({ARCHS: "100"}, f"{ARCHS}: .*got '100'"),
        ({LIST: "9.0;12.0"}, f"{LIST}: .*got '9.0;12.0'"),
        ({LIST: "newest"}, f"{LIST}: .*got 'newest'"),
        ({ARCHS: "8.0"}, f"{ARCHS}: .*got '8.0'"),
    ],
)
def test_what_cannot_be_built_is_refused(setup_py, prepare, environment, problem):
    prepare(CUDA_12_0, {"DCNZOO_CUDA": "1", **environment})
    with pytest.raises(SystemExit, match=problem):
        targets(setup_py)
