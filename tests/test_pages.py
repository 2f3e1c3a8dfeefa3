"""Every block of README and of the guides is run, in the order of its page: ``nox -s pages``.

A comment before a block exempts it: ``<!-- not run: REASON -->``, or ``<!-- run by SESSION -->`` if a session
of nox reads the block from the page. The blocks run in this process, in a folder that has the files which the
pages name: pictures, annotations, a trained detector. The test makes these changes:

- :data:`WORDS` replaces words in capitals, and models whose weights must be downloaded
- a training has one epoch and one process
- lines that only install or download are left out
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config

import dcnzoo
from dcnzoo import zoo
from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.openmmlab.checkpoints import load_file
from dcnzoo.openmmlab.config.read import read_config_file
from tests.helpers.commands import invoke, run
from tests.helpers.demo import DEFORMABLE, PLAIN, small_settings
from tests.helpers.formats import fruits, write_voc
from tests.helpers.processes import ROOT

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
for folder in ("docs/ops", "docs/runtimes"):
    PAGES += [f"{folder}/{path.name}" for path in sorted((ROOT / folder).glob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (not run: .+?|run by .+?) -->\n)?```(bash|python|ipython)\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
DEMO = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
SMALL = "faster-rcnn_r14-mdconv_fpn_10e_shapes-320"  # of boxes
OMITTED = ("pip install", "dcnzoo data download")
LARGE = (
    "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts",
)
WORDS = {  # of a page -> in the folder of the test
    **dict.fromkeys((*LARGE, "NAME"), DEMO),
    **dict.fromkeys(("CHECKPOINT", "FILE"), "tiny.pth"),
    **dict.fromkeys(("IMAGE", "PICTURE", "data/demo/val/00000.png"), "picture.jpg"),
    **{"CONFIG": "tiny.py", "FOLDER": "fruits", "8": "1"},  # 8 processes
}


class Block(NamedTuple):
    mark: str
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    return [Block(*groups) for groups in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))]


def rand(**sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.rand(size) for name, size in sizes.items()}


CONV = {"input": (1, 4, 5, 6), "offset": (1, 18, 5, 6), "mask": (1, 9, 5, 6), "bias": (2,)}
ROIS = {"maps": torch.rand(1, 3, 8, 9), "rois": torch.tensor([[0.0, 1, 2, 90, 80]])}
LEVELS = {"spatial_shapes": torch.tensor([[4, 5], [2, 3]]), "level_start_index": torch.tensor([0, 20])}
LOCATIONS = {"sampling_locations": (1, 7, 2, 2, 4, 2), "attention_weights": (1, 7, 2, 2, 4)}
DCNV3 = {"input": (1, 5, 6, 64), "offset": (1, 5, 6, 72), "mask": (1, 5, 6, 36)}
# variables that a page assumes
ASSUMED = {
    "docs/infer.md": {
        "network": torch.nn.Sequential(PackedDeformConv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3)),
        "images": torch.rand(2, 3, 64, 96),
        "Path": Path,
    },
    "docs/ops/deform_conv.md": rand(**CONV, weight=(2, 4, 3, 3), transposed_weight=(4, 2, 3, 3)),
    "docs/ops/deform_attn.md": LEVELS
    | rand(**DCNV3, offset_mask=(1, 5, 6, 112))
    | rand(value=(1, 26, 2, 3), **LOCATIONS, sampling_loc_attn=(1, 7, 2, 24)),
    "docs/ops/boxes.md": ROIS | rand(offset=(1, 2, 7, 7), boxes=(5, 4), scores=(5,)),
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Create a user's files: pictures, a detector that was trained on them, a config, weights."""
    folder = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        parts = fruits(folder / "drawn")
        pictures = ("picture.jpg", "street.jpg", "image.jpg", "photos/1.jpg", "photos/2.jpg")
        for name in (*pictures, "data/fruits_nuts/images/5.jpg"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "drawn/a.jpg", folder / name)
        write_voc(folder / "fruits", parts)
        shutil.copytree(folder / "fruits/JPEGImages", folder / "images")
        run("data", "convert", "fruits", "coco")
        for split in ("train", "val"):
            shutil.copy(folder / f"coco/{split}.json", folder)
        write_voc(folder / "data/fruits_nuts", parts)
        for name, base in (("tiny.py", DEFORMABLE), (Path(PLAIN).name, PLAIN)):
            # the threshold of the demo: the order of scores near 0 differs between PyTorch and a file
            settings = small_settings(
                folder / "shapes", train=8, val=4, model__test_cfg__rcnn__score_thr=0.05
            )
            cfg = Config.fromfile(base)
            cfg.merge_from_dict(settings)
            cfg.dump(folder / name)
        (folder / "main.py").write_text("import torch")
        weights = load_file(zoo.find(DEMO).weights[0])["state_dict"]
        torch.save({"state_dict": weights, "meta": {}}, folder / "tiny.pth")
        start = ("--cfg-options", "load_from=tiny.pth", "optim_wrapper.optimizer.lr=1e-4")
        run("train", "tiny.py", "--work-dir", "work_dirs/fruits", *start)
        for name in ("NAME", "mask-rcnn", "off", "v2", "demo/v2-seed0"):
            shutil.copytree("work_dirs/fruits", f"work_dirs/{name}")
        shutil.copy("work_dirs/fruits/epoch_1.pth", "work_dirs/demo/v2-seed0/epoch_8.pth")
        configs = (
            "mine.py",
            "data/fruits.py",
            "work_dirs/fruits/data/fruits.py",
            "work_dirs/demo/v2-seed0/config.py",
        )
        for name in configs:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy("tiny.py", name)
        shutil.copy("tiny.pth", "mine.pth")
    return folder


