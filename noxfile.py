"""Maintenance, releases, other environments and long checks, which the Makefile leaves out.

::

    .venv/bin/nox -l                            # list the sessions (`make test` installs nox)
    .venv/bin/nox -s fuzz -- -k deform_conv     # run one, with options for its command
    .venv/bin/nox -s others --install-only      # only create its environment

The sessions that a maintainer needs come first: *zoo* after a change to a metafile, *pages* after one to
README or a guide, and for a release *release*, *tag* and, once, *address*.
``.github/workflows/nightly.yml`` runs the sessions with the tag *nightly*.

A session runs in ``.venv``. If its packages would overwrite others there or need another torch, it runs in an
environment in ``.nox``. *linux*, *system*, *sources*, *installed* and *tag*, which the workflows of a release
run, need no ``.venv``.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nox
from nox import Session

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = str(VENV / "bin/python")
NIGHTLY = ["nightly"]
(TORCH,) = nox.project.load_toml(ROOT / "pyproject.toml")["dependency-groups"]["torch"]

nox.options.sessions = []  # none without -s
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # skips them


# Environments


def update_venv(session: Session) -> None:
    """Install what changed into .venv, and compile what changed in ops/."""
    # environments with another Python cannot use its packages
    if Path(sys.prefix).resolve() != VENV.resolve():
        session.error("expected the nox of .venv: run `make test`, then .venv/bin/nox")
    session.run_install("make", "setup", ".venv/.dev", external=True)


def site_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def make_visible(session: Session, environment: Path) -> None:
    """Make the packages of another environment visible in the session's."""
    line = f"import site; site.addsitedir({str(site_packages(environment))!r})\n"
    (site_packages(Path(session.virtualenv.location)) / "seen.pth").write_text(line)


def use_venv(session: Session) -> None:
    """Update .venv, and make its packages visible in the session's environment."""
    update_venv(session)
    make_visible(session, VENV)


def create_environment(session: Session, name: str) -> Path:
    """Create the environment of another session and return its folder."""
    session.run_install(PYTHON, "-m", "nox", "-s", name, "--install-only", external=True)
    return ROOT / ".nox" / name


def test(session: Session, *arguments: str, **options) -> None:
    """Run pytest, with the options of the command line too, in the session's environment, else in .venv."""
    python = "python" if session.bin_paths else PYTHON
    session.run(python, "-m", "pytest", *arguments, *session.posargs, **options)


# After a change


@nox.session(venv_backend="none")
def zoo(session: Session) -> None:
    """Write model_zoo.md and model-index.yml from the metafiles."""
    update_venv(session)
    session.run(PYTHON, "tools/model_zoo.py")


@nox.session(tags=NIGHTLY)
def pages(session: Session) -> None:
    """Run the blocks of README and of the guides, and README's installation in an empty environment."""
    update_venv(session)
    session.run(PYTHON, "-m", "pytest", "tests/test_pages.py", *session.posargs, external=True)
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    session.run("git", "clone", "--quiet", ROOT, folder / "dcnzoo", external=True)
    marked = r"^<!-- run by nox -s pages -->\n```bash\n(.*?)^```$"
    readme = (folder / "dcnzoo/README.md").read_text()  # of the clone, without uncommitted changes
    (block,) = re.findall(marked, readme, re.DOTALL | re.MULTILINE)
    session.chdir(folder)
    session.run("bash", "-exc", block, external=True)


@nox.session(venv_backend="none", tags=NIGHTLY)
def types(session: Session) -> None:
    """Check a program of a user with mypy --strict."""
    update_venv(session)
    options = ("--strict", "--follow-imports", "silent", "--config-file", "")
    session.run(PYTHON, "-m", "mypy", *options, "tests/programs/user_program.py")


@nox.session(tags=NIGHTLY)
def audit(session: Session) -> None:
    """Check the sources (bandit) and the packages of .venv (pip-audit, online) for vulnerabilities."""
    update_venv(session)
    session.install("--group", "audit")  # requires other versions of packages in .venv
    checked = ("dcnzoo", "tools", "docs", "setup.py")
    session.run("bandit", "--quiet", "--configfile", "pyproject.toml", "--recursive", *checked)
    session.run("pip-audit", "--strict", "--skip-editable", "--path", site_packages(VENV), *session.posargs)


