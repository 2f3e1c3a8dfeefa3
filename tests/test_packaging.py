"""Building, and what is built: never a package without operators, one clear message for what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "model-index.yml"),
    *("dcnzoo", "ops", "configs", "tools"),
)

if not (ROOT / "setup.py").exists():
    pytest.skip("needs the sources", allow_module_level=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return copy_of_the_sources(tmp_path_factory.mktemp("sources") / "clone")


def copy_of_the_sources(tree: Path) -> Path:
    """The sources alone, as in a fresh clone."""
    tree.mkdir()
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=built, symlinks=True)
        else:
            shutil.copy(source, tree / name)
    return tree


def programs(folder: Path, *names: str) -> str:
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        (folder / name).symlink_to(found)
    return str(folder)


def setup(tree: Path, *command: str, path: str | None = None, modules: str | None = None, **variables: str):
    """Runs setup.py; ``modules`` is a folder of modules that hide those installed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH")}
    environment = {**kept, "DCNZOO_CUDA": "0", **variables}
    if path is not None:
        environment["PATH"] = path
    if modules is not None:
        environment["PYTHONPATH"] = modules
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )


def fake_module(folder: Path, name: str, content: str) -> str:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(content)
    return str(folder)


INPLACE = ("build_ext", "--inplace")


@pytest.mark.parametrize(
    ("variables", "module", "content", "words"),
    [
        (dict(CXX="no-such-compiler -O2"), None, "", ("'no-such-compiler -O2'", "CXX")),
        ({}, "ninja", "raise ImportError\n", ("ninja", "pip install ninja")),
        ({}, "torch", "raise ImportError\n", ("torch is not installed", "--no-build-isolation")),
        ({}, "torch", "__version__ = '2.9.1+cu128'\n", ("2.9.1+cu128", 'pip install "torch>=2.10"')),
        (dict(CXX=shutil.which("false")), None, "", ("_C_cpu.so", "DCNZOO_CUDA=0")),
    ],
    ids=["compiler", "ninja", "torch", "old torch", "failing compiler"],
)
def test_what_is_missing_is_said(tree, tmp_path, variables, module, content, words):
    path = programs(tmp_path / "bin", "g++") if module == "ninja" else None
    modules = fake_module(tmp_path / "modules", module, content) if module else None
    result = setup(tree, *INPLACE, path=path, modules=modules, **variables)
    lines = [line for line in result.stderr.splitlines() if "warn" not in line.lower()]
    assert result.returncode != 0 and "Traceback" not in result.stderr, result.stderr
    assert all(word in line for word, line in zip(words, lines[-2:], strict=True)), lines[-2:]
    assert not list(tree.rglob("*.so"))


