"""Run the smoke test (import and train) under other versions of Python and torch, with one compiled library.

::

    make test-matrix                        # every pair whose Python this machine has
    make test-matrix ARGS="3.13"            # one Python
    make test-matrix ARGS="3.12:2.14.1"     # a Python and a torch of your choice

Each pair has an environment in ``.venv-matrix``, created once (5 GB: pip's torch for Linux is a CUDA build).
Pythons are searched on the ``PATH`` and in pyenv's versions; missing ones are skipped and listed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-matrix"
# the oldest supported torch with the oldest Pythons; the pinned torch with the others
PAIRS = ("3.10:2.10.0", "3.11:2.10.0", "3.12:2.13.0", "3.13:2.13.0")
PINNED = "2.13.0"
SMOKE = "tests/environments/test_smoke.py"


def interpreter(version: str) -> str | None:
    """Return an executable of this version that runs; pyenv has shims for missing versions, too."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python{version}")]
    for candidate in filter(None, found):
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return str(candidate)
    return None


def requirements(torch: str) -> str:
    """Return the tested requirements with another torch, which then selects its triton."""
    files = ("requirements.txt", "requirements-export.txt", "requirements-dev.txt")
    text = "".join((ROOT / name).read_text() for name in files)
    text = re.sub(r"^-r .*\n", "", text, flags=re.MULTILINE)
    if torch != PINNED:
        text = re.sub(r"^triton==.*\n", "", text, flags=re.MULTILINE)
    return text.replace(f"torch=={PINNED}\n", f"torch=={torch}\n")


def environment(python: str, version: str, torch: str) -> Path:
    """Return the environment's interpreter; create it if it is missing or incomplete.

    Raises:
        subprocess.CalledProcessError: pip failed; with its output.
    """
    folder = FOLDER / f"{version}-torch{torch}"
    if not (folder / ".installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [folder / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        folder.mkdir(parents=True)
        pinned = folder / "requirements.txt"
        pinned.write_text(requirements(torch))
        for command in (
            [python, "-m", "venv", folder],
            [*pip, "-r", pinned],
            [*pip, "--no-deps", "-r", ROOT / "requirements-openmmlab.txt"],
        ):
            subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        (folder / ".installed").touch()
    return folder / "bin/python"


def smoke(python: Path) -> str:
    """Run the test; return ``ok`` with the number of tests, or the last line of pytest's output."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "environments", SMOKE]
    path = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | path, capture_output=True, text=True)
    last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    return f"ok: {last}" if done.returncode == 0 else f"FAILED: {last}"


def trial(version: str, torch: str) -> str:
    python = interpreter(version)
    if python is None:
        return f"skipped: Python {version} not found"
    try:
        return smoke(environment(python, version, torch))
    except subprocess.CalledProcessError as error:
        print(error.stdout, file=sys.stderr)
        return f"FAILED: {(error.stdout.strip() or 'no output').splitlines()[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="PYTHON[:TORCH]")
    args = parser.parse_args()
    pairs = [[*pair.split(":"), PINNED][:2] for pair in args.pairs]
    console = Console()
    table = Table("Python", "torch", "result")
    failed = False
    for number, (version, torch) in enumerate(pairs, 1):
        with console.status(f"{number} of {len(pairs)}: Python {version}, torch {torch}"):
            result = trial(version, torch)
        console.print(f"Python {version}, torch {torch}: {result}", highlight=False)
        table.add_row(version, torch, result)
        failed |= result.startswith("FAILED")
    console.print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
