"""Compile ops/ into stable-ABI libraries in dcnzoo/ops/, with ninja.

One library per device: ``_C_cpu.so`` always, ``_C_cuda13.so`` (with CUDA 13) if nvcc is found and torch is a
CUDA build. Neither depends on the version of Python or (from 2.10 on) of torch, so one wheel works with all.
A torch for an earlier CUDA does not load the CUDA library, because the driver may be too old for it.

On systems other than Linux and macOS, or without a C++ compiler, nothing is compiled. dcnzoo.ops then runs in
plain PyTorch, which is slow, and warns about it.

Sources are found by name, anywhere under ops/:
    *_cuda.cu          CUDA kernels
    *_cpu_kernel.cpp   CPU kernels without torch, compiled once per instruction set
    *.cpp              everything else

Environment: ``DCNZOO_BUILD=require`` stops without a compiler, ``none`` compiles nothing, ``auto`` is the
default; ``DCNZOO_CUDA=0`` skips the CUDA library, ``DCNZOO_CUDA=1`` builds it for any torch (for another
machine, or to check that it compiles), ``DCNZOO_CUDA_ARCHS="80;90"`` or
``TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX"`` selects its architectures, ``CXX`` the compiler, ``CUDA_HOME`` the
toolkit, ``MAX_JOBS`` the number of jobs; ``DCNZOO_STRICT=1``, as in .ci/run, turns nvcc's warnings into
errors; ``DCNZOO_TARGET=windows-x86_64`` or ``macos-arm64`` compiles the CPU library for another system with
PyPI's ziglang, against the wheel of torch for that system, unpacked in the folder ``DCNZOO_TORCH``.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

import setuptools

if int(setuptools.__version__.partition(".")[0]) < 77:  # checked before the imports that fail
    raise SystemExit(f'dcnzoo: setuptools {setuptools.__version__} is too old: pip install "setuptools>=77"')

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OPS = ROOT / "ops"
# Oldest supported torch: a call that newer versions added to the stable ABI is a compile error.
TORCH_TARGET = "0x020a000000000000"
MIN_TORCH = (2, 10)
GLIBC_OF_TORCH = (2, 28)  # of its wheels
# sm_75 Turing to sm_120 Blackwell, as far as nvcc supports them; PTX of the last one runs on later GPUs.
CUDA_ARCHS = ("75", "80", "86", "89", "90", "100", "120")


class Target(NamedTuple):
    """A system that libraries are cross-compiled for."""

    machine: str
    zig: str  # the compiler's name of it
    platform: str  # the wheel's
    suffix: str  # of a library
    flags: list[str]
    link: list[str]


TARGETS = {
    "windows-x86_64": Target(
        "x86_64",
        "x86_64-windows-gnu",
        "win_amd64",
        ".dll",
        [],
        ["-ltorch_cpu", "-lc10", "-s", "-Wl,--out-implib=unused.lib"],
    ),
    "macos-arm64": Target(
        # the symbols of torch are in its libraries, which are loaded before ours
        *("arm64", "aarch64-macos.11.0", "macosx_11_0_arm64", ".so"),
        ["-fPIC"],
        ["-undefined", "dynamic_lookup", "-Wl,-install_name,_C_cpu.so"],
    ),
}
TARGET = TARGETS.get(os.environ.get("DCNZOO_TARGET", ""))
MACHINE = TARGET.machine if TARGET else platform.machine()

EMULATES_AMX = os.environ.get("DCNZOO_EMULATE_AMX") == "1"  # in C++, for tests on any CPU
# Instruction sets; the best one of the machine is selected at run time (ops/common/cpu_capability.h).
CPU_CAPABILITIES = {"DEFAULT": []}
if MACHINE in ("x86_64", "AMD64"):
    avx2 = ["-mavx2", "-mfma", "-mf16c"]
    avx512 = [*avx2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
    CPU_CAPABILITIES["AVX2"] = avx2
    CPU_CAPABILITIES["AVX512"] = [*avx512, "-mprefer-vector-width=512"]
    CPU_CAPABILITIES["AVX512_BF16"] = [*CPU_CAPABILITIES["AVX512"], "-mavx512bf16"]
    if sys.platform == "linux" and not TARGET:  # if the compiler supports it
        CPU_CAPABILITIES["AMX_BF16"] = [*CPU_CAPABILITIES["AVX512_BF16"], "-mamx-tile", "-mamx-bf16"]
        if EMULATES_AMX:
            CPU_CAPABILITIES["AMX_BF16"] = ["-D__AMX_BF16__", "-O1", "-Wno-psabi"]
if MACHINE in ("aarch64", "arm64"):
    # GCC would schedule loads so early that it runs out of registers; Clang has no such option.
    CPU_CAPABILITIES["DEFAULT"] = ["-fno-schedule-insns", "-Wno-ignored-optimization-argument"]
    bfloat16 = ["-Xclang", "-target-feature", "-Xclang", "+bf16"] if TARGET else ["-march=armv8.2-a+bf16"]
    CPU_CAPABILITIES["NEON_BF16"] = [*CPU_CAPABILITIES["DEFAULT"], *bfloat16]

# Instruction sets that only the kernels in some folders of ops/ use.
FOLDERS_OF_CAPABILITY = {"AMX_BF16": ["deform_conv"]}

# Additional options for the C++ sources in a folder of ops/, or for their kernels of one instruction set.
FOLDER_FLAGS = {
    "nms": ["-ffp-contract=off"],  # bit-identical decisions to mmcv
}
if "AVX2" in CPU_CAPABILITIES:
    # CPUs without AVX2 are rare: compile for them in half the time; kernels take up to 1.11 times as long.
    FOLDER_FLAGS["deform_conv.DEFAULT"] = ["-O1"]


def stop(problem: str, remedy: str) -> NoReturn:
    """Stop the build with two lines instead of a traceback; never build a package without operators."""
    raise SystemExit(f"dcnzoo: cannot build the operators: {problem}\n        {remedy}")


def torch_folder() -> Path:
    """Return the folder of torch's headers and libraries."""
    if TARGET:
        folder = Path(os.environ.get("DCNZOO_TORCH", ""), "torch").resolve()
        if not (folder / "lib").is_dir():
            remedy = "Set DCNZOO_TORCH to a folder with the unpacked wheel of torch 2.10 for this system."
            stop(f"DCNZOO_TARGET={os.environ['DCNZOO_TARGET']}, but {folder} has no libraries.", remedy)
        return folder
    try:
        import torch
    except ImportError:
        problem = "torch is not installed in the build environment."
        stop(problem, "Install torch >= 2.10 first, or build without --no-build-isolation.")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
        stop(f"torch {torch.__version__} is too old; 2.10 or newer is needed.", 'pip install "torch>=2.10"')
    return Path(torch.__file__).parent


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler, which may have options; [] if there is none.

    A wrong CXX is an error.
    """
    if TARGET:
        return [sys.executable, "-m", "ziglang", "c++", "-target", TARGET.zig]
    name = os.environ.get("CXX") or ("g++" if shutil.which("g++") else "c++")
    command = shlex.split(name)
    if shutil.which(command[0]) is None:
        if os.environ.get("CXX"):
            stop(f"no C++ compiler found (looked for {name!r}).", "Set CXX to its path, or unset it.")
        return []
    return command


def require_compiler() -> list[str]:
    return find_compiler() or stop(
        "no C++ compiler found (looked for g++ and c++).",
        "Install one (Debian/Ubuntu: apt install g++), or set CXX to its path.",
    )


def find_ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which("ninja")
    if found is None:
        stop("ninja is not installed.", "pip install ninja")
    return found


def torch_has_cuda() -> bool:
    try:
        import torch
    except ImportError:  # reported when compiling; an sdist needs no torch
        return False
    return torch.version.cuda is not None


def find_nvcc() -> str | None:
    """Return the path of nvcc; None if the CUDA library is not to be built."""
    wanted = os.environ.get("DCNZOO_CUDA", "")
    if wanted not in ("", "0", "1"):
        stop(f"DCNZOO_CUDA: expected 0 or 1, got {wanted!r}.", "Change DCNZOO_CUDA, or unset it.")
    if TARGET or wanted == "0" or (not wanted and not torch_has_cuda()):
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    if wanted and found is None:
        stop(
            f"DCNZOO_CUDA=1, but no nvcc found in {home or 'the PATH'}.",
            "Set CUDA_HOME to the toolkit's folder.",
        )
    return found


def cuda_major(nvcc: str) -> str:
    """Return the first number of the version of CUDA."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.", text)
    return match[1] if match else stop(f"{nvcc} --version names no release.", "CUDA 12.0 or newer is needed.")


