"""dcnzoo on Windows, which windows/sitecustomize.py imitates in each process."""

import shlex

import pytest

from dcnzoo.cli.infer import DEMO_MODEL
from tests.helpers.formats import fruits, write_yolo
from tests.helpers.processes import ROOT, python

WINDOWS = {
    "PYTHONPATH": f"{ROOT / 'tests/windows'}:{ROOT}",
    "PYTHONWARNDEFAULTENCODING": "1",
    "PYTHONIOENCODING": "cp1252",
    "DCNZOO_TRACEBACK": "1",
}
IMPORTS = """
import importlib, pkgutil, dcnzoo
for module in pkgutil.walk_packages(dcnzoo.__path__, "dcnzoo."):
    if not module.name.endswith(("__main__", "_C_cpu", "_C_cuda13", "ultralytics")):
        importlib.import_module(module.name)
"""
LOCKS = """
from contextlib import ExitStack
from pathlib import Path
from dcnzoo.utils import lock
from dcnzoo.utils.errors import UserError, show
lock._ORPHANS_END, work = 0, Path("work")
work.mkdir()
(work / "epoch_1.pth").touch()
for target in ("work.1", "work.2"):
    with ExitStack() as locks, open("log.txt" if target == "work.1" else "work/log.txt", "w"):
        locks.enter_context(lock.lock_work_dir(work))
        try:
            lock.rename_locked(locks, work, Path(target))
        except UserError as error:
            print(error)
    work.mkdir(exist_ok=True)
with lock.lock_work_dir(work):
    show("→ 中")
"""
CODE = """
import dcnzoo
if __name__ == "__main__":
    dcnzoo.train(data="fruits", work_dir="trained", force=True, epochs=1, batch_size=4, device="cpu")
"""
LINES = [
    "infer --demo",
    "train --data fruits --work-dir trained --device cpu --epochs 1 --cfg-options "
    "val_dataloader.num_workers=0 val_dataloader.persistent_workers=False train_dataloader.num_workers=1",
    "train --data fruits --work-dir trained --force --device cpu --epochs 1",
    "test trained --data fruits",
    "reproduce trained",
    "report trained",
    "infer trained fruits/images --json",
    f"export {DEMO_MODEL} --out m.onnx",
    "infer m.onnx fruits/images --json",
]


def test_modules_locks_and_texts(tmp_path):
    """A folder is not renamed while another program has a file of it open."""
    lines = python("-c", IMPORTS + LOCKS, cwd=tmp_path, **WINDOWS).stdout.splitlines()
    assert lines[0].startswith("work_dir: ") and lines[1:] == [r"\u2192 \u4e2d"]
    assert (tmp_path / "work.1/epoch_1.pth").is_file() and not (tmp_path / "work.2").exists()


@pytest.mark.slow
def test_commands_and_a_training_from_python(tmp_path):
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn", "abcdefghij"))
    for line in LINES:
        python("-m", "dcnzoo", *shlex.split(line), cwd=tmp_path, **WINDOWS)
    (tmp_path / "own.py").write_text(CODE)
    python("own.py", cwd=tmp_path, **WINDOWS)
    assert (tmp_path / "trained.2/epoch_1.pth").is_file()
    # Linux has no library for Windows: all ran in plain PyTorch
    doctor = python("-m", "dcnzoo", "doctor", status=1, cwd=tmp_path, **WINDOWS)
    assert "_C_cpu.dll is not in" in doctor.stdout and "install a wheel" in doctor.stdout