def run_line(line: str) -> None:
    """Run a command of a page; commands of dcnzoo run in this process."""
    words = [WORDS.get(word, word) for word in shlex.split(line, comments=True)]
    if not words or line.startswith(OMITTED):
        return
    if words[0] != "dcnzoo":
        done = subprocess.run(["bash", "-ec", shlex.join(words)], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return
    if words[1] == "train":
        words = prepare_training(words)
    if words[1] == "export" or words[1:3] == ["data", "convert"]:
        words.append("--force")  # blocks of a page write to the same files
    status, output = invoke(*words[1:])
    assert status == 0 or (status == 1 and words[1] == "doctor"), f"{line}\n{output[-3000:]}"


def prepare_training(words: list[str]) -> list[str]:
    """Delete the results of an earlier block; train for one epoch and, with --data, a small box model."""
    if "--data" in words:
        words = [SMALL if word == DEMO else word for word in words]
    if "--resume" not in words:
        folder = words[words.index("--work-dir") + 1] if "--work-dir" in words else "work_dirs/tiny"
        shutil.rmtree(folder, ignore_errors=True)
    return words if "--dry-run" in words else [*words, "--epochs", "1"]


def run_block(block: Block, variables: dict) -> None:
    if block.language == "bash":
        for line in block.code.replace("\\\n", " ").splitlines():
            run_line(line)
    elif block.code.startswith("_base_ = "):
        Path("page.py").write_text(block.code)
        read_config_file(Path("page.py"))
    else:
        code = re.sub("|".join(LARGE), DEMO, block.code)
        exec(compile(code, "page", "exec"), variables)


def parameters():
    for page in PAGES:
        ran = [block for block in blocks(page) if not block.mark]
        if ran:
            quick = all(block.language == "python" for block in ran) and "load(" not in str(ran)
            yield pytest.param(page, marks=[] if quick else [pytest.mark.slow])


REMEDIES = [block.code for block in blocks("docs/troubleshooting.md") if block.language == "python"]


@pytest.mark.parametrize("code", REMEDIES)
def test_remedies_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "page", "exec"), {})


@pytest.mark.parametrize("page", parameters())
def test_blocks_run(page, tmp_path, monkeypatch, request):
    # inductor takes a minute; ops/test_ops.py tests it
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(dcnzoo, "train", functools.partial(dcnzoo.train, epochs=1))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    if request.node.get_closest_marker("slow"):
        shutil.copytree(request.getfixturevalue("stage"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for name in ("configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    variables = dict(ASSUMED.get(page, {}))
    missing = []
    for block in blocks(page):
        try:
            if not block.mark:
                run_block(block, variables)
        except ModuleNotFoundError as error:
            missing.append(str(error.name))
    if missing:
        pytest.skip(f"the other blocks run; not installed: {', '.join(missing)}")
