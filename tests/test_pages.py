"""Every block of README and of the guides is run, in the order of its page: ``nox -s pages``.

A page marks the others in the line before: ``<!-- not run: REASON -->``, or ``<!-- run by SESSION -->``, a
session of nox that reads the block from the page. The commands run in this process, in a folder with
pictures, annotations and a trained detector. Changed are:

- names: CONFIG, CHECKPOINT, IMAGE, and models whose weights must be downloaded, are small ones
- a training has one epoch; pictures have 128 pixels
- lines that only install or download are left out, and what they fetch is there
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
from mmengine.config import Config, DictAction

import dcnzoo
from dcnzoo import zoo
from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.openmmlab.checkpoints import load_file
from dcnzoo.openmmlab.config.read import read_config_file

from .commands import invoke, run
from .demo import DEFORMABLE
from .distributed.launching import settings
from .formats import fruits, write_voc
from .processes import ROOT

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES += [f"docs/ops/{path.name}" for path in sorted((ROOT / "docs/ops").glob("*.md"))]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("configs/*/README.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (not run: .+?|run by .+?) -->\n)?```(bash|python|ipython)\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
DEMO = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
SMALL = "faster-rcnn_r14-mdconv_fpn_24e_coco"  # of boxes
OMITTED = ("pip install", "dcnzoo data download", "dcnzoo zoo download")
NAMES = {
    r"configs/(?!demo/)\S+\.py|\bCONFIG\b": "tiny.py",
    r"\b(?:CHECKPOINT|FILE)\b|\S+/epoch_\d+\.pth": "tiny.pth",
    r"work_dirs/(?:NAME|mask-rcnn|off|v2|demo/v2-seed0)(?=[ /])": "work_dirs/fruits",
    r"work_dirs/fruits/config\.py": "tiny.py",
    r"(?<=infer |train )[\w-]+(?:_coco|_fruits-nuts)\b": DEMO,
    rf"(?<= )(?!{SMALL})[\w-]+_(?:coco|fruits-nuts)(?= |$)": DEMO,
    r"\bNAME\b": DEMO,
    r"\b(?:IMAGE|PICTURE)\b|street\.jpg|image\.jpg|data/demo/val/\S+": "picture.jpg",
    r"\bFOLDER\b": "fruits",
    r"--shape \d+ \d+": "--shape 96 128",
    r"(?<=dist_train.sh )(\S+) \d+": r"\1 1",
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
    "docs/ops/deform_attn.md": {
        **LEVELS,
        **rand(**DCNV3, offset_mask=(1, 5, 6, 112)),
        **rand(value=(1, 26, 2, 3), **LOCATIONS, sampling_loc_attn=(1, 7, 2, 24)),
    },
    "docs/ops/boxes.md": {
        **ROIS,
        **rand(offset=(1, 2, 7, 7), boxes=(5, 4), scores=(5,)),
    },
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """What a user of the pages has: pictures, a detector that was trained on them, a config, weights."""
    folder = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        parts = fruits(folder / "drawn")
        (folder / "photos").mkdir()
        for name in ("picture.jpg", "photos/1.jpg", "photos/2.jpg", "data/fruits_nuts/images/5.jpg"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "drawn/a.jpg", folder / name)
        write_voc(folder / "fruits", parts)
        shutil.copytree(folder / "fruits/JPEGImages", folder / "images")
        run("data", "convert", "fruits", "coco")
        for split in ("train", "val"):
            shutil.copy(folder / f"coco/{split}.json", folder)
        write_voc(folder / "data/fruits_nuts", parts)
        lines = [line.partition("=")[::2] for line in settings(folder / "shapes", 8, 4)[1:]]
        cfg = Config.fromfile(DEFORMABLE)
        cfg.merge_from_dict({name: DictAction._parse_iterable(value) for name, value in lines})
        cfg.dump(folder / "tiny.py")
        (folder / "main.py").write_text("import torch")
        weights = load_file(zoo.find(DEMO).weights[0])["state_dict"]
        torch.save({"state_dict": weights, "meta": {}}, folder / "tiny.pth")
        start = ("--cfg-options", "load_from=tiny.pth", "optim_wrapper.optimizer.lr=1e-4")
        run("train", "tiny.py", "--work-dir", "work_dirs/fruits", "--epochs", 1, *start)
        for name in ("data/fruits.py", "work_dirs/fruits/data/fruits.py"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "tiny.py", folder / name)
    return folder


def run_line(line: str) -> None:
    """Run a command of a page; those of dcnzoo in this process."""
    if line.startswith(OMITTED):
        return
    for pattern, name in NAMES.items():
        line = re.sub(pattern, name, line)
    line = line.replace("python tools/train.py", "dcnzoo train").replace(
        "python tools/test.py", "dcnzoo test"
    )
    words = shlex.split(line, comments=True)
    if words[:2] in (["dcnzoo", "export"], ["dcnzoo", "data"]) and "check" not in words:
        words.append("--force")  # blocks of a page write to the same files
    if words[:2] == ["dcnzoo", "train"]:
        words = [SMALL if "--data" in words and word == DEMO else word for word in words]
        if not {"--epochs", "--dry-run"} & set(words):
            words += ["--epochs", "1"]
        folder = Path(words[words.index("--work-dir") + 1] if "--work-dir" in words else "work_dirs/tiny")
        if folder.is_dir() and "--resume" not in words:
            shutil.rmtree(folder)
    if words[:1] == ["dcnzoo"] and not {"|", ">", "&&"} & set(words):
        status, output = invoke(*words[1:])
        fine = status == 0 or (status == 1 and words[1] == "doctor")
        assert fine, f"{line}\n{output[-3000:]}"
        return
    done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


def run_block(block: Block, variables: dict) -> None:
    if block.language == "bash":
        for line in block.code.replace("\\\n", " ").splitlines():
            if line and not line.startswith("#"):
                run_line(line)
    elif re.match(r"_base_ = ", block.code):
        # a config that inherits from one beside it is one of the demo's
        Path("page.py").write_text(block.code.replace("'./", f"'{ROOT}/configs/demo/"))
        read_config_file(Path("page.py"))
    else:
        code = block.code
        for name in re.findall(r"\w+-[\w-]+_coco\b", code):
            code = code.replace(name, DEMO)
        code = re.sub("street.jpg|image.jpg", "picture.jpg", code)
        code = re.sub("configs/mine.py", "tiny.py", code).replace("mine.pth", "tiny.pth")
        exec(compile(code, "page", "exec"), variables)


def parameters():
    for page in PAGES:
        ran = [block for block in blocks(page) if not block.mark]
        if ran:
            quick = all(block.language == "python" for block in ran) and "load(" not in str(ran)
            yield pytest.param(page, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize("page", parameters())
def test_blocks_run(page, tmp_path, monkeypatch, request):
    # inductor takes a minute; ops/test_ops.py tests it
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(dcnzoo, "train", functools.partial(dcnzoo.train, epochs=1))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    for package in ("mmdet", "onnxscript", "onnxruntime", "openvino") if "deploy" in page else ():
        pytest.importorskip(package)
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