# A release


@nox.session
def release(session: Session) -> None:
    """Build this machine's packages in dist/, with CUDA kernels, and check and test them before a release.

    The release itself has the packages of .github/workflows/wheels.yml: the wheels for Linux are those of
    *linux*, with CUDA 12; the others are built as here.
    """
    update_venv(session)
    if session.run("git", "status", "--porcelain", silent=True, external=True):
        session.error("expected a clean clone, got files that `git status` lists")
    session.install("--group", "release")
    # nvcc of PyPI's packages
    cuda = site_packages(Path(session.virtualenv.location)).resolve() / "nvidia" / "cu13"
    wheel = build_wheel(session, DIST, DCNZOO_CUDA="1", CUDA_HOME=str(cuda))
    # as in [tool.cibuildwheel]: gives the wheel its manylinux tag, or fails
    exclude = ("--exclude", "libtorch*", "--exclude", "libc10*")
    repaired = DIST / "repaired"  # the new wheel may have the same name
    session.run("auditwheel", "repair", "--plat", "manylinux_2_34_x86_64", *exclude, "-w", repaired, wheel)
    wheel.unlink()
    (wheel,) = (file.rename(DIST / file.name) for file in repaired.iterdir())
    repaired.rmdir()
    sources(session)
    pure = next(DIST.glob("*-py3-none-any.whl"))  # pip prefers the compiled one where it fits
    for name in SYSTEMS:
        session.run(
            "python", "setup.py", "-q", "bdist_wheel", "--dist-dir", DIST, env=target_variables(session, name)
        )
    files = sorted(DIST.iterdir())
    session.run("twine", "check", "--strict", *files)
    packages, index = Path(session.create_tmp()).resolve() / "packages.txt", DIST / "index"
    packages.write_text("".join(f"{file.name}\n" for file in files))
    pages = ("--packages-url", "../../../", "--output-dir", index, "--no-generate-timestamp")
    session.run("dumb-pypi", "--package-list", packages, *pages)
    download = ("--quiet", "--no-deps", "--dest", session.create_tmp(), "--index-url")
    session.run("pip", "download", *download, (index / "simple").as_uri(), "dcnzoo")
    check_wheel(session, wheel)
    check_pure_wheel(session, pure)
    for name in ("matrix-3.10", "matrix-3.13"):  # the oldest and the newest torch
        session.notify(name, posargs=[str(wheel)])


@nox.session(venv_backend="none")
def tag(session: Session) -> None:
    """Check that a tag is this version, and that the changelog has its date: -- v1.2.3."""
    (name,) = session.posargs
    version = re.escape(name.removeprefix("v"))
    for file, line in (
        ("dcnzoo/version.py", rf'__version__ = "{version}"'),
        ("CHANGELOG.md", rf"## \[{version}\] – \d{{4}}-\d\d-\d\d"),
    ):
        if not re.search(rf"^{line}$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE):
            session.error(f"{file}: expected a line {line}")


@nox.session(venv_backend="none")
def address(session: Session) -> None:
    """Write the address of the repository, in [project.urls], into CITATION.cff and the pages."""
    repository = nox.project.load_toml("pyproject.toml")["project"]["urls"].get("Repository")
    if not repository:
        session.error("pyproject.toml: [project.urls]: expected Repository, the address, got none")
    tests = f"{repository}/actions/workflows/tests.yml"
    badge = f"[![tests]({tests}/badge.svg)]({tests})"
    for name, old, new in (  # a second run replaces what the first has written
        (
            "CITATION.cff",
            r"(?m)^(repository-code: .*\n)?license:",
            f"repository-code: {repository}\nlicense:",
        ),
        ("README.md", r"(a GPU\.)( \[!\[tests.*)?", rf"\1 {badge}"),
        ("docs/first_steps.md", r"git clone \S+ dcnzoo", f"git clone {repository} dcnzoo"),
    ):
        text, count = re.subn(old, new, Path(name).read_text(encoding="utf-8"), count=1)
        if not count:
            session.error(f"{name}: expected {old}")
        Path(name).write_text(text, encoding="utf-8")


def check_wheel(session: Session, wheel: Path) -> None:
    """Test a wheel, and each of its extras alone, in bare environments (5 GB)."""
    folder = Path(session.create_tmp()).resolve()
    python = create_bare(session, folder / "bare")
    session.run(python, "-m", "pip", "install", "--quiet", TORCH, wheel, external=True)
    check_operators(session, python, folder / "operators")
    here = site_packages(folder / "bare")
    with session.chdir(folder / "operators"):  # without the sources; extras.py writes files there
        session.run(python, "-m", "pip", "check", external=True)
        session.run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "dcnzoo", external=True)
        if left := [path.name for path in here.glob("*dcnzoo*")]:
            session.error(f"expected no files after `pip uninstall`, got {', '.join(left)}")
        # each extra alone, in an environment that sees only torch. timm installs torchvision and its torch
        for extra in ("mmdet", "data", "onnx", "openvino", "timm"):
            python = create_bare(session, folder / "alone")
            (site_packages(folder / "alone") / "torch.pth").write_text(f"{here}\n")
            session.run(python, "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]", external=True)
            session.run(python, ROOT / "tests/programs/extras.py", extra, external=True)


