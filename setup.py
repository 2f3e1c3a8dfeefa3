"""Compile ops/ into stable-ABI libraries in dcnzoo/ops/, with ninja.

One library per device: ``_C_cpu.so`` always, ``_C_cuda.so`` if nvcc is found and torch is a CUDA build.
Neither depends on the version of Python or (from 2.10 on) of torch, so one wheel works with all of them.

On systems other than Linux and macOS nothing is compiled; dcnzoo.ops then runs in plain PyTorch.

Sources are found by name, anywhere under ops/:
    *_cuda.cu          CUDA kernels
    *_cpu_kernel.cpp   CPU kernels without torch, compiled once per instruction set
    *.cpp              everything else

Environment: ``DCNZOO_CUDA=0`` skips the CUDA library, ``DCNZOO_CUDA=1`` builds it for any torch (for another
machine, or to check that it compiles), ``DCNZOO_CUDA_ARCHS="80;90"`` or
``TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX"`` selects its architectures, ``CXX`` the compiler, ``CUDA_HOME`` the
toolkit, ``MAX_JOBS`` the number of jobs; ``DCNZOO_STRICT=1``, as in .ci/run, turns nvcc's warnings into
errors.
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
from contextlib import suppress
from pathlib import Path

import setuptools

if int(setuptools.__version__.partition(".")[0]) < 77:  # checked before the imports that fail
    raise SystemExit(f'dcnzoo: setuptools {setuptools.__version__} is too old: pip install "setuptools>=77"')

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Oldest supported torch: a call that newer versions added to the stable ABI is a compile error.
TORCH_TARGET = "0x020a000000000000"
MIN_TORCH = (2, 10)
GLIBC_OF_TORCH = (2, 28)  # of its wheels
# sm_75 Turing to sm_120 Blackwell, as far as nvcc supports them; PTX of the last one runs on later GPUs.
CUDA_ARCHS = ("75", "80", "86", "89", "90", "100", "120")
# Names allowed in TORCH_CUDA_ARCH_LIST, as in torch.utils.cpp_extension.
CUDA_ARCH_NAMES = {
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;12.0+PTX",
}

# Instruction sets; the best one of the machine is selected at run time (ops/common/cpu_capability.h).
CPU_CAPABILITIES = {"DEFAULT": []}
if platform.machine() in ("x86_64", "AMD64"):
    avx2 = ["-mavx2", "-mfma", "-mf16c"]
    avx512 = [*avx2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
    CPU_CAPABILITIES["AVX2"] = avx2
    CPU_CAPABILITIES["AVX512"] = [*avx512, "-mprefer-vector-width=512"]
    CPU_CAPABILITIES["AVX512_BF16"] = [*CPU_CAPABILITIES["AVX512"], "-mavx512bf16"]
if platform.machine() in ("aarch64", "arm64"):
    # GCC would schedule loads so early that it runs out of registers; Clang has no such option.
    CPU_CAPABILITIES["DEFAULT"] = ["-fno-schedule-insns", "-Wno-ignored-optimization-argument"]
    CPU_CAPABILITIES["NEON_BF16"] = [*CPU_CAPABILITIES["DEFAULT"], "-march=armv8.2-a+bf16"]


def stop(problem: str, remedy: str) -> None:
    """Stop the build with two lines instead of a traceback; never build a package without operators."""
    raise SystemExit(f"dcnzoo: cannot build the operators: {problem}\n        {remedy}")


def import_torch():
    try:
        import torch
    except ImportError:
        stop(
            "torch is not installed in the build environment.",
            "Install torch >= 2.10 first, or build without --no-build-isolation.",
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
        stop(
            f"torch {torch.__version__} is too old; 2.10 or newer is needed.",
            'pip install "torch>=2.10"',
        )
    return torch


def find_compiler() -> str:
    compiler = os.environ.get("CXX", "g++" if shutil.which("g++") else "c++")
    if shutil.which(compiler.split()[0]) is None:
        stop(
            f"no C++ compiler found (looked for {compiler!r}).",
            "Install one (Debian/Ubuntu: apt install g++), or set CXX to its path.",
        )
    return compiler


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
    if wanted == "0" or (not wanted and not torch_has_cuda()):
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    if wanted and found is None:
        stop(
            f"DCNZOO_CUDA=1, but no nvcc found in {home or 'the PATH'}.",
            "Set CUDA_HOME to the toolkit's folder.",
        )
    return found


def archs_of_nvcc(nvcc: str) -> set[str]:
    """Return the architectures that this nvcc supports: ``{"75", "80", …}``."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = set(re.findall(r"compute_(\d+)", listed.stdout))
    if not known:
        stop(f"{nvcc} --list-gpu-arch lists no architecture.", "CUDA 12.0 or newer is needed.")
    return known


