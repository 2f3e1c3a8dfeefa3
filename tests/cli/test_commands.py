"""Command lines as a new user types them: each ends in its result, or in one line that says what to do."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dcnzoo import zoo
from dcnzoo.cli.infer import DEMO_MODEL
from dcnzoo.data.shapes import ShapesSpec, draw_image, make_shapes
from dcnzoo.openmmlab.checkpoints import load_file
from tests.helpers.commands import run
from tests.helpers.demo import DEFORMABLE, PLAIN
from tests.helpers.formats import fruits, write_voc, write_yolo

RIGHT = [  # a list: one after the other
    ("--version", r"\d\.\d"),
    ("--help", "infer"),
    ("doctor", "mmdet"),
    ("zoo list mdconv group4", "faster-rcnn_r50-mdconv-group4"),
    ("zoo list --measured --json", '"measured'),
    ("zoo info MODEL", "weights"),
    ("zoo download MODEL --out weights", r"weights/.*\.safetensors"),
    ("data download --list", "train2017"),
    ("data convert voc voc_coco", "4 pictures, 8 objects"),
    [
        ("data convert yolo yolo_coco", "4 pictures, 8 objects"),
        ("data convert yolo yolo_coco --force", "4 pictures, 8 objects"),
        ("data check yolo_coco/train.json --as-mmdetection", "no problems"),
    ],
    ("data check yolo", "(?s)8 objects.*no problems"),
    ("data check voc --zero-based", "8 objects"),
    ("data show voc --zero-based --out zero.html", r"sheet +zero\.html"),
    ("data show yolo", r"class +train  val\n +date +4    2\n(.|\n)*sheet +sheet\.html"),
    ("infer --demo --out demo", "written: demo/detections.json and 1 file"),
    [
        ("infer MODEL a.png", "written: work_dirs/infer/detections.json"),
        ("infer MODEL a.png", "written: work_dirs/infer_2/detections.json"),
    ],
    ("infer MODEL a.png --score-threshold 0.01 --json --out low", r"\(with \d+ second labels? of a box"),
    ("infer MODEL photos --json --out json --polygons", "written: json/detections.json$"),
    [
        ("infer MODEL 'photos/*.png' --out found --jpeg --batch-size 2", "3 files in found"),
        ("infer MODEL photos --out found --force", "3 files in found"),
    ],
    [
        ("infer MODEL photos --txt --out texts", "3 files in texts"),
        ("infer MODEL photos --txt --out texts --skip-existing", "all 3 images have their texts"),
    ],
    ("infer MODEL a.png --classes oval --max-detections 1 --tile 64 --out tiles", "written: tiles"),
    ("infer MODEL v.avi --save-video drawn.mp4 --out video", "drawn.mp4"),
    ("infer CONFIG a.png --checkpoint weights.pth --device cpu --out own", "written: own"),
    ("explain MODEL a.png", r"written: explain\.html"),
    ("explain MODEL a.png --at 30,40 --out points.html", r"written: points\.html"),
    ("flops MODEL --shape 96 128 --by-operator", "Params: "),
    ("bench MODEL a.png --max-iter 1 --num-warmup 0", "PyTorch bf16 .*%"),
    ("test CONFIG weights.pth --data shapes --work-dir tested --eval bbox", "box AP"),
    ("test CONFIG --data shapes --work-dir tested --eval bbox weights.pth", "box AP"),
    ("train own.py --dry-run --work-dir dry", "dry run"),
    ("train --data yolo --work-dir tiny --epochs 1 --dry-run", "config"),
    ("run program.py 3", "program 3"),
    [
        (  # the path of the start weights is normalised
            "train --data yolo --work-dir trained --epochs 1 --device cpu --batch-size 2",
            r"^weights +/((?!/\.\./).)*safetensors$(.|\n)*report",
        ),
        ("report trained --num-images 1 --evaluate 2", r"report: trained/report_2\.html"),
        ("infer trained a.png --out trained_found", "written: trained_found"),
    ],
]
USAGE = [  # exit status 2, below the usage
    ("infre a.png", "did you mean 'infer'"),
    ("infer", "MODEL"),
    ("infer MODEL a.png --score-treshold 0.5", "--score-treshold"),
    ("infer MODEL a.png --jpeg --json", "--format"),
    ("infer MODEL photos --skip-existing --txt --out texts --json", "--json: not allowed"),
    ("infer MODEL a.png --out ''", "--out"),
    ("train", "MODEL"),
    ("train CONFIG --cfg-options 'x=[(1,2]'", "--cfg-options': x: "),
    ("train --resume CONFIG", r"--resume .*mask-rcnn.*\.py"),
    ("test CONFIG weights.pth --out x.txt", r"\.pkl"),
    ("explain MODEL a.png --at 3,x", "2 numbers .* 3,x"),
    ("export MODEL --opset-version 17", "--opset-version.* 17"),
    ("export MODEL --num-images 3 --out new.onnx", "--num-images: allowed only with --int8"),
    ("export x.onnx --out new.onnx", "MODEL: expected a model of PyTorch"),
    ("bench CONFIG a.png --backend openvino", "--backend: allowed only with an exported file"),
    ("test CONFIG weights.pth --eval segmm", "--eval.*segmm"),
    ("export MODEL --out model.pth", r"--out.*\.onnx.* got model\.pth"),
    ("bench CONFIG a.png --shape 64 64", "--shape: not allowed with IMAGE"),
    ("data download --dataset-name voc", "--dataset-name"),
    ("flops x.onnx", r"MODEL: expected a model of PyTorch, got .*x\.onnx"),
    ("reproduce MODEL --out all.json", r"--out.*\.jsonl"),
    ("data check x.json --as-mmdetection --clip", "--clip: not allowed with --as-mmdetection"),
]
WRONG = [  # exit status 1, in one line
    ("infer mask-rcnn_r14-mdconv_fpn_8e_shape a.png", "closest names: mask-rcnn_r14-mdconv_fpn_8e_shapes"),
    ("infer MODEL none.png", "none.png"),
    ("infer a.png MODEL", r"MODEL: expected a name in the zoo, .* got a\.png"),
    ("infer MODEL v.mp4", "IMAGE: .* v.mp4"),
    ("infer MODEL a.png --out written", "--force"),
    ("infer MODEL photos --txt --out written", "--force"),
    ("infer MODEL photos --out photos --force", "input"),
    ("infer MODEL a.png --device cuda:99", "--device: .* cuda:99"),
    ("infer CONFIG a.png", f"checkpoint: .*{DEFORMABLE}"),
    ("infer MODEL a.png --checkpoint text.png --out x", "expected a checkpoint, got a picture"),
    ("infer MODEL http://127.0.0.1:9/a.png --out net", "Connection refused"),
    ("test CONFIG x.onnx --tta", "--tta"),
    ("test CONFIG weights.pth --out all.json --format-only", "--force"),
    ("infer MODEL a.png --out /proc/dcnzoo", "cannot be written"),
    ("train photos", "--data photos"),
    ("train --data photos", "expected YOLO's data.yaml"),
    ("train CONFIG --resume none.pth", "none.pth"),
    ("train CONFIG --clip", "--clip: .*--data"),
    ("train used --data yolo", "used"),
    ("train CONFIG --work-dir used", "--force"),
    ("train CONFIG --work-dir a.png", "--work-dir: .*a.png"),
    ("explain MODEL a.png --layer neck --out layers.html", r"--layer: .*backbone\.layer2"),
    ("explain MODEL a.png --at 500,3 --out at.html", "--at: .* got 500,3$"),
    ("export MODEL --out model.onnx", "--force"),
    ("export MODEL --test-img none.png --out new.onnx", "--test-img: .*none.png"),
    ("explain MODEL a.png --box 30,30,10,10 --out box.html", "--box: .*upper left .* got 30,30,10,10$"),
    ("report photos", "^error: WORK_DIR: .*--data photos"),
    ("data check none.json", "none.json"),
    ("data check via", "such as via/regions.json"),
    ("data convert photos out", "expected YOLO's data.yaml"),
    ("data convert via out", "such as via/regions.json"),
    ("data convert photos yolo_written", "--force"),
    ("data convert yol out", "found none at yol"),
    ("train --data yol", "--data: .*found none at yol"),
    ("test CONFIG weights.pth --data yol", "--data: .*found none at yol"),
    ("zoo list no 'such words'", "no such words: "),
    ("run nowhere.py", "SCRIPT: .* nowhere.py"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    for name in ("photos", "used", "via", "written", "yolo_written"):
        (folder / name).mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"photos/{number}.png"), draw_image(ShapesSpec(), "val", number)[0])
    cv2.imwrite(str(folder / "a.png"), draw_image(ShapesSpec(), "val", 3)[0])
    writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 128))
    for _ in range(2):
        writer.write(np.zeros((128, 128, 3), np.uint8))
    writer.release()
    write_yolo(folder / "yolo", fruits(folder / "drawn_yolo"))
    write_voc(folder / "voc", fruits(folder / "drawn_voc"))
    make_shapes(folder / "shapes", ShapesSpec(train=1, val=2))
    own = f"""_base_ = {DEFORMABLE!r}