def create_bare(session: Session, folder: Path) -> Path:
    """Create an environment without packages and return its Python."""
    session.run(PYTHON, "-m", "venv", "--clear", folder, external=True)
    return folder / "bin/python"


def check_operators(session: Session, python: str | Path, folder: Path) -> None:
    """Compare the operators of an installed wheel with the reference, in a new folder without the sources."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests/op_cases", folder / "tests/op_cases")
    with session.chdir(folder):
        session.run(python, ROOT / "tests/programs/operators.py", env={"PYTHONPATH": "."}, external=True)
        session.run(python, "-m", "dcnzoo", "doctor", external=True)


def check_pure_wheel(session: Session, wheel: Path) -> None:
    """Predict, train and export with the wheel that has no compiled operators, in an empty environment."""
    folder = Path(session.create_tmp()).resolve() / "pure"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests", folder / "tests")
    python = create_bare(session, folder / "venv")
    install = (python, "-m", "pip", "install", "--quiet")
    session.run(*install, TORCH, f"{wheel}[mmdet,onnx]", external=True)
    session.run(*install, "numpy", "pillow", external=True)
    draw = "from pathlib import Path; from tests.helpers.formats import fruits, write_yolo"
    draw += "; write_yolo(Path('data'), fruits(Path('drawn').resolve()))"
    dcnzoo = (python, "-m", "dcnzoo")
    with session.chdir(folder):  # without the sources
        session.run(python, "-c", draw, external=True)
        session.run(*dcnzoo, "infer", "--demo", external=True)
        session.run(*dcnzoo, "train", "--data", "data", "--epochs", "1", "--work-dir", "run", external=True)
        session.run(*dcnzoo, "export", "run", "--out", "run.onnx", external=True)


# Wheels

DIST = ROOT / "dist"


def build_wheel(session: Session, folder: Path, **variables: str) -> Path:
    """Build an sdist, and a wheel from it as pip does, in a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    session.run_install(PYTHON, "setup.py", "-q", "sdist", "--dist-dir", folder, external=True)
    (sdist,) = folder.glob("*.tar.gz")
    command = ("-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, sdist)
    session.run_install(PYTHON, *command, env={"DCNZOO_CUDA": "0", **variables}, external=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def wheel_to_test(session: Session) -> Path:
    """Return a wheel without CUDA kernels in build/. The sessions of this process share it."""
    folder = ROOT / "build" / f"wheel-{os.getpid()}"
    if wheels := [*folder.glob("*.whl")]:
        return wheels[0]
    for earlier in folder.parent.glob("wheel-*"):
        shutil.rmtree(earlier)
    return build_wheel(session, folder)


# that the CPU library is cross-compiled for, and pip's name of torch's wheel
SYSTEMS = {"windows-x86_64": "win_amd64", "macos-arm64": "macosx_11_0_arm64"}


def target_variables(session: Session, system: str) -> dict[str, str]:
    """Unpack the oldest torch for another system; return the variables that setup.py then needs."""
    session.install("--group", "systems")
    folder = Path(session.create_tmp()).resolve() / system
    options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11")
    torch = ("--platform", SYSTEMS[system], f"torch=={TORCHES['3.10']}", "--dest", folder)
    session.run_install("pip", "download", *options, *torch)
    (wheel,) = folder.glob("torch-*.whl")
    session.run_install("python", "-m", "zipfile", "-e", wheel, folder)
    return {"DCNZOO_TARGET": system, "DCNZOO_TORCH": str(folder)}


@nox.session
@nox.parametrize("system", list(SYSTEMS), ids=list(SYSTEMS))
def system(session: Session, system: str) -> None:
    """Cross-compile the wheel for Windows or macOS into dist/."""
    command = ("python", "setup.py", "-q", "bdist_wheel", "--dist-dir", DIST)
    session.run(*command, env=target_variables(session, system))


@nox.session
def linux(session: Session) -> None:
    """Build a release's wheel for this kind of CPU in a container, into dist/ (needs Docker; not run yet)."""
    session.install("--group", "containers")
    session.run("cibuildwheel", "--output-dir", DIST)


@nox.session
def sources(session: Session) -> None:
    """Build in dist/ the sdist and the wheel without compiled operators, for systems without another one."""
    session.install("--group", "build")
    session.run("python", "setup.py", "-q", "sdist", "--dist-dir", DIST)
    command = ("python", "setup.py", "-q", "bdist_wheel", "--dist-dir", DIST)
    session.run(*command, env={"DCNZOO_BUILD": "none"})


@nox.session
def installed(session: Session) -> None:
    """Install the wheel that lies alone in dist/, and compare its operators with the reference."""
    (wheel,) = DIST.glob("*.whl")
    session.install(TORCH, wheel)
    folder = Path(session.create_tmp()).resolve() / "installed"
    check_operators(session, "python", folder)


@nox.session(venv_backend="none")
def wheelhouse(session: Session) -> None:
    """Collect the packages of `make demo` and `make test` in wheelhouse/, for machines without network."""
    update_venv(session)
    wheel = (PYTHON, "-m", "pip", "wheel", "--quiet", "--wheel-dir", "wheelhouse")
    session.run(*wheel, "--group", "dev", "pip")
    session.run(*wheel, "--no-deps", "--group", "openmmlab", "--group", "vit")


# Other Pythons, torches, systems and compilers

# from the oldest supported torch to the newest; if an index lacks the newest, set NEWEST_TORCH=2.14.1
NEWEST = os.environ.get("NEWEST_TORCH", "2.15.0")
TORCHES = {"3.10": "2.10.0", "3.11": "2.11.0", "3.12": "2.13.0", "3.13": NEWEST, "3.14": NEWEST}


@nox.session(python=list(TORCHES), tags=NIGHTLY)
def matrix(session: Session) -> None:
    """Train and test with a wheel (-- WHEEL) under other Pythons, torches: 5 GB each; NEWEST_TORCH=2.14.1."""
    update_venv(session)
    wheel = Path(*session.posargs) if session.posargs else wheel_to_test(session)
    session.install("pip>=25.1")  # --group
    session.install(f"torch=={TORCHES[session.python]}", "--group", "packages", "--group", "test")
    session.install("--no-deps", "--group", "openmmlab")
    session.install("--no-deps", "--force-reinstall", wheel)
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    for name in ("configs", "tests", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    session.chdir(folder)
    # LD_BIND_NOW: a symbol that this torch lacks is an error when the library is loaded
    smoke = ("python", "-m", "pytest", "tests/environments/test_smoke.py")
    session.run(*smoke, env={"LD_BIND_NOW": "1"})


@nox.session(tags=NIGHTLY)
def wine(session: Session) -> None:
    """Compare the library for Windows, beside Windows' torch, with the one here.

    Needs Wine, which the session does not install: ``apt-get install wine`` on Debian. Skips without it.
    """
    if not shutil.which("wine"):
        session.skip("needs Wine: apt-get install wine")
    update_venv(session)
    folder = Path(session.create_tmp()).resolve() / "wine"
    calls, variables = folder / "calls.bin", target_variables(session, "windows-x86_64")
    torch = Path(variables["DCNZOO_TORCH"], "torch")
    session.run("python", "setup.py", "-q", "build_ext", "--build-lib", folder, env=variables)
    session.run(PYTHON, "-m", "tests.programs.calls", calls, external=True)
    compiler = ("python", "-m", "ziglang", "c++", "-target", "x86_64-windows-gnu", "-std=c++17", "-O1")
    include = ("-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", torch / "include")
    link = (f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-o", folder / "calls.exe")
    session.run(*compiler, *include, "tests/programs/calls.cpp", *link)
    # Microsoft's C++ runtime, which torch needs
    download = ("--quiet", "--no-deps", "--platform", "win_amd64", "--python-version", "3.11")
    session.run_install("pip", "download", *download, "--dest", folder, "msvc-runtime==14.44.35112")
    session.run("python", "-m", "zipfile", "-e", *folder.glob("msvc_runtime*.whl"), folder / "msvc")
    for library in folder.glob("msvc/*.data/data/Scripts/*.dll"):
        shutil.copy(library, folder)  # beside the program, where Windows looks first
    variables = {
        "WINEPATH": f"Z:{torch / 'lib'}",
        "WINEPREFIX": str(folder / "prefix"),
        "WINEDEBUG": "-all",
        "KMP_AFFINITY": "disabled",  # Wine has no NUMA nodes
        "WINEDLLOVERRIDES": "msvcp140,msvcp140_1,vcruntime140,vcruntime140_1=n",
    }
    command = ("wine", folder / "calls.exe", f"Z:{folder / 'dcnzoo/ops/_C_cpu.dll'}", f"Z:{calls}")
    for threads in ("1", "2"):
        session.run(*command, env={**variables, "OMP_NUM_THREADS": threads}, external=True)


def build_copy(session: Session, name: str, python: Sequence[str] = (PYTHON,), **variables: str) -> None:
    """Compile a copy of the sources in build/NAME and make it the working directory."""
    folder = ROOT / "build" / name
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("dcnzoo", "ops", "tests"):
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("*.so"))
    for part in ("README.md", "LICENSE", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / part, folder)
    session.chdir(folder)
    session.run(*python, "setup.py", "-q", "build_ext", "--inplace", env={"DCNZOO_CUDA": "0", **variables})


OPERATORS = [f"tests/ops/test_{name}.py" for name in ("ops", "deform_conv", "cpu_capability")]


@nox.session(venv_backend="none", tags=NIGHTLY)
def compilers(session: Session) -> None:
    """Compile with every installed GCC and Clang without warnings, and test the operators (-- g++-11)."""
    update_venv(session)
    known = [f"{name}-{number}" for name in ("g++", "clang++") for number in range(11, 24)]
    chosen = "hand_worked or matches_reference or half_precision or every_capability"
    installed = session.posargs or [compiler for compiler in known if shutil.which(compiler)]
    if {"g++", "clang++"} - {name.rpartition("-")[0] for name in installed} and not session.posargs:
        session.error(f"expected a GCC and a Clang, such as g++-12 and clang++-18, got {installed}")
    for compiler in installed:
        build_copy(session, compiler, CXX=compiler, CXXFLAGS="-Werror")
        workers = ("-q", "-n", "2", "--dist", "worksteal")
        session.run(PYTHON, "-m", "pytest", *workers, "-k", chosen, *OPERATORS)


@nox.session(venv_backend="none", tags=NIGHTLY)
def arm(session: Session) -> None:
    """Cross-compile for Linux on Arm and test some cases of the operators, emulated."""
    update_venv(session)
    folder = ROOT / ".nox" / "arm"
    if not (folder / ".installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        session.run_install(
            *("mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64"),
            *("--include=python3,libstdc++6", "bookworm", folder / "root"),
        )
        install = ("-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--group", "arm")
        session.run_install(
            *(PYTHON, *install, "--target", folder / "site", "--only-binary", ":all:"),
            *("--implementation", "cp", "--python-version", "3.11"),
            *("--platform", "manylinux_2_28_aarch64", "--platform", "manylinux2014_aarch64"),
        )
        (folder / ".installed").touch()

    def python(cpu: str) -> list[str]:
        """Return the command of an emulated Python, which starts the cross-compiler without emulation."""
        root = folder / "root"
        return ["qemu-aarch64-static", "-L", str(root), "-cpu", cpu, str(root / "usr/bin/python3.11")]

    variables = {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    variables["PATH"] = f"{VENV / 'bin'}:{os.environ['PATH']}"  # ninja
    compiler = "aarch64-linux-gnu-g++"
    build_copy(session, compiler, python("max"), CXX=compiler, CXXFLAGS="-Werror", **variables)
    for cpu, chosen in (  # without bfloat16 instructions, and with them
        ("neoverse-n1", "hand_worked or (matches_reference and not slow)"),
        ("max", "hand_worked or half_precision"),
    ):
        options = ("-q", "-p", "no:cacheprovider", "-k", chosen)
        session.run(*python(cpu), "-m", "pytest", *options, *OPERATORS, *session.posargs, env=variables)


# Other packages


@nox.session(tags=NIGHTLY)
def onedl(session: Session) -> None:
    """Test with the maintained forks of OpenMMLab's packages."""
    update_venv(session)
    # mmcv is built before torch is visible, so that it is built without its operators
    session.install("--no-deps", "--group", "onedl")
    make_visible(session, VENV)
    test(session, "tests/environments/test_smoke.py", "tests/environments/test_onedl.py")


@nox.session(tags=NIGHTLY)
def others(session: Session) -> None:
    """Test with torchvision, YOLO, MMPretrain, MMSegmentation: 6 GB."""
    use_venv(session)
    session.install("--group", "others")
    names = ("smoke", "torchvision", "yolo", "openmmlab")
    # tests of exports that need the operators of a torchvision built for this torch
    exports = ("pnnx.py", "deform_conv.py::test_torchvisions_operator")
    files = [f"tests/environments/test_{name}.py" for name in names]
    test(session, *files, *(f"tests/export/test_{name}" for name in exports))


@nox.session(tags=NIGHTLY)
def projects(session: Session) -> None:
    """Test other projects' code on dcnzoo's operators, Transformers 5 and Ray (-- --from FOLDER: clones)."""
    use_venv(session)
    session.install("--group", "projects")
    names = ("transformers", "ray", "projects")
    test(session, *(f"tests/environments/test_{name}.py" for name in names))


@nox.session(venv_backend="none")
def vit_adapter(session: Session) -> None:
    """Compare ViT-Adapter with clones of its authors' code, VIT_ADAPTER=…, and of Meta's, DINOV3=…."""
    update_venv(session)
    test(session, "tests/environments/test_vit_adapter.py", env={"OMP_NUM_THREADS": "1"})


@nox.session(tags=NIGHTLY)
def peers(session: Session) -> None:
    """Compare with mmcv's compiled operators; compiling takes 6 to 15 minutes."""
    use_venv(session)
    # PIP_FIND_LINKS=FOLDER uses a wheel of this mmcv from a folder
    build = ("--no-deps", "--no-build-isolation")
    session.install(*build, "mmcv==2.1.0", env={"MMCV_WITH_OPS": "1"})
    session.install(*build, "torch-ms-deform-attn==0.1.1")
    test(session, "tests/peers")


@nox.session(tags=NIGHTLY)
def gpu_resources(session: Session) -> None:
    """Compile the fused kernels for GPUs with the Triton of torch 2.11 and check their resources."""
    use_venv(session)
    session.install("--no-deps", "triton==3.6.0")  # .venv has the one of torch 2.13
    test(session, "tests/fused/test_resources.py")


@nox.session(tags=NIGHTLY)
def clients(session: Session) -> None:
    """Test pages in Chromium, the code of docs/runtimes in Node, and notebooks with a wheel (needs npm)."""
    update_venv(session)
    make_visible(session, VENV)  # the wheel's dcnzoo comes before the one of .venv
    session.install("--group", "clients")
    session.install("--no-deps", "--force-reinstall", wheel_to_test(session))
    folder = Path(session.create_tmp()).resolve()
    packages = ("axe-core@4.14.1", "onnxruntime-node@1.30.0", "onnxruntime-web@1.30.0")
    # --ignore-scripts: no downloads of other files, such as those for CUDA
    command = ("npm", "install", "--silent", "--ignore-scripts", "--prefix", folder, *packages)
    session.run_install(*command, external=True)
    if not shutil.which("chromium"):
        session.run_install("playwright", "install", "chromium")
    programs = Path(session.virtualenv.location, "bin").resolve()
    session.run("python", "-m", "ipykernel", "install", "--prefix", programs.parent)
    variables = {
        "AXE": str(folder / "node_modules/axe-core/axe.min.js"),
        "NODE": str(folder),
        "NOTEBOOK": str(programs),
        "JUPYTER_PATH": str(programs.parent / "share/jupyter"),
    }
    names = ("browser", "node", "notebook")
    test(session, *(f"tests/environments/test_{name}.py" for name in names), env=variables)


@nox.session(tags=NIGHTLY)
@nox.parametrize("version", ["1.31", "1.32"])
def tools(session: Session, version: str) -> None:
    """Test exported files with releases of onnxruntime."""
    use_venv(session)
    session.install("--no-deps", f"onnxruntime=={version}.*")
    test(session, "tests/export/test_tools.py", "tests/detect/test_session.py")


# Long tests


@nox.session(venv_backend="none", tags=NIGHTLY)
def fuzz(session: Session) -> None:
    """Compare 23,500 random calls of the operators with the reference (in `make test`: 1,128)."""
    update_venv(session)
    workers = ("-n", "2", "--dist", "worksteal")
    test(session, "tests/ops/test_fuzz.py", *workers, env={"DCNZOO_FUZZ_EXAMPLES": "250"})


@nox.session(venv_backend="none", tags=NIGHTLY)
def crash(session: Session) -> None:
    """Kill and resume a training 54 times and compare bits; check memory in half an hour of random calls."""
    update_venv(session)
    command = ("-m", "tests.programs.crash", "work_dirs/crash", "--each", "3", *session.posargs)
    session.run(PYTHON, *command, env={"OMP_NUM_THREADS": "1"})
    session.run(PYTHON, "-m", "pytest", "-s", "tests/ops/test_soak.py", env={"DCNZOO_SOAK_SECONDS": "1800"})


@nox.session(venv_backend="none", tags=NIGHTLY)
def distributed(session: Session) -> None:
    """Test distributed training: results, launchers, kills, three machines, Slurm.

    The machines are namespaces of Linux, which need root; Slurm needs slurm-wlm and munge of Debian.
    """
    update_venv(session)
    test(session, "tests/distributed")


def preload(session: Session, *names: str) -> str:
    """Return the value of LD_PRELOAD for libraries of GCC."""
    options = [f"-print-file-name=lib{name}.so" for name in names]
    return " ".join(session.run("g++", option, silent=True).strip() for option in options)


@nox.session(venv_backend="none", tags=NIGHTLY)
def sanitize(session: Session) -> None:
    """Run the operators' tests with checks of memory accesses, arithmetic and data races."""
    update_venv(session)
    checks = "-fsanitize=address,undefined,float-cast-overflow"
    # Stack variables are not checked: GCC's instrumentation misaligns vectors of 32 bytes and more there.
    further = "-g1 -O1 -fno-sanitize-recover=all -fno-sanitize=vptr --param=asan-stack=0"
    flags = {"CXXFLAGS": f"{checks} {further}", "LDFLAGS": checks}
    build_copy(session, "sanitize", DCNZOO_EMULATE_AMX="1", **flags)
    variables = {
        "LD_PRELOAD": preload(session, "asan", "ubsan", "stdc++"),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
    }
    suite = [f"tests/ops/test_{name}.py" for name in ("ops", "fuzz", "deform_conv", "roi_pooling", "nms")]
    options = ("-q", "-p", "no:cacheprovider", "-k", "not compile and not opcheck and not export")
    test(session, *suite, *options, env=variables)
    # the kernels of AMX, with vectors and tiles in C++
    variables["DCNZOO_CPU_CAPABILITY"] = "amx_bf16"
    test(session, *suite, *options[:-1], f"{options[-1]} and bfloat16", env=variables)
    check_threads(session)


def check_threads(session: Session) -> None:
    """Check random calls from four threads, with four threads each, for data races."""
    # The sanitizer cannot see the barriers of torch's threads, so parallel_for uses its own threads here, and
    # only races in our library are reported.
    check = ("-g1", "-O1", "-fsanitize=thread", "-Wno-tsan", "-DDCNZOO_STD_THREADS=4")
    build_copy(session, "sanitize_threads", CXXFLAGS=" ".join(check), LDFLAGS="-fsanitize=thread")
    torch = site_packages(VENV) / "torch"
    library = ("tests/programs/race.cpp", "-o", "race.so", "-Iops", "-isystem", torch / "include")
    session.run("g++", "-std=c++17", "-fPIC", "-shared", *check, *library)
    variables = {
        "LD_PRELOAD": preload(session, "tsan", "stdc++"),
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1 report_mutex_bugs=0",
        "OMP_NUM_THREADS": "1",
    }
    race = "import ctypes, torch; ctypes.CDLL('./race.so').race({})"
    session.run(PYTHON, "-c", race.format(0), env=variables)
    # a race that the sanitizer must find
    output = session.run(PYTHON, "-c", race.format(1), env=variables, silent=True, success_codes=[66])
    if "data race" not in output:
        session.error(f"expected the report of a data race, got {output}")
    session.run(PYTHON, "-m", "tests.programs.soak", "--most=9", "--seconds=120", env=variables)


# Measurements that write pages


@nox.session(venv_backend="none", tags=NIGHTLY)
def conformance(session: Session) -> None:
    """Compare every exported form of the operators in each runtime: docs/benchmarks/conformance.md."""
    update_venv(session)
    results = "work_dirs/conformance.xml"
    options = ("-q", "-n", "2", "--dist", "loadgroup", "benchmarks/conformance", f"--junitxml={results}")
    test(session, *options, success_codes=[0, 1])  # the page is written in any case
    session.run(PYTHON, "-m", "benchmarks.conformance.page", results)


PHONES = ("MNN==3.6.1", "tract==0.23.9", "executorch==1.5.1", "ncnn==1.0.20261020", "pnnx==20261020")
EXECUTORCH = ("pytorch-tokenizers==1.5.0", "tabulate==0.10.0", "torchao==0.18.0")  # which it imports


@nox.session(tags=NIGHTLY)
def runtimes(session: Session) -> None:
    """Compare exported detectors in runtimes of phones and boards: docs/benchmarks/runtimes.md."""
    use_venv(session)
    folder = Path(session.create_tmp()).resolve()
    litert = folder / "litert"
    # onnx2tf needs Python 3.12. virtualenv tries each one on the PATH, because a shim of pyenv may not run
    session.run_install(PYTHON, "-m", "virtualenv", "--quiet", "--python", ">=3.12", litert, external=True)
    session.run_install(litert / "bin/pip", "install", "--quiet", "onnx2tf==2.6.9", external=True)
    # without their requirements: some require other versions of packages in .venv
    session.install("--no-deps", *PHONES, *EXECUTORCH)
    session.run(PYTHON, "-m", "benchmarks.runtimes", "make", folder, external=True)
    for runtime in ("mnn", "executorch", "tract", "ncnn"):
        session.run("python", "-m", "benchmarks.runtimes", "run", runtime, folder)
    session.run(litert / "bin/python", "-m", "benchmarks.runtimes", "run", "litert", folder, external=True)
    page = "docs/benchmarks/runtimes.md"
    session.run(PYTHON, "-m", "benchmarks.runtimes", "table", folder, page, external=True)


COVERAGE = ("mmdet", "deformable", "export")  # tests in benchmarks/coverage, sections of docs/coverage.md


@nox.session(venv_backend="none")
@nox.parametrize("name", COVERAGE, ids=COVERAGE)
def coverage(session: Session, name: str) -> None:
    """Try a config of each family and write docs/coverage.md (-- --group 3/24: a part of the families)."""
    update_venv(session)
    results = []
    for other in ("", "others"):
        python = create_environment(session, other) / "bin/python" if other else PYTHON
        results.append(f"work_dirs/{name}_{other or 'venv'}.xml")
        command = ("-m", "pytest", "-q", f"benchmarks/coverage/test_{name}.py", f"--junitxml={results[-1]}")
        session.run(python, *command, *session.posargs, success_codes=[0, 1])
    kept = (ROOT / f"benchmarks/coverage/{name}.json").exists()  # else a part would become the whole page
    if kept or not session.posargs:
        session.run(PYTHON, "-m", "benchmarks.coverage.table", name, *results)


@nox.session(venv_backend="none")
def study(session: Session) -> None:
    """Run the trainings of benchmarks/study/plan.md (12 core-hours; resumable), and write docs/study.md."""
    update_venv(session)
    session.run(PYTHON, "-m", "benchmarks.study", "run", *session.posargs, env={"OMP_NUM_THREADS": "1"})
    session.run(PYTHON, "-m", "benchmarks.study", "page")