def test_source_archive_can_be_built_from(tree, tmp_path):
    result = setup(tree, "sdist", "--dist-dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("dcnzoo-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    names = set(files(source))
    assert {f"ops/{name}" for name in files(tree / "ops")} <= names and "setup.py" in names
    assert not any(name.startswith("tests") or name.endswith(".so") for name in names)
    assert files(build_py(source)) == files(build_py(tree)), "the archive has everything"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def build_py(tree: Path) -> Path:
    result = setup(tree, "build_py", "--build-lib", "built")
    assert result.returncode == 0, result.stderr
    return tree / "built"


def test_configs_and_tools_are_in_the_package(tree):
    """Where OpenMMLab's programs look for them, as files: a link would lead out of the package."""
    (tree / "tools" / "__pycache__").mkdir()
    (tree / "tools" / "__pycache__" / "x.pyc").touch()
    mim = build_py(tree) / "dcnzoo" / ".mim"
    brought = {
        f"{folder}/{name}": content
        for folder in ("configs", "tools")
        for name, content in files(tree / folder).items()
        if not name.endswith(".pyc")
    }
    assert files(mim) == {**brought, "model-index.yml": (tree / "model-index.yml").read_bytes()}
    assert not any(path.is_symlink() for path in mim.rglob("*"))
    assert os.access(mim / "tools/dist_train.sh", os.X_OK)


def test_versions_agree():
    from dcnzoo import __version__

    setup_py, project = (ROOT / "setup.py").read_text(), (ROOT / "pyproject.toml").read_text()
    major, minor = re.search(r"MIN_TORCH = \((\d+), (\d+)\)", setup_py).groups()
    assert f'dependencies = ["torch>={major}.{minor}", ' in project
    assert f'TORCH_TARGET = "0x{int(major):02x}{int(minor):02x}000000000000"' in setup_py
    (pin,) = re.findall(r"^torch==.*$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f'"{pin}"' in project, "an isolated build is the build that is tested"
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    (opencv,) = re.findall(r"^opencv-python-headless==(.*)$", (ROOT / "requirements.txt").read_text(), re.M)
    assert (ROOT / ".ci/opencv-python/pyproject.toml").read_text().count(opencv) == 2
    for pin in re.findall(r"^mm.*==.*$", (ROOT / "requirements-openmmlab.txt").read_text(), re.MULTILINE):
        assert f'"{pin}"' in project


# The compiled libraries of this working tree, which a wheel takes along

LIBRARIES = sorted((ROOT / "dcnzoo" / "ops").glob("_C_*.so"))
# torch's own, which it has loaded before, and what every system for wheels has (PEP 600)
MAY_NEED = {
    *("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libstdc++.so.6", "libgcc_s.so.1"),
    *("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"),
    *("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="ELF and glibc")


def symbol_versions(library: Path) -> dict[str, tuple[int, ...]]:
    """Of what it asks of others: the newest of ``GLIBC``, ``GLIBCXX``, ``CXXABI``."""
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
        names = [symbol.name for symbol in elf.get_section_by_name(".dynsym").iter_symbols()]
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    assert {"libtorch_cpu.so", "libc.so.6"} <= needed <= MAY_NEED
    # torch has loaded its own libraries by then; a path would find another torch's
    assert not {"DT_RPATH", "DT_RUNPATH"} & {tag.entry.d_tag for tag in tags}
    assert not stack["p_flags"] & 1, "the stack is not executable"
    assert names and not [name for name in names if name.startswith(("Py", "_Py"))]
    content = library.read_bytes()  # torch's headers put their file's name into messages
    assert re.findall(rb"(?<![\w.])/[\w.+/-]+\.(?:h|hpp|cpp|cu|cuh|py)\b", content) == []
    assert not any(bytes(path) in content for path in (ROOT, Path(sys.prefix), Path.home()))


# A wheel of these libraries


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """All of a wheel but the compiling."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = copy_of_the_sources(folder / "clone")
    assert setup(tree, "build_py").returncode == 0
    (built,) = tree.glob("build/lib*")
    for library in LIBRARIES:
        shutil.copy(library, built / "dcnzoo" / "ops")
    result = setup(tree, "bdist_wheel", "--skip-build", "--dist-dir", str(folder))
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@on_linux
def test_a_wheel_says_which_systems_it_is_for(wheel):
    major, minor = max(symbol_versions(library)["GLIBC"] for library in LIBRARIES)[:2]
    from dcnzoo import __version__

    assert wheel.name == f"dcnzoo-{__version__}-py3-none-manylinux_{major}_{minor}_{platform.machine()}.whl"


def test_what_a_wheel_has(wheel):
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    (info,) = {name.partition("/")[0] for name in contents if ".dist-info/" in name}
    assert contents[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    metadata = contents[f"{info}/METADATA"].decode()
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.10", "Requires-Dist: torch>=2.10"):
        assert line in metadata.splitlines()
    assert "dcnzoo = dcnzoo.cli:main" in contents[f"{info}/entry_points.txt"].decode()
    assert {name.partition("/")[0] for name in contents} == {"dcnzoo", info}
    package = ROOT / "dcnzoo"
    templates = {f"dcnzoo/{path.relative_to(package)}" for path in package.rglob("*.html")}
    assert templates | {"dcnzoo/py.typed", "dcnzoo/ops/fused/configs.json"} <= set(contents)
    here = [os.fsencode(path) for path in (ROOT, wheel.parent, sys.prefix)]
    assert [name for name, content in contents.items() if any(path in content for path in here)] == []


@pytest.mark.slow
def test_installed_and_taken_away(wheel, tmp_path):
    """In a bare environment, with the torch of this one in sight; after it, every file is as before."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    before = set(environment.rglob("*"))

    hidden = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}

    def run(*command: str | Path, **variables: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**kept, **variables}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pip(*arguments: str | Path) -> None:
        run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", python, *arguments)

    packages = {"PYTHONPATH": str(Path(pytest.__file__).parents[1])}
    pip("install", "--no-deps", "--no-index", wheel)
    ops = "import dcnzoo.ops as o, torch; print(o.__file__, o.nms(torch.rand(1, 4), torch.rand(1), 0.5))"
    assert run(python, "-c", ops, **packages).startswith(str(environment))
    for command in (
        [environment / "bin/dcnzoo", "train"],
        [python, *environment.rglob(".mim/tools/train.py")],
    ):
        assert "--cfg-options" in run(*command, "--help", **packages)
    find = """
import dcnzoo.models
from mmengine.hub import get_config, get_model
name = "dcnzoo::demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"
print(get_config(name).filename, type(get_model(name).backbone.layer2[0].conv2).__name__)
"""
    config, layer = run(python, "-c", find, **packages).split()
    assert Path(config).is_relative_to(environment) and layer == "DCNv2"
    assert list(environment.rglob("dcnzoo/**/*.pyc"))
    pip("uninstall", "-y", "dcnzoo")
    assert set(environment.rglob("*")) == before


# The Makefile, with stand-ins for Python

STAND_IN = """#!/bin/sh
# python -m venv FOLDER makes another one of these; everything else succeeds
echo "$@" >> {log}
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture
def makefile(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder, log = tmp_path / "clone", tmp_path / "log"
    folder.mkdir()
    (folder / "ops").mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".ci/opencv-python").mkdir(parents=True)
    for name in ("requirements.txt", "requirements-openmmlab.txt", ".ci/opencv-python/pyproject.toml"):
        (folder / name).touch()
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(log=log))
    python.chmod(0o755)

    def make(*arguments: str, python: Path = python):
        log.write_text("")
        command = ["make", f"PYTHON={python}", *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        return result, log.read_text().splitlines()

    return folder, make


def test_setup_is_done_once(makefile):
    folder, make = makefile
    result, calls = make(".venv/.installed")
    assert result.returncode == 0, result.stderr
    assert any("venv .venv" in call for call in calls)
    assert sum("install" in call for call in calls) == 3
    assert make(".venv/.installed")[1] == []
    (folder / "requirements.txt").write_text("# changed\n")
    os.utime(folder / ".venv/.installed", (0, 0))
    assert sum("install" in call for call in make(".venv/.installed")[1]) == 3


def test_interrupted_setup_begins_anew(makefile):
    folder, make = makefile
    (folder / ".venv").mkdir()
    for name in (".installing", "half-installed"):
        (folder / ".venv" / name).touch()
    result, _ = make(".venv/.installed")
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in (folder / ".venv").iterdir()) == [".installed", "bin"]


def test_old_python_is_refused(makefile, tmp_path):
    folder, make = makefile
    old = tmp_path / "python3.9"
    code = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    old.chmod(0o755)
    result, _ = make("setup", python=old)
    assert result.returncode != 0
    assert "dcnzoo needs Python 3.10 or newer; " in result.stderr
    assert "Traceback" not in result.stderr and not (folder / ".venv").exists()


# A whole build


@pytest.mark.slow
def test_wheel(tmp_path):
    tree = copy_of_the_sources(tmp_path / "clone")
    result = setup(tree, "bdist_wheel", "--dist-dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"dcnzoo-[\d.]+-py3-none-(manylinux|macosx)_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dcnzoo").rglob("*.py")}
    assert {"dcnzoo/ops/_C_cpu.so", *modules} <= names
    code = """
import torch, dcnzoo.ops
x, w = torch.randn(2, 4, 5, 6), torch.randn(3, 4, 3, 3)
y = dcnzoo.ops.deform_conv2d(x, w, torch.zeros(2, 18, 5, 6), padding=1)
torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1))
print(dcnzoo.__file__)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "site/dcnzoo/__init__.py")