train_dataloader = dict(dataset=dict(data_root="shapes/", shapes=None))
val_dataloader = dict(dataset=dict(data_root="shapes/", shapes=None))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="shapes/annotations/val.json")
test_evaluator = val_evaluator
"""
    (folder / "own.py").write_text(own)
    weights = load_file(zoo.find(DEMO_MODEL).weights[0])["state_dict"]
    torch.save({"state_dict": weights, "meta": {}}, folder / "weights.pth")
    for name in (
        "text.png",
        "page.html",
        "model.onnx",
        "all.json",
        "all.bbox.json",
        "written/0.txt",
        "written/detections.json",
        "yolo_written/val.json",
    ):
        (folder / name).write_text("of the user")
    for name in ("x.onnx", "used/epoch_1.pth"):
        (folder / name).touch()
    (folder / "used/own.py").write_text(f"_base_ = {PLAIN!r}")
    (folder / "via/0.png").symlink_to(folder / "photos/0.png")
    (folder / "via/regions.json").write_text("{}")
    (folder / "program.py").write_text("import sys\nprint('program', sys.argv[1])\n")
    return folder


def words_of(line):
    names = {"MODEL": DEMO_MODEL, "CONFIG": DEFORMABLE}
    return [names.get(word, word) for word in shlex.split(line)]


LINES = [lines if isinstance(lines, list) else [lines] for lines in RIGHT]


@pytest.mark.parametrize("lines", LINES, ids=[lines[0][0].replace("/", ":") for lines in LINES])
def test_results(files, monkeypatch, lines):
    monkeypatch.chdir(files)
    for line, expected in lines:
        assert re.search(expected, run(*words_of(line)), re.MULTILINE)
    assert not [*files.rglob("*.partial*")]


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not path.name.startswith(".")}


@pytest.mark.parametrize(
    ("status", "line", "expected"), [*((2, *row) for row in USAGE), *((1, *row) for row in WRONG)]
)
def test_mistakes_end_in_one_line(files, monkeypatch, status, line, expected):
    """The line names the argument, and the command writes nothing."""
    monkeypatch.chdir(files)
    before = contents(files)
    *usage, error = run(*words_of(line), status=status).splitlines()
    assert error.lower().startswith("error: ") and re.search(expected, error), (usage, error)
    assert bool(usage) == (status == 2) and "Traceback" not in " ".join(usage)
    after = contents(files)
    assert {path: time for path, time in after.items() if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }


def test_a_converted_set_has_no_split_of_an_earlier_one(files, monkeypatch):
    monkeypatch.chdir(files)
    Path("again").mkdir()
    Path("again/test.json").write_text("of another set")
    assert "--force" in run("data", "convert", "yolo", "again", status=1)
    assert Path("again/test.json").exists()
    assert "again/test.json" in run("data", "convert", "yolo", "again", "--force")
    assert sorted(path.name for path in Path("again").iterdir()) == ["train.json", "val.json"]


def test_a_converted_file_is_not_removed(files, monkeypatch):
    """A single test.json has no train or val beside it: all of it is divided."""
    monkeypatch.chdir(files)
    run("data", "convert", "yolo", "made")
    Path("one").mkdir()
    Path("made/train.json").rename("one/test.json")
    before = Path("one/test.json").read_bytes()
    run("data", "convert", "one/test.json", "one", "--force")
    assert Path("one/test.json").read_bytes() == before
