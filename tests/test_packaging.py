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

import pytest
import torch
from elftools.elf.elffile import ELFFile

from dcnzoo import __version__
from dcnzoo.ops import _library
from tests.helpers.processes import ROOT

if not (ROOT / "setup.py").exists():
    pytest.skip("needs the sources", allow_module_level=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Only the sources, as in a fresh clone."""
    tree = tmp_path_factory.mktemp("sources") / "clone"
    compiled = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("dcnzoo", "ops", "configs", "tools"):
        shutil.copytree(ROOT / name, tree / name, ignore=compiled, symlinks=True)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "model-index.yml"):
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def built(tree) -> Path:
    """The package without compiled libraries, as setup.py builds it."""
    (tree / "tools" / "__pycache__").mkdir()
    (tree / "tools" / "__pycache__" / "x.pyc").touch()
    return build_py(tree)


def setup(tree: Path, *command: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py. An unexpected exit status fails the test."""
    unset = ("CXX", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"DCNZOO_CUDA": "0", **variables}
    words = [sys.executable, "setup.py", "-q", *command]
    result = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True)
    assert result.returncode == status and "Traceback" not in result.stderr, result.stderr
    return result


def build_py(tree: Path) -> Path:
    setup(tree, "build_py")
    (built,) = tree.glob("build/lib*")
    return built


def empty_torch(folder: Path) -> dict[str, str]:
    """Write a torch without content, and return the variables with which setup.py finds it."""
    torch = folder / "modules/torch"
    for part in ("include", "lib"):
        (torch / part).mkdir(parents=True)
    (torch / "__init__.py").write_text("__version__ = '2.13.0'\nclass version:\n    cuda = None\n")
    (torch / "include/header.h").write_text("#define TWO 2\n")
    for name in ("torch_cpu", "torch", "c10"):
        (torch / f"lib/lib{name}.a").write_text("!<arch>\n")
    return {"PYTHONPATH": str(torch.parent)}


def test_paths_with_special_characters(tree, tmp_path):
    """Paths of the clone and of torch may contain special characters of ninja and of the shell.

    One function instead of the operators, and an empty torch, compile in a second.
    """
    variables = empty_torch(tmp_path / "sp ace$")
    clone = shutil.copytree(tree, tmp_path / "sp ace$/co:lon", ignore=shutil.ignore_patterns("build"))
    shutil.rmtree(clone / "ops")
    (clone / "ops/x").mkdir(parents=True)
    (clone / "ops/x/x_cpu.cpp").write_text("#include <header.h>\nint two() { return TWO; }\n")
    for _ in range(2):  # the second build reads the dependencies that the first has written
        result = setup(clone, "build_ext", "--inplace", **variables)
    assert "no work to do" in result.stdout
    assert (clone / "dcnzoo/ops/_C_cpu.so").exists()


NO_COMPILER = {"PATH": "/nowhere"}


@pytest.mark.parametrize(
    ("variables", "module", "content", "words"),
    [
        (dict(CXX="no-such-compiler -O2"), "", "", ("'no-such-compiler -O2'", "CXX")),
        (
            dict(NO_COMPILER, CXX=shutil.which("g++")),
            "ninja",
            "raise ImportError",
            ("ninja", "pip install ninja"),
        ),
        ({}, "torch", "raise ImportError", ("torch is not installed", "--no-build-isolation")),
        ({}, "torch", "__version__ = '2.9.1+cu128'", ("2.9.1+cu128", 'pip install "torch>=2.10"')),
        ({}, "setuptools", "__version__ = '65.5.0'", ("setuptools>=77",)),
        (dict(CXX=shutil.which("false")), "", "", ("_C_cpu.so", "CXX")),
        (dict(NO_COMPILER, DCNZOO_BUILD="require"), "", "", ("no C++ compiler found", "Install one")),
        (dict(DCNZOO_BUILD="yes"), "", "", ("DCNZOO_BUILD: expected auto, require or none", "unset it")),
        (dict(DCNZOO_TARGET="windows"), "", "", ("DCNZOO_TARGET: expected windows-x86_64", "unset it")),
        (dict(DCNZOO_TARGET="macos-arm64", DCNZOO_TORCH="/nowhere"), "", "", ("/nowhere", "DCNZOO_TORCH")),
    ],
    ids=[
        "compiler",
        "ninja",
        "torch",
        "old torch",
        "setuptools",
        "failing",
        "required",
        "mode",
        "os",
        "wheel",
    ],
)
def test_problems_are_named(tree, tmp_path, variables, module, content, words):
    """The last two lines are the problem and the remedy. ``content`` replaces the code of ``module``."""
    variables = {**variables, **empty_torch(tmp_path)}
    if module:
        (tmp_path / "modules" / module).mkdir(exist_ok=True)
        (tmp_path / "modules" / module / "__init__.py").write_text(f"{content}\n")
    result = setup(tree, "build_ext", "--inplace", status=1, **variables)
    lines = [line for line in result.stderr.splitlines() if "warn" not in line.lower()]
    assert all(word in line for word, line in zip(words, lines[-len(words) :], strict=True)), lines
    assert not list(tree.rglob("*.so"))


