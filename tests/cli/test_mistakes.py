"""A mistake on the command line ends in one line, which names it, and writes nothing."""

import re
import shlex

import cv2
import numpy as np
import pytest
import torch

from dcnzoo import zoo
from dcnzoo.cli.infer import DEMO_MODEL
from dcnzoo.openmmlab.checkpoints import load_file

from ..commands import run
from ..demo import DEFORMABLE, PLAIN

PIPELINE = "test_dataloader.dataset.pipeline"
OPTIONS = [  # refused when the line is read
    ("test CONFIG weights.pth --out x.txt", r"\.pkl"),
    ("train CONFIG --cfg-options x", "got x"),
    ("train --resume CONFIG", r"--resume .*mask-rcnn.*\.py"),
    ("train CONFIG --cfg-options 'x=[(1,2]'", "--cfg-options': x: "),
    ("train CONFIG --cfg-options 'a.b=dict(c=1,d=2)'", "a.b: expected an option for each setting of a dict"),
    ("""train CONFIG --cfg-options "a=[{'b': 1}]" """, "such as a.name=1, got"),
    ("train CONFIG --cfg-options 'a=f(1,2)'", r"a: expected a value or a list, got f\(1,2\)"),
    ("browse CONFIG --num-images 0", "--num-images"),
    ("infer", "MODEL"),
    ("infer MODEL a.png --score-threshold 2", "--score-threshold"),
    ("infer MODEL a.png --jpeg --json", "--jpeg"),
    ("explain MODEL a.png --at 3", "2 numbers .* 3"),
    ("explain MODEL a.png --at 3,x", "2 numbers .* 3,x"),
    ("explain MODEL a.png --at 3,4 --box 1,2,3,4", "--at: .*--box"),
    ("explain MODEL a.png --out x.pdf", "x.pdf"),
    ("explain x.onnx a.png", "x.onnx"),
    ("export MODEL --opset-version 17", "--opset-version.* 17"),
    ("export MODEL --out model.pth", r"--out.*\.onnx.* got model\.pth"),
    ("export MODEL --shape 0 2", "--shape"),
    ("export MODEL --int8 images --fp16", "--fp16: .*--int8"),
    ("flops CONFIG --shape -1 5", "--shape"),
    ("flops CONFIG --num-images 0", "--num-images"),
    ("bench CONFIG --max-iter 0", "--max-iter"),
    ("bench CONFIG --images .", "--annotations"),
    ("bench CONFIG image.png --shape 64 64", "--shape: .*IMAGE"),
    ("reproduce MODEL --subset 0", "--subset"),
    ("report nowhere", "nowhere"),
    ("report . --num-images -1", "--num-images"),
    ("report . --labels a --labels b", "--labels"),
    ("report . . --checkpoint text.png", "--checkpoint"),
    ("data download --dataset-name voc", "--dataset-name"),
    ("data download --parts val2014", "--parts"),
    ("data download --delete", "--delete"),
    ("data download --unzip --dataset-name bccd", "--unzip"),
]
CONTENT = [
    ("train CONFIG --cfg-options optim_wrapper.optimizer.lr=inf", "lr: expected a number .*got inf"),
    ("train CONFIG --auto-scale-lr --cfg-options auto_scale_lr.base_batch_size=0", "base_batch_size"),
    ("train CONFIG --auto-scale-lr --cfg-options auto_scale_lr.base_batch_size=1.5", "got 1.5"),
    ("train CONFIG --auto-scale-lr --cfg-options auto_scale_lr=None", "got None"),
    ("train CONFIG --device cuda:7", "--device: expected auto, cpu"),
    ("train CONFIG --device cpu --launcher pytorch", "--device: .* --launcher pytorch, got cpu"),
    ("test CONFIG no.pth", "no.pth"),
    ("test CONFIG weights.pth --format-only --out x.pkl", "--format-only"),
    ("test CONFIG x.onnx --tta", "--tta"),
    ("infer MODEL 'no.*'", "image: .* no"),
    ("infer MODEL text.png", "image: .* text.png"),
    ("infer CONFIG a.png", f"checkpoint: .*{DEFORMABLE}"),
    ("infer MODEL a.png --checkpoint text.png", "checkpoint: .* text.png"),
    ("infer MODEL a.png --device cuda:99", "^error: --device: .* cuda:99"),
    ("infer MODEL line.png", "line.png: .*4000 × 1"),
    ("run nowhere.py", "SCRIPT: .* nowhere.py"),
    ("infer MODEL a.png --classes ,", "--classes.*expected names, got none"),
    ("explain MODEL a.png --at 150,3", "--at: expected x < 150 and y < 96, got 150,3"),
    ("explain MODEL a.png --box 9,3,8,4", "got 9,3,8,4"),
    ("explain MODEL a.png --layer neck", r"backbone\.layer2\.0\.conv2"),
    ("export MODEL --out model.pt2 --simplify", r"--simplify: .*model\.pt2"),
    ("export MODEL --fp16 --verify", "--verify: .*float32"),
    ("export MODEL --int8 nowhere", "--int8: .*nowhere"),
    ("export MODEL --opset-version 18 --deform-conv native", "19 for --deform-conv native, got 18"),
    ("export MODEL --verify --test-img nowhere.jpg", "--verify: .*nowhere.jpg"),
    ("export MODEL --skip-postprocess", "--skip-postprocess: .*MaskRCNN"),
    ("export MODEL --cfg-options model.backbone.base_channels=24", r": .*found \d+ .*\(backbone\."),
    (f"export MODEL --verify --cfg-options {PIPELINE}.1.interpolation=bicubic", "--verify: .*bicubic"),
    (
        """export CONFIG weights.pth --cfg-options "test_dataloader.dataset.metainfo.classes=('a','b')" """,
        "classes: .*3 classes, got 2",
    ),
    ("export --check text.png", "an exported file, got a picture, text.png"),
    ("export --check nowhere.onnx", "nowhere.onnx"),
    ("bench CONFIG nowhere.png", "nowhere.png"),
    ("report .", "config"),
    ("report work --checkpoint x.pth", "x.pth"),
    ("report work --out x.json", r"--out: .*\.html, got x\.json"),
    ("zoo list no 'such words'", "^error: no such words: "),
    ("zoo list yolox --dcn", "^error: --dcn: "),
    ("zoo list yolox --dcn --measured", "^error: --dcn and --measured: "),
    ("zoo publish weights.pth out --save-keys meta", "--save-keys"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    pixels = np.random.default_rng(0).integers(0, 255, (96, 150, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "a.png"), pixels)
    cv2.imwrite(str(folder / "line.png"), pixels[:1].repeat(27, 1)[:, :4000])
    (folder / "text.png").write_text("neither a picture nor weights")
    weights = load_file(zoo.find(DEMO_MODEL).weights[0])["state_dict"]
    torch.save({"state_dict": weights, "meta": {}}, folder / "weights.pth")
    for name in ("x.onnx", "a.mp4"):
        (folder / name).touch()
    (folder / "work").mkdir()
    (folder / "work/own.py").write_text(f"_base_ = {PLAIN!r}")
    return folder


@pytest.mark.parametrize(
    ("status", "line", "message"), [*((2, *row) for row in OPTIONS), *((1, *row) for row in CONTENT)]
)
def test_mistakes_end_in_one_line(files, monkeypatch, status, line, message):
    monkeypatch.chdir(files)
    names = {"MODEL": DEMO_MODEL, "CONFIG": DEFORMABLE}
    before = sorted(files.rglob("*"))
    output = run(*(names.get(word, word) for word in shlex.split(line)), status=status)
    *usage, error = output.splitlines()
    assert error.lower().startswith("error: ") and re.search(message, error), output
    assert bool(usage) == (status == 2) and "Traceback" not in output
    assert sorted(files.rglob("*")) == before
