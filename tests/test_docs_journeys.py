"""A new user's first steps: types the boxes of ``README.md`` and ``docs/first_steps.md`` into a shell.

Each page runs in order, in a copy of the sources. This file adds only what the page cannot contain: a tiny
data set, and settings that turn hours into seconds. The results of ``make setup`` (downloads, compiled
libraries) come from the environment that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "first_steps.md"
CLASSES = ("apple", "fig")
# packages that the exported model needs
WITHOUT_TORCH = ("numpy", "onnxruntime", "PIL", "pillow", "flatbuffers", "google", "protobuf", "packaging")
TINY = {
    # appended to the config that the page's `dcnzoo data config` writes
    "fruits.py": """
train_dataloader["num_workers"] = val_dataloader["num_workers"] = 0
train_dataloader["persistent_workers"] = val_dataloader["persistent_workers"] = False
train_cfg = dict(val_interval=24)
model["test_cfg"] = dict(rcnn=dict(score_thr=0.0))  # the scores stay low after 24 iterations
default_hooks = dict(checkpoint=dict(interval=24, save_optimizer=False))
""",
    # for make demo: `make ARGS=…`, from the environment
    "ARGS": " ".join(
        [
            "--cfg-options train_cfg.max_epochs=8 train_cfg.val_interval=8 train_dataloader.batch_size=4",
            *(f"{loader}_dataloader.dataset.shapes.{part}=4"
              for loader in ("train", "val", "test") for part in ("train", "val")),
            "default_hooks.logger.interval=1",
        ]
    ),
}  # fmt: skip

if not PAGE.exists():
    pytest.skip("needs the repository", allow_module_level=True)
pytest.importorskip("mmdet")

from .formats import fruits, write_voc  # noqa: E402


def steps(page: Path) -> list[tuple[str, str, str]]:
    """List heading, language and content of each box."""
    boxes, heading = [], ""
    pattern = r"^## (?P<heading>[^\n]*)$|^```(?P<language>\w+)\n(?P<content>.*?)^```$"
    for match in re.finditer(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if match["heading"]:
            heading = match["heading"]
        else:
            boxes.append((heading, match["language"], match["content"]))
    return boxes


def as_script(page: Path) -> str:
    """The page as a bash script. The first line of a Python box may name its file; configs are not run."""
    lines = ["set -eo pipefail"]
    for heading, language, content in steps(page):
        lines.append(f'echo "## {heading}"')
        name = re.match(r"# (\w+\.py)\n", content)
        if language == "bash":
            lines.append(content)
            if "dcnzoo data config" in content:
                lines.append(f"cat >> fruits.py <<'END'{TINY['fruits.py']}END")
        elif language == "python" and not content.startswith("_base_"):
            file = name[1] if name else "plain.py"
            lines.append(f"cat > {file} <<'END'\n{content}END")
            python = '"$WITHOUT_TORCH"' if file == "run.py" else "python"
            lines.append(f"{python} {file}")
    return "\n".join(lines)


def copy_sources(target: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("needs a clone of the repository")
    for name in {*filter(None, listed.stdout.split("\0"))}:
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    import dcnzoo.ops._library as library

    for path in library.loaded.values():
        shutil.copy2(path, target / "dcnzoo" / "ops")


def make_environment(folder: Path, *paths: str) -> Path:
    """A Python environment with only ``paths``."""
    venv.create(folder, with_pip=False, symlinks=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", variables))
    lines = [
        f"import sys, site; sys.path.insert(0, {paths[0]!r})",
        *(f"import site; site.addsitedir({p!r})" for p in paths[1:]),
    ]
    (packages / "paths.pth").write_text("\n".join(lines))
    return folder / "bin" / "python"


def set_up(clone: Path) -> None:
    """The state after ``make setup``, with the packages of the environment that runs the tests."""
    folder = clone / ".venv"
    python = make_environment(folder, str(clone), *site.getsitepackages())
    script = folder / "bin" / "dcnzoo"
    script.write_text(f"#!{python}\nfrom dcnzoo.cli import main\nmain()\n")
    script.chmod(0o755)
    for stamp in (".installed", ".built"):
        (folder / stamp).touch()


def make_clone(here: Path) -> Path:
    clone = here / "dcnzoo"
    copy_sources(clone)
    set_up(clone)
    return clone


def run_page(page: Path, clone: Path, functions: str = "", **variables: str) -> dict[str, str]:
    """Type the page into a new shell in the clone. Returns the output of each chapter."""
    others = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKEOVERRIDES")  # of this process
    kept = {name: value for name, value in os.environ.items() if name not in others}
    environment = {**kept, **variables, "OMP_NUM_THREADS": "1", "HOME": str(clone.parent), "COLUMNS": "120"}
    done = subprocess.run(
        ["bash"], input=functions + as_script(page),
        cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    chapters = re.split(r"^## (.*)\n", done.stdout, flags=re.MULTILINE)
    said: dict[str, str] = {}
    for heading, text in zip(chapters[1::2], chapters[2::2], strict=True):
        said[heading] = said.get(heading, "") + text
    return said


@pytest.mark.slow
def test_readme(tmp_path):
    clone = make_clone(tmp_path)
    # the targets exist; running them takes minutes
    make = 'make() { command make --dry-run "$@" > make.log; }\nsource .venv/bin/activate\n'
    said = run_page(README, clone, make)
    assert "no problems found" in said["Two commands"]
    assert "Detections(" in said[""], "the five lines of Python"
    assert (clone / "work_dirs/detections.png").stat().st_size
    assert (clone / "work_dirs/explain.html").stat().st_size


@pytest.mark.slow
def test_first_steps(tmp_path):
    if not all(map(shutil.which, ("bash", "make", "git"))):
        pytest.skip("needs bash, make and git")
    folder = make_clone(tmp_path)
    names = [f"{number:04}.jpg" for number in range(1, 7)]
    write_voc(folder / "data" / "fruits", fruits(tmp_path / "drawn", names, CLASSES))
    bare = tmp_path / "bare"
    bare.mkdir()
    for entry in (entry for packages in site.getsitepackages() for entry in Path(packages).iterdir()):
        if re.split(r"[.-]", entry.name)[0] in WITHOUT_TORCH:
            (bare / entry.name).symlink_to(entry)
    (bare / "dcnzoo").symlink_to(folder / "dcnzoo")
    without_torch = str(make_environment(tmp_path / "without_torch", str(bare)))
    pip = 'pip() { test "$*" = "install --group export"; }\n'  # installed already
    said = run_page(PAGE, folder, pip, ARGS=TINY["ARGS"], WITHOUT_TORCH=without_torch)
    assert "no problems found" in said["Installation"]
    assert "-m pip" not in said["Installation"], "make setup found everything done"

    output = said["Run the demo"]
    assert re.search(r"│ v2 +│", output) and "page: work_dirs/demo/index.html" in output
    assert "Sampling positions, v2" in (folder / "work_dirs/demo/index.html").read_text()
    assert (folder / "detections/00000.png").stat().st_size and (folder / "explain.html").stat().st_size
    assert json.loads((folder / "detections/detections.json").read_text())["categories"]
    assert said["Use a deformable layer in your network"] == "(2, 32, 32, 48)\n"

    train = json.loads((folder / "data/fruits/train.json").read_text())
    assert [c["name"] for c in train["categories"]] == list(CLASSES)
    assert len(train["images"]) == 4 and len(train["annotations"]) == 8
    assert train["annotations"][0]["bbox"][2:] == [24, 32]
    output = said["Train on your own data"]
    assert len(re.findall(r"coco/bbox_mAP: ", output)) == 2, "train's validation, and test"
    assert "report: work_dirs/fruits/report.html" in output
    report = (folder / "work_dirs/fruits/report.html").read_text()
    assert "backbone.layer4.0.conv2" in report and "apple" in report
    assert (folder / "work_dirs/infer/0001.png").stat().st_size
    assert "detections agree" in said["Export to ONNX"] and "torchvision" not in said["Export to ONNX"]
    assert (folder / "detections.png").stat().st_size
