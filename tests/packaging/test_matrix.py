"""Run the smoke test (import and train) with one wheel, under other versions of Python and torch.

::

    nox -s matrix                       # every pair whose Python this machine has
    nox -s matrix -- 3.13               # one Python
    nox -s matrix -- 3.12:2.14.1        # a Python and a torch of your choice

Each pair has an environment in ``.nox/matrix``, created once (5 GB: pip's torch for Linux is a CUDA build).
Pythons are searched on the ``PATH`` and in pyenv's versions; missing ones are skipped and listed.
``tested.py`` stores the results.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tested import ROOT, record

FOLDER = ROOT / ".nox" / "matrix"
# from the oldest supported torch to the newest
PAIRS = ("3.10:2.10.0", "3.11:2.11.0", "3.12:2.13.0", "3.13:2.15.0", "3.14:2.15.0")
PINNED = "2.13.0"
COPIED = ("configs", "tests", "tools", "pyproject.toml")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
SMOKE = "tests/environments/test_smoke.py"


def interpreter(version: str) -> str | None:
    """Return an executable of this version that runs; pyenv has shims for missing versions, too."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python{version}")]
    for candidate in filter(None, found):
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return str(candidate)
    return None


def copy_to(folder: Path, names: Sequence[str]) -> None:
    """Copy files and folders of the repository."""
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)


def environment(python: str, version: str, torch: str) -> Path:
    """Return the environment's interpreter; create it if it is missing or incomplete.

    Raises:
        subprocess.CalledProcessError: pip failed; with its output.
    """
    folder = FOLDER / f"{version}-torch{torch}"
    if not (folder / ".installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [folder / "bin/python", *PIP, "install", "--no-compile"]
        for command in (
            [python, "-m", "venv", folder],
            [*pip, "pip>=25.1"],  # --group
            [*pip, f"torch=={torch}", "--group", "packages", "--group", "test"],
            [*pip, "--no-deps", "--group", "openmmlab"],
        ):
            subprocess.run(
                command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        (folder / ".installed").touch()
    return folder / "bin/python"


def smoke(wheel: Path, python: Path) -> str:
    """Install the wheel and run the test; return ``ok`` or ``FAILED`` and the last line of output."""
    start = time.time()
    pip = [python, *PIP, "install", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, wheel], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with TemporaryDirectory() as folder:
        copy_to(Path(folder), COPIED)
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", SMOKE]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
        result = f"ok: {last}" if done.returncode == 0 else f"FAILED: {last}"
        record("nox -s matrix", result, start, [python], Path(folder), variables)
    return result


def trial(wheel: Path, version: str, torch: str) -> str:
    python = interpreter(version)
    if python is None:
        return f"skipped: Python {version} not found"
    try:
        return smoke(wheel, environment(python, version, torch))
    except subprocess.CalledProcessError as error:
        print(error.stdout, file=sys.stderr)
        return f"FAILED: {(error.stdout.strip() or 'no output').splitlines()[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="PYTHON[:TORCH]")
    args = parser.parse_args()
    pairs = [[*pair.split(":"), PINNED][:2] for pair in args.pairs]
    failed = False
    for version, torch in pairs:
        result = trial(args.wheel.resolve(), version, torch)
        print(f"Python {version}, torch {torch}: {result}", flush=True)
        failed |= result.startswith("FAILED")
    sys.exit(failed)


if __name__ == "__main__":
    main()