def cuda_targets(nvcc: str) -> list[str]:
    """Return nvcc's options for the selected architectures, by default those that it supports."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = re.findall(r"compute_(\d+)", listed.stdout)
    if not known:
        stop(f"{nvcc} --list-gpu-arch lists no architecture.", "CUDA 12.0 or newer is needed.")
    archs = [arch for arch in CUDA_ARCHS if arch in known]
    ptx = archs[-1:]
    for name, form in (
        ("TORCH_CUDA_ARCH_LIST", r"(\d+)\.(\d)([af]?)(\+PTX)?"),
        ("DCNZOO_CUDA_ARCHS", r"(\d+)(\d)([af]?)()"),  # the stronger one
    ):
        if not os.environ.get(name):
            continue
        matches = [re.fullmatch(form, arch) for arch in re.split("[;, ]+", os.environ[name].strip("; ,"))]
        if not all(match and match[1] + match[2] in known for match in matches):
            example = "8.0;9.0+PTX" if name == "TORCH_CUDA_ARCH_LIST" else "80;90"
            supported = f"those that {nvcc} supports ({', '.join(known)})"
            problem = (
                f"{name}: expected architectures such as {example}, of {supported}, got {os.environ[name]!r}."
            )
            stop(problem, f"Change {name}, or set CUDA_HOME to a newer toolkit.")
        archs = ["".join(match.group(1, 2, 3)) for match in matches]
        ptx = [arch for arch, match in zip(archs, matches, strict=True) if match[4]]
        if name == "DCNZOO_CUDA_ARCHS":
            ptx = archs[-1:]
    machine_code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return machine_code + [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ptx]


def quote(arguments: list[str]) -> str:
    """Quote a command line for the shell, then for ninja."""
    return shlex.join(arguments).replace("$", "$$")


def escape(path: Path) -> str:
    """Escape a path in a build line of ninja."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(command: str, link: str, objects: dict[str, tuple[Path, list[str]]], target: Path) -> str:
    """Return the text of build.ninja. ``objects``: source and its own options, by the name of the object."""
    lines = [
        "rule compile",
        "  description = compile $out",
        f"  command = {command} $options -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  description = link $out",
        f"  command = {link}",
    ]
    for name, (source, options) in objects.items():
        lines += [f"build {name}: compile {escape(source)}", f"  options = {quote(options)}"]
    return "\n".join([*lines, f"build {escape(target)}: link {' '.join(objects)}", ""])