@pytest.mark.parametrize("variables", [NO_COMPILER, {"DCNZOO_BUILD": "none"}], ids=str)
def test_without_a_compiler_plain_pytorch_is_installed(tree, tmp_path, variables):
    """The build writes the schemas that plain PyTorch reads."""
    (tree / "dcnzoo/ops/schemas.txt").unlink(missing_ok=True)
    result = setup(tree, "build_ext", "--inplace", **variables, **empty_torch(tmp_path))
    assert "plain PyTorch" in result.stderr
    assert not list(tree.rglob("*.so")) and "deform_conv" in (tree / "dcnzoo/ops/schemas.txt").read_text()


ZIG = """
import sys
from pathlib import Path
Path(sys.argv[sys.argv.index("-o") + 1]).write_text(" ".join(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("system", "zig", "library", "platform"),
    [
        ("windows-x86_64", "x86_64-windows-gnu", "_C_cpu.dll", "win_amd64"),
        ("macos-arm64", "aarch64-macos.11.0", "_C_cpu.so", "macosx_11_0_arm64"),
    ],
)
def test_wheel_for_another_system(tree, tmp_path, system, zig, library, platform):
    """The compiler only writes its arguments."""
    variables = empty_torch(tmp_path)
    (tmp_path / "modules/ziglang").mkdir()
    (tmp_path / "modules/ziglang/__main__.py").write_text(ZIG)
    clone = shutil.copytree(tree, tmp_path / "clone", ignore=shutil.ignore_patterns("build", "deform_*"))
    variables |= {"DCNZOO_TARGET": system, "DCNZOO_TORCH": str(tmp_path / "modules"), "DCNZOO_CUDA": "1"}
    setup(clone, "bdist_wheel", "--dist-dir", str(tmp_path), **variables)
    with zipfile.ZipFile(tmp_path / f"dcnzoo-{__version__}-py3-none-{platform}.whl") as wheel:
        libraries = {name: wheel.read(name) for name in wheel.namelist() if "/_C_" in name}
    assert list(libraries) == [f"dcnzoo/ops/{library}"]
    assert f"-target {zig} -shared" in libraries[f"dcnzoo/ops/{library}"].decode()


def test_address_of_the_repository(tmp_path):
    """Nothing names it before ``[project.urls]`` has it; then files and pages take it from there."""
    names = ("noxfile.py", "pyproject.toml", "CITATION.cff", "README.md", "docs/first_steps.md")
    (tmp_path / "docs").mkdir()
    for name in names:
        shutil.copy(ROOT / name, tmp_path / name)
    project = tmp_path / "pyproject.toml"
    before = project.read_text()
    for address in ("https://example.org/first", "https://example.org/second"):
        project.write_text(re.sub(r"\[project.urls\].*", f'[project.urls]\nRepository = "{address}"', before))
        command = [sys.executable, "-m", "nox", "-f", tmp_path / "noxfile.py", "-s", "address"]
        subprocess.run(command, check=True, capture_output=True)
        texts = [(tmp_path / name).read_text() for name in names[2:]]
        assert [text.count(address) for text in texts] == [1, 2, 1]
    assert not any("example.org/first" in text for text in texts)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_source_archive_can_be_built_from(tree, built, tmp_path):
    setup(tree, "sdist", "--dist-dir", str(tmp_path))
    (archive,) = tmp_path.glob("dcnzoo-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    names = set(files(source))
    assert {f"ops/{name}" for name in files(tree / "ops")} <= names
    assert not any(name.startswith("tests") or name.endswith(".so") for name in names)
    assert files(build_py(source)) == files(built)


def test_configs_and_tools_are_in_the_package(tree, built):
    """They are files at the paths that OpenMMLab's programs use; links would point outside the package.

    Tools for this repository alone are left out; of the weights, only those of DCNv2 for shapes are in it.
    """
    mim = built / "dcnzoo/.mim"
    expected = {"model-index.yml": (tree / "model-index.yml").read_bytes()}
    for name, content in files(tree / "configs").items():
        if not name.endswith(".safetensors") or re.search("-mdconv_.*shapes", name):
            expected[f"configs/{name}"] = content
    for name, content in files(tree / "tools").items():
        others = ("demo.py", "hub_kernel.py", "model_zoo.py", "small_weights.py")
        if name.endswith((".sh", ".py")) and name not in others:
            expected[f"tools/{name}"] = content
    assert files(mim) == expected and any(name.endswith(".safetensors") for name in expected)
    assert not any(path.is_symlink() for path in mim.rglob("*"))
    assert os.access(mim / "tools/dist_train.sh", os.X_OK)


# The compiled libraries of this working tree, as in a wheel

LIBRARIES = sorted((ROOT / "dcnzoo" / "ops").glob("_C_*.so"))
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
    if library.stem == "_C_cpu":  # needs no newer versions than torch's wheels
        versions = symbol_versions(library)
        assert versions["GLIBC"] <= (2, 28) and versions["GLIBCXX"] <= (3, 4, 25)
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    assert {"libtorch_cpu.so", "libc.so.6"} <= needed and not any("python" in name for name in needed)
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
    setup(tree, "bdist_wheel", "--skip-build", "--dist-dir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    glibc = max((2, 28), *(symbol_versions(library)["GLIBC"] for library in LIBRARIES))
    system = f"manylinux_{glibc[0]}_{glibc[1]}_{platform.machine()}"  # the wheel's platform
    assert wheel.name == f"dcnzoo-{__version__}-py3-none-{system}.whl"
    with zipfile.ZipFile(wheel) as archive:
        contents = archive.namelist()
    assert {name.partition("/")[0] for name in contents} == {"dcnzoo", f"dcnzoo-{__version__}.dist-info"}
    templates = {str(path.relative_to(ROOT)) for path in ROOT.glob("dcnzoo/**/*.html")}
    assert templates | {"dcnzoo/py.typed", "dcnzoo/ops/fused/configs.json"} <= set(contents)


def test_a_wheel_without_compiled_operators_is_for_every_system(tree, built, tmp_path):
    tree = shutil.copytree(tree, tmp_path / "clone", symlinks=True)
    result = setup(tree, "bdist_wheel", "--dist-dir", str(tmp_path), DCNZOO_BUILD="none")
    assert "nothing is compiled" in result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"dcnzoo-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        contents = {name for name in archive.namelist() if name.startswith("dcnzoo/")}
        assert b"Root-Is-Purelib: true" in archive.read(f"dcnzoo-{__version__}.dist-info/WHEEL")
    assert contents == {f"dcnzoo/{name}" for name in files(built / "dcnzoo")}


# When setup.py compiles the CUDA library, and for which architectures


CUDA_12_0 = ("50", "60", "70", "75", "80", "86", "87", "89", "90")
CUDA_13_0 = ("75", "80", "86", "87", "88", "89", "90", "100", "110", "103", "120", "121")


@pytest.fixture(scope="module")
def setup_py():
    """The functions of setup.py."""
    return runpy.run_path(str(ROOT / "setup.py"))


def use_nvcc(folder: Path, monkeypatch, archs: tuple[str, ...], **variables: str) -> None:
    """Put an nvcc on the PATH that supports these architectures, and set variables."""
    lines = "".join(f"compute_{arch}\\n" for arch in archs)
    (folder / "nvcc").write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && printf "{lines}"\n')
    (folder / "nvcc").chmod(0o755)
    for name in [name for name in os.environ if "CUDA" in name]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("torch_cuda", "variable", "built"),
    [(None, "", False), ("13.0", "", True), (None, "1", True), ("13.0", "0", False)],
)
def test_the_cuda_library_is_for_a_torch_that_can_load_it(
    setup_py, tmp_path, monkeypatch, torch_cuda, variable, built
):
    use_nvcc(tmp_path, monkeypatch, CUDA_13_0, DCNZOO_CUDA=variable)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    assert bool(setup_py["find_nvcc"]()) is built


@pytest.mark.parametrize(
    ("built_for", "torch_cuda", "loads"),
    [
        ([13], "12.8", None),  # Triton runs instead: a driver for CUDA 12 may be too old for the library
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


def test_the_compiler_of_the_cuda_library_may_have_a_launcher(setup_py, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "env g++ -O0")
    stub = setup_py["stand_in_for_libtorch_cuda"](tmp_path)
    assert (stub / "libtorch_cuda.so").exists()


def test_nothing_is_compiled_on_windows(setup_py, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv("DCNZOO_BUILD", raising=False)
    assert setup_py["devices"]() == ()
    assert "not supported on win32; a wheel for Windows" in capsys.readouterr().err


def targets(setup_py) -> tuple[list[str], list[str]]:
    """The architectures with machine code, and those with PTX."""
    options = " ".join(setup_py["cuda_targets"](setup_py["find_nvcc"]()))
    return re.findall(r"code=sm_(\w+)", options), re.findall(r"code=compute_(\w+)", options)


ARCHS, LIST = "DCNZOO_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"
ALL = ["75", "80", "86", "89", "90", "100", "120"]
TARGETS = [  # (nvcc's architectures, variables, machine code, PTX)
    (CUDA_12_0, {}, ["75", "80", "86", "89", "90"], ["90"]),
    (CUDA_13_0, {}, ALL, ["120"]),
    (CUDA_13_0, {ARCHS: "80;90"}, ["80", "90"], ["90"]),
    (CUDA_13_0, {ARCHS: "80 100"}, ["80", "100"], ["100"]),
    (CUDA_13_0, {LIST: "8.0;9.0"}, ["80", "90"], []),
    (CUDA_13_0, {LIST: "8.0 9.0a 12.0+PTX"}, ["80", "90a", "120"], ["120"]),
    (CUDA_13_0, {LIST: ""}, ALL, ["120"]),
    (CUDA_13_0, {ARCHS: "75", LIST: "9.0"}, ["75"], ["75"]),
]


@pytest.mark.parametrize(("nvcc", "variables", "code", "ptx"), TARGETS, ids=str)
def test_targets(setup_py, tmp_path, monkeypatch, nvcc, variables, code, ptx):
    use_nvcc(tmp_path, monkeypatch, nvcc, DCNZOO_CUDA="1", **variables)
    assert targets(setup_py) == (code, ptx)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"DCNZOO_CUDA": "yes"}, "DCNZOO_CUDA: expected 0 or 1, got 'yes'."),
        ({"CUDA_HOME": "/nowhere"}, "DCNZOO_CUDA=1, but no nvcc found in /nowhere."),
        ({ARCHS: "100"}, f"{ARCHS}: .*got '100'"),
        ({LIST: "9.0;12.0"}, f"{LIST}: .*got '9.0;12.0'"),
        ({LIST: "newest"}, f"{LIST}: .*got 'newest'"),
        ({ARCHS: "8.0"}, f"{ARCHS}: .*got '8.0'"),
    ],
)
def test_what_cannot_be_built_is_refused(setup_py, tmp_path, monkeypatch, variables, problem):
    use_nvcc(tmp_path, monkeypatch, CUDA_12_0, **{"DCNZOO_CUDA": "1", **variables})
    with pytest.raises(SystemExit, match=problem):
        targets(setup_py)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("built", "variables", "repeated"),
    [
        ("", {}, ()),
        ("", {"DCNZOO_CUDA": "1"}, ("-e .",)),
        ("DCNZOO_CUDA=1", {"DCNZOO_CUDA": "1"}, ()),
        ("DCNZOO_CUDA=1", {}, ("-e .",)),
        ("", {"PYTHON": sys.executable}, ()),
        ("", {"PYTHON": "false"}, ("-m venv", "-e .")),
    ],
)
def test_make_repeats_what_other_variables_change(tmp_path, monkeypatch, built, variables, repeated):
    """``false`` is a Python of another version, which prints none."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name in ("pyproject.toml", ".ci/opencv-python/pyproject.toml", ".venv/bin/none"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "ops").mkdir()
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / ".venv/.installed").touch()
    (tmp_path / ".venv/.built").write_text(f"{built}\n", encoding="utf-8")
    for name in [
        name
        for name in os.environ
        if "CUDA" in name or name.startswith("DCNZOO_") or name in ("CXX", "CXXFLAGS", "LDFLAGS", "PYTHON")
    ]:
        monkeypatch.delenv(name)
    environment = {**os.environ, **variables}
    done = subprocess.run(
        ["make", "-n", "setup"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [part for part in ("-m venv", "-e .") if part in done.stdout] == [*repeated], done.stdout