def chosen_archs() -> tuple[str, list[str], list[str]]:
    """Return the variable that selects them ('' by default), the architectures, and those to add PTX for."""
    if name := next((n for n in ("DCNZOO_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST") if os.environ.get(n)), None):
        given = os.environ[name]
        for known, versions in CUDA_ARCH_NAMES.items() if name == "TORCH_CUDA_ARCH_LIST" else ():
            given = re.sub(rf"\b{known}\b", versions, given)
        form = r"(\d+)\.(\d)([af]?)(\+PTX)?" if name == "TORCH_CUDA_ARCH_LIST" else r"(\d+?)(\d)([af]?)()"
        found = [re.fullmatch(form, arch) for arch in re.split("[;, ]+", given.strip("; ,"))]
        if None in found:
            example = "8.0;9.0+PTX" if name == "TORCH_CUDA_ARCH_LIST" else "80;90"
            problem = f"{name}: expected architectures such as {example}, got {os.environ[name]!r}."
            stop(problem, f"Change {name}.")
        archs = ["".join(match.group(1, 2, 3)) for match in found]
        ptx = [arch for arch, match in zip(archs, found, strict=True) if match[4]]
        return name, archs, ptx if name == "TORCH_CUDA_ARCH_LIST" else archs[-1:]
    return "", list(CUDA_ARCHS), []


def cuda_targets(nvcc: str) -> list[str]:
    """Return nvcc's options for the selected architectures that it supports."""
    name, archs, ptx = chosen_archs()
    known = archs_of_nvcc(nvcc)
    unknown = [arch for arch in archs if arch.rstrip("af") not in known]
    if name and unknown:
        stop(
            f"{name}: expected architectures that {nvcc} supports ({', '.join(sorted(known, key=int))}), "
            f"got {', '.join(unknown)}.",
            f"Change {name}, or set CUDA_HOME to a newer toolkit.",
        )
    archs = [arch for arch in archs if arch not in unknown]
    if not archs:
        stop(f"{nvcc} supports none of the architectures {', '.join(CUDA_ARCHS)}.", "Set DCNZOO_CUDA_ARCHS.")
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return targets + [f"-gencode=arch=compute_{a},code=compute_{a}" for a in (ptx if name else archs[-1:])]


def quote(arguments: list[str]) -> str:
    """Quote a command line for the shell, then for ninja."""
    return shlex.join(arguments).replace("$", "$$")