def common_flags(library: Path, device: str) -> list[str]:
    include = library / "include"
    # replaces the build machine's paths, which error messages of torch's headers would contain
    renamed = [f"-ffile-prefix-map={include}/=", f"-ffile-prefix-map={ROOT}/="]
    return [
        *("-O3", "-std=c++17", "-DNDEBUG", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"),
        *("-isystem", str(include), f"-I{OPS}"),
        *(("-Xcompiler", ",".join(map(shlex.quote, renamed))) if device == "cuda" else renamed),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]


def assembles_amx() -> bool:
    """Return whether the compiler supports AMX, and so does its assembler, which may be older."""
    options = ["-x", "c++", "-c", "-o", os.devnull, "-"]
    command = [*require_compiler(), *CPU_CAPABILITIES["AMX_BF16"], *options]
    source = 'void multiply() { asm("tdpbf16ps %tmm2, %tmm1, %tmm0"); }'
    return subprocess.run(command, input=source, text=True, stderr=subprocess.DEVNULL).returncode == 0


def cpu_build(library: Path, folder: Path, target: Path) -> str:
    command = [
        *require_compiler(),
        *common_flags(library, "cpu"),
        *("-MMD", "-fvisibility=hidden", "-Wall", "-Wextra"),
        # zig adds checks of undefined behaviour, which end the process
        *([*TARGET.flags, "-fno-sanitize=undefined"] if TARGET else ["-fPIC"]),
        "-Wno-unknown-warning-option",  # Clang does not have the next one
        *("-Wno-maybe-uninitialized", "-Wno-ignored-attributes"),
        # lets floor and selects vectorise; NaN and Inf stay defined
        *("-fno-math-errno", "-fno-trapping-math"),
    ]
    capabilities = dict(CPU_CAPABILITIES)
    if "AMX_BF16" in capabilities:
        if assembles_amx():
            command.append(f"-DDCNZOO_WITH_AMX={'DEFAULT' if EMULATES_AMX else 'AVX512_BF16'}")
            if EMULATES_AMX:
                command.append(f'-DDCNZOO_TILES="{ROOT}/tests/ops/emulated_tiles.h"')
        else:
            del capabilities["AMX_BF16"]
    linked = TARGET.link if TARGET else ["-ltorch_cpu", "-ltorch", "-lc10"]
    libraries = [f"-L{library / 'lib'}", *linked]
    libraries += shlex.split(os.environ.get("LDFLAGS", ""))
    link = f"{quote(require_compiler())} -shared $in -o $out {quote(libraries)}"
    objects = {}
    for source in sorted(OPS.rglob("*.cpp")):
        name = source.relative_to(OPS).with_suffix("")
        shared = FOLDER_FLAGS.get(name.parts[0], [])
        if not source.stem.endswith("_cpu_kernel"):
            objects[f"{name}.o"] = source, shared
            continue
        for capability, options in capabilities.items():
            if name.parts[0] not in FOLDERS_OF_CAPABILITY.get(capability, name.parts):
                continue
            further = FOLDER_FLAGS.get(f"{name.parts[0]}.{capability}", [])
            options = [*options, *shared, *further, f"-DDCNZOO_CAPABILITY={capability}"]
            objects[f"{name}.{capability.lower()}.o"] = source, options
    return ninja_file(quote(command), link, objects, target)


def cuda_build(library: Path, folder: Path, target: Path) -> str:
    nvcc = find_nvcc()
    command = [
        *(nvcc, *common_flags(library, "cuda"), *cuda_targets(nvcc)),
        *("-MD", "-DUSE_CUDA", "--expt-relaxed-constexpr", "--extended-lambda"),
        # only in our own builds: other toolkits may have other warnings
        *(("--Werror", "all-warnings") if os.environ.get("DCNZOO_STRICT") == "1" else ()),
        *("--cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
    ]
    # through a symbolic link, because nvcc stores the linker's arguments in the library
    torch_lib = folder / "torch_lib"
    torch_lib.unlink(missing_ok=True)
    torch_lib.symlink_to(library / "lib")
    libraries = [f"-L{torch_lib.name}", "-ltorch_cuda", "-ltorch_cpu", "-ltorch", "-lc10"]
    cuda_lib = folder / "cuda_lib"
    cuda_lib.unlink(missing_ok=True)
    cuda_lib.symlink_to(Path(nvcc).parents[1] / "lib")  # as in PyPI's packages; nvcc looks in lib64
    libraries.append(f"-L{cuda_lib.name}")
    if not (library / "lib" / "libtorch_cuda.so").exists():
        libraries.insert(0, f"-L{stand_in_for_libtorch_cuda(folder).name}")
    link = f"{quote([nvcc])} --cudart static -shared $in -o $out {quote(libraries)}"
    sources = sorted(OPS.rglob("*.cu"))
    objects = {f"{source.relative_to(OPS).with_suffix('')}.o": (source, []) for source in sources}
    return ninja_file(quote(command), link, objects, target)


def stand_in_for_libtorch_cuda(folder: Path) -> Path:
    """Build an empty library named libtorch_cuda for linking, if torch is a CPU build.

    At run time, the loader uses the real one, which a CUDA build of torch has loaded.
    """
    stub = folder / "stub"
    stub.mkdir(exist_ok=True)
    source = stub / "stub.cpp"
    source.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
    options = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
    subprocess.run([*require_compiler(), *options, source, "-o", stub / "libtorch_cuda.so"], check=True)
    return stub


class BuildPy(build_py):
    """Removes the results of earlier builds first: a wheel would contain their files, too."""

    def run(self) -> None:
        for folder in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist.*")):
            shutil.rmtree(folder)
        super().run()


class BuildOps(build_ext):
    """Writes and runs a build.ninja per library."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if find_nvcc() is None:
            self.extensions = [ext for ext in self.extensions if not ext.name.endswith("_cuda")]

    def get_ext_filename(self, fullname: str) -> str:
        # no Python version in the name: the library does not depend on it
        nvcc = find_nvcc()
        major = cuda_major(nvcc) if nvcc and fullname.endswith("_cuda") else ""
        return fullname.replace(".", os.sep) + major + (TARGET.suffix if TARGET else ".so")

    def build_extension(self, ext: Extension) -> None:
        device = ext.name.rsplit("_", 1)[1]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = ROOT / "build" / "ops" / os.environ.get("DCNZOO_TARGET", "") / device
        for path in (target.parent, folder):
            path.mkdir(parents=True, exist_ok=True)
        if device == "cuda":
            print(f"CUDA operators, with {find_nvcc()}: DCNZOO_CUDA=0 leaves them out", flush=True)
        build = {"cpu": cpu_build, "cuda": cuda_build}[device]
        (folder / "build.ninja").write_text(build(torch_folder(), folder, target))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([find_ninja(), "-C", str(folder), *jobs]).returncode != 0:
            if device == "cuda":
                used, remedy = find_nvcc(), "DCNZOO_CUDA=0 skips the CUDA library."
            else:
                used = shlex.join(require_compiler())
                remedy = "GCC 11 or Clang 14 is needed, or a newer one; CXX selects the compiler."
            stop(f"compiling {target.name} with {used} failed; see the compiler's message above.", remedy)


class PlatformWheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>: the libraries depend on the platform, not on Python's version.

    On Linux, the platform is the oldest sufficient glibc (PEP 600), so that pip skips the wheel on systems
    where the libraries would not load.
    """

    def get_tag(self):
        if TARGET:
            return "py3", "none", TARGET.platform
        platform = super().get_tag()[2]
        needed = glibc_needed(Path(self.bdist_dir).rglob("_C_*.so"))
        if needed and platform.startswith("linux_"):
            platform = platform.replace("linux", "manylinux_{}_{}".format(*max(needed, GLIBC_OF_TORCH)), 1)
        return "py3", "none", platform


def glibc_needed(libraries: Iterable[Path]) -> tuple[int, int] | None:
    """Return the newest version of glibc that the libraries' symbols require."""
    versions = (re.findall(rb"\0GLIBC_(\d+)\.(\d+)", library.read_bytes()) for library in libraries)
    return max(((int(a), int(b)) for found in versions for a, b in found), default=None)


def write_schemas() -> None:
    """Write the schemas in the sources to a file, which dcnzoo/ops/_library.py reads."""
    schemas = []
    for source in sorted(OPS.rglob("*.cpp")):
        for literals in re.findall(r'\bm\.def\(\s*((?:"[^"]*"\s*)+)', source.read_text(encoding="utf-8")):
            schemas.append("".join(re.findall(r'"([^"]*)"', literals)) + "\n")
    file = ROOT / "dcnzoo" / "ops" / "schemas.txt"
    partial = file.with_suffix(f".{os.getpid()}")  # renamed: other processes may read the file
    try:
        partial.write_text("".join(schemas), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        stop(f"{error.filename}: {error.strerror}.", "Build in a clone that belongs to you.")


def devices() -> tuple[str, ...]:
    """Return the devices of the libraries to build; none with DCNZOO_BUILD=none or without a compiler."""
    mode = os.environ.get("DCNZOO_BUILD", "auto")
    if mode not in ("auto", "require", "none"):
        stop(f"DCNZOO_BUILD: expected auto, require or none, got {mode!r}.", "Change it, or unset it.")
    if os.environ.get("DCNZOO_TARGET", "") not in ("", *TARGETS):
        target = f"expected {' or '.join(TARGETS)}, got {os.environ['DCNZOO_TARGET']!r}."
        stop(f"DCNZOO_TARGET: {target}", "Change it, or unset it.")
    if mode == "require" or (mode == "auto" and sys.platform in ("linux", "darwin") and find_compiler()):
        return "cpu", "cuda"
    reason = "DCNZOO_BUILD=none" if mode == "none" else "no C++ compiler"
    if mode == "auto" and sys.platform not in ("linux", "darwin"):
        reason = f"not supported on {sys.platform}; a wheel for Windows has compiled operators"
    slow = (
        "plain PyTorch is used, which takes several times as long on a CPU; on a GPU, Triton needs gcc, too"
    )
    print(f"dcnzoo: nothing is compiled ({reason}): {slow}", file=sys.stderr)
    return ()


if __name__ == "__main__":
    write_schemas()
    extensions = [Extension(f"dcnzoo.ops._C_{device}", sources=[]) for device in devices()]
    commands = {"build_py": BuildPy, "build_ext": BuildOps, "bdist_wheel": PlatformWheel}
    setup(ext_modules=extensions, cmdclass=commands)
