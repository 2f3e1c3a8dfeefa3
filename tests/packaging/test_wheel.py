"""Test a wheel in minimal environments: install, run, uninstall.

::

    nox -s packaging                      # with every installed Python from 3.10 to 3.13
    nox -s packaging -- 3.11 3.12:2.14.1  # with two, one with another torch

Each environment, in ``.nox/wheel``, contains torch and the wheel's requirements, nothing else (up to 5 GB:
pip's torch for Linux is a CUDA build). The test compares every operator with its reference, forward and
backward, runs ``pip check``, and verifies that ``pip uninstall`` leaves no files. Then it installs the wheel
with each extra alone, in another environment that sees this one's packages, and runs what the documentation
shows for that extra.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from test_matrix import PINNED, PIP, interpreter
from tested import ROOT, record

FOLDER = ROOT / ".nox" / "wheel"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TRY = """
import torch, dcnzoo
from tests.op_cases import operators
calls = 0
for operator in operators():
    for sample in operator.forms():
        sample = sample.leaves()
        results = [f(sample) for f in (operator.call, operator.reference)]
        torch.testing.assert_close(*results)
        gradients = [torch.autograd.grad(r.square().sum(), sample.given) for r in results]
        torch.testing.assert_close(*gradients)
        calls += 1
print(f"{calls} calls, {dcnzoo.ops.cpu_capability()}, torch {torch.__version__}")
"""

# extra -> code that needs no other extra; in this order, in one folder
EXTRAS = {
    "mmdet": 'from dcnzoo.cli import main; main("infer", "--demo")',
    "data": """
from pathlib import Path
from PIL import Image
from dcnzoo.cli import main
Path("images").mkdir(), Path("labels").mkdir()
Image.new("RGB", (64, 48)).save("images/a.png")
Path("labels/a.txt").write_text("0 0.5 0.5 0.25 0.5")
Path("data.yaml").write_text("train: images\\nnames: [apple]\\n")
import dcnzoo.utils.fetch  # data download
main("data", "convert", "yolo", ".", "train.json", "--split", "train")
""",
    "onnx": """
import onnxruntime, torch
from dcnzoo.export import export_onnx
from dcnzoo.layers import PackedDeformConv2d
layer = PackedDeformConv2d(4, 4, 3, padding=1, modulated=True).eval()
export_onnx(layer, (torch.randn(1, 4, 9, 9),), "layer.onnx", opset_version=19, deform_conv="gathernd")
onnxruntime.InferenceSession("layer.onnx")
""",
    "openvino": """
from pathlib import Path
from dcnzoo.export.openvino import make_core, save_ir
make_core().compile_model("layer.onnx", "CPU")
save_ir("layer.onnx", Path("layer.xml"))
""",
    "timm": """
import timm
import dcnzoo.compat.timm
timm.create_model("resnet18_dcnv2", num_classes=10)
""",
}


def files(folder: Path) -> set[str]:
    """List the files, except for the bytecode that Python writes on first import of other packages."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in paths if "dcnzoo" in path.parts or "__pycache__" not in path.parts}


def trial(wheel: Path, version: str, torch: str) -> str:
    """Test the wheel with this Python; return one line, for a failure the last line of output."""
    python = interpreter(version)
    if python is None:
        return f"skipped: Python {version} not found"
    start, folder = time.time(), FOLDER / f"{version}-torch{torch}"
    executable = folder / "bin" / "python"
    pip = [executable, *PIP]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}

    def run(*command: str | Path, cwd: Path | None = None) -> str:
        done = subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1])
        return done.stdout.strip()

    try:
        if not (folder / ".installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            run(python, "-m", "venv", folder)
            run(*pip, "install", f"torch=={torch}", "click>=8.1", "filelock>=3.12", "packaging")
            (folder / ".installed").touch()
        before = files(folder)
        run(*pip, "install", "--no-deps", wheel)
        with TemporaryDirectory() as elsewhere:
            tests = Path(elsewhere) / "tests"
            shutil.copytree(ROOT / "tests" / "op_cases", tests / "op_cases")
            tried = run(executable, "-c", TRY, cwd=Path(elsewhere))
            run(executable, "-m", "dcnzoo", "doctor", cwd=Path(elsewhere))
            run(*pip, "check")
            record("nox -s packaging", f"ok: {tried}", start, [executable], Path(elsewhere), environment)
        run(*pip, "uninstall", "-y", "dcnzoo")
        if left := sorted(files(folder) - before):
            return f"FAILED: files left after uninstall: {', '.join(left[:5])}"
        with TemporaryDirectory(dir=FOLDER) as elsewhere:  # timm brings torchvision, and that its own torch
            alone = Path(elsewhere) / "environment"
            for extra, code in EXTRAS.items():
                run(executable, "-m", "venv", "--clear", "--without-pip", alone)
                (site,) = alone.glob("lib/python*/site-packages")
                (site / "torch.pth").write_text(f"{folder / site.relative_to(alone)}\n")
                run(*pip, "--python", alone / "bin" / "python", "install", f"{wheel}[{extra}]")
                run(alone / "bin" / "python", "-c", code, cwd=Path(elsewhere))
        return f"ok: {tried}; {', '.join(EXTRAS)}"
    except RuntimeError as error:
        return f"FAILED: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("pythons", nargs="*", default=PYTHONS, metavar="PYTHON[:TORCH]")
    args = parser.parse_args()
    console, failed = Console(highlight=False, soft_wrap=True), False
    for pair in args.pythons:
        version, torch = [*pair.split(":"), PINNED][:2]
        with console.status(f"Python {version}, torch {torch}"):
            result = trial(args.wheel.resolve(), version, torch)
        console.print(f"Python {version}, torch {torch}: {result}", markup=False)
        failed |= result.startswith("FAILED")
    sys.exit(failed)


if __name__ == "__main__":
    main()