def escape(path: Path) -> str:
    """Escape a path in a build line of ninja."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_rules(compiler: str, link: str) -> list[str]:
    return [
        "rule compile",
        "  description = compile $out",
        f"  command = {compiler} -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  description = link $out",
        f"  command = {link}",
    ]


# Additional options for the C++ sources in a folder of ops/, or for their kernels of one instruction set.
FOLDER_FLAGS = {
    "nms": ["-ffp-contract=off"],  # bit-identical decisions to mmcv
    "rotated_boxes": ["-ffp-contract=off"],  # bit-identical results on all instruction sets
}
if "AVX2" in CPU_CAPABILITIES:
    # CPUs without AVX2 are rare: compile for them in half the time; kernels take up to 1.11 times as long.
    FOLDER_FLAGS["deform_conv.DEFAULT"] = ["-O1"]


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
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        torch = import_torch()
        device = ext.name.rsplit("_", 1)[1]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = ROOT / "build" / "ops" / device
        folder.mkdir(parents=True, exist_ok=True)
        library = Path(torch.__file__).parent
        rules = self.cpu_rules if device == "cpu" else self.cuda_rules
        lines = rules(library, folder, target)
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        command = [find_ninja(), "-C", str(folder)]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        if subprocess.run(command).returncode != 0:
            compiler = find_nvcc() if device == "cuda" else find_compiler()
            stop(
                f"compiling {target.name} with {compiler} failed; see the compiler's message above.",
                "DCNZOO_CUDA=0 skips the CUDA library."
                if device == "cuda"
                else "GCC 11 or Clang 14 is needed, or a newer one; CXX selects the compiler.",
            )

    def common_flags(self, library: Path, device: str) -> list[str]:
        include = library / "include"
        # replaces the build machine's paths, which error messages of torch's headers would contain
        renamed = [f"-ffile-prefix-map={include}/=", f"-ffile-prefix-map={ROOT}/="]
        return [
            "-O3",
            "-std=c++17",
            "-DNDEBUG",
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
            *("-isystem", str(include)),
            f"-I{ROOT / 'ops'}",
            *(("-Xcompiler", ",".join(map(shlex.quote, renamed))) if device == "cuda" else renamed),
            *shlex.split(os.environ.get("CXXFLAGS", "")),
        ]

    def cpu_rules(self, library: Path, folder: Path, target: Path) -> list[str]:
        # -fno-math-errno, -fno-trapping-math: lets floor and selects vectorise; NaN and Inf stay defined.
        flags = [
            *self.common_flags(library, "cpu"),
            *("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
            "-Wno-unknown-warning-option",  # Clang does not have the next one
            *("-Wno-maybe-uninitialized", "-Wno-ignored-attributes", "-fno-math-errno", "-fno-trapping-math"),
        ]
        link = [f"-L{library / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
        link += shlex.split(os.environ.get("LDFLAGS", ""))
        lines = [
            f"cxx = {find_compiler()}",
            f"flags = {quote(flags)}",
            *ninja_rules("$cxx $flags $options -MMD", f"$cxx -shared $in -o $out {quote(link)}"),
        ]
        objects = []
        for source in sorted((ROOT / "ops").rglob("*.cpp")):
            kernel = source.stem.endswith("_cpu_kernel")
            for name, options in CPU_CAPABILITIES.items() if kernel else [("", [])]:
                suffix = f".{name.lower()}" if name else ""
                out = f"{source.relative_to(ROOT / 'ops').with_suffix('')}{suffix}.o"
                lines.append(f"build {out}: compile {escape(source)}")
                operator = source.relative_to(ROOT / "ops").parts[0]
                for key in (operator, f"{operator}.{name}"):
                    options = [*options, *FOLDER_FLAGS.get(key, [])]
                if name:
                    options.append(f"-DDCNZOO_CAPABILITY={name}")
                lines.append(f"  options = {quote(options)}")
                objects.append(out)
        return [*lines, f"build {escape(target)}: link {' '.join(objects)}"]

    def cuda_rules(self, library: Path, folder: Path, target: Path) -> list[str]:
        targets = cuda_targets(find_nvcc())
        flags = [
            *self.common_flags(library, "cuda"),
            *("-DUSE_CUDA", "--expt-relaxed-constexpr", "--extended-lambda", *targets),
            # only in our own builds: other toolkits may have other warnings
            *(("--Werror", "all-warnings") if os.environ.get("DCNZOO_STRICT") == "1" else ()),
            *("--cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
        ]
        # by a link, because nvcc stores the linker's arguments in the library
        torch_lib = folder / "torch_lib"
        torch_lib.unlink(missing_ok=True)
        torch_lib.symlink_to(library / "lib")
        link = [f"-L{torch_lib.name}", "-ltorch_cuda", "-ltorch_cpu", "-ltorch", "-lc10"]
        if not (library / "lib" / "libtorch_cuda.so").exists():
            link.insert(0, f"-L{self.stand_in_for_libtorch_cuda(folder).name}")
        lines = [
            f"nvcc = {quote([find_nvcc()])}",
            f"flags = {quote(flags)}",
            *ninja_rules("$nvcc $flags -MD", f"$nvcc --cudart static -shared $in -o $out {quote(link)}"),
        ]
        objects = []
        for source in sorted((ROOT / "ops").rglob("*.cu")):
            out = f"{source.relative_to(ROOT / 'ops').with_suffix('')}.o"
            lines.append(f"build {out}: compile {escape(source)}")
            objects.append(out)
        return [*lines, f"build {escape(target)}: link {' '.join(objects)}"]

    def stand_in_for_libtorch_cuda(self, folder: Path) -> Path:
        """Build an empty library named libtorch_cuda for linking, if torch is a CPU build.

        At run time, the loader uses the real one, which a CUDA build of torch has loaded.
        """
        stub = folder / "stub"
        stub.mkdir(exist_ok=True)
        source = stub / "stub.cpp"
        source.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
        out = stub / "libtorch_cuda.so"
        options = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
        subprocess.run([find_compiler(), *options, source, "-o", out], check=True)
        return stub


class PlatformWheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>: the libraries depend on the platform, not on Python's version.

    On Linux, the platform is the oldest sufficient glibc (PEP 600), so that pip skips the wheel on systems
    where the libraries would not load.
    """

    def get_tag(self):
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
    """Write the schemas in the sources to a file, which dcnzoo/ops/_plain.py uses if nothing is compiled."""
    schemas = []
    for source in sorted((ROOT / "ops").rglob("*.cpp")):
        for literals in re.findall(r'\bm\.def\(\s*((?:"[^"]*"\s*)+)', source.read_text(encoding="utf-8")):
            schemas.append("".join(re.findall(r'"([^"]*)"', literals)) + "\n")
    try:
        (ROOT / "dcnzoo" / "ops" / "schemas.txt").write_text("".join(schemas), encoding="utf-8")
    except OSError as error:
        stop(f"{error.filename}: {error.strerror}.", "Build in a clone that belongs to you.")


with suppress(ImportError, OSError):  # Windows and some file systems have no locks
    import fcntl

    fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)  # until exit: builds share build/
write_schemas()
devices = ("cpu", "cuda")
if sys.platform not in ("linux", "darwin"):
    print(f"dcnzoo: nothing is compiled on {sys.platform}: using plain PyTorch", file=sys.stderr)
    devices = ()
extensions = [Extension(f"dcnzoo.ops._C_{device}", sources=[]) for device in devices]
commands = {"build_py": BuildPy, "build_ext": BuildOps, "bdist_wheel": PlatformWheel}
setup(ext_modules=extensions, cmdclass=commands)
