"""Your own data, from annotations to an exported detector: the documented commands on real images.

``DCNZOO_DATA`` names a folder with two data sets in COCO's format, each of ``train.json``, ``val.json`` and
``images/``: ``bccd`` (blood cells, boxes) and ``fruits_nuts`` (masks; ``annotations.json`` has all images).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytest.importorskip("mmdet")

from .formats import FORMATS, objects, objects_of, page_commands, write_labelme, write_voc, write_yolo
from .test_docs_journeys import copy_sources
from .test_train_your_data import run

ROOT = Path(__file__).resolve().parents[1]
if not os.environ.get("DCNZOO_DATA"):
    pytest.skip("needs real images: DCNZOO_DATA=FOLDER", allow_module_level=True)
DATA = Path(os.environ["DCNZOO_DATA"]).resolve()


class Shell:
    """Run command lines in a folder, as a user with an empty home folder."""

    def __init__(self, folder: Path, python: str | Path, network: bool = True, **variables: str) -> None:
        self.folder, self.python, self.network = folder, Path(python), network
        (folder / "home").mkdir()
        own = ("PYTHONPATH", "VIRTUAL_ENV", "TORCH_HOME", "XDG_CACHE_HOME", "DCNZOO_DATA")
        kept = {name: value for name, value in os.environ.items() if name not in own}
        self.environment = {**kept, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **variables}

    def run(self, *command: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*([] if self.network else without_network()), *command],
            cwd=self.folder, env=self.environment,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __call__(self, line: str, status: int = 0) -> str:
        """The output of ``dcnzoo …`` on both streams."""
        program, *arguments = shlex.split(line)
        assert program == "dcnzoo"
        begin = time.monotonic()
        done = self.run(self.python, "-m", "dcnzoo", *arguments)
        print(f"{time.monotonic() - begin:5.1f} s  {line}")
        assert done.returncode == status, f"{line}\nexit status {done.returncode}\n{done.stdout[-6000:]}"
        assert "Traceback" not in done.stdout, f"{line}\n{done.stdout[-6000:]}"
        return done.stdout


@functools.cache
def without_network() -> list[str]:
    """A command prefix that disables the network. Without namespaces, every proxy is a closed port."""
    unshare = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and not subprocess.run([*unshare, "true"], capture_output=True).returncode:
        return unshare
    return ["env", *(f"{scheme}_proxy=http://127.0.0.1:9" for scheme in ("http", "https", "all"))]


def checkout(folder: Path, network: bool = True) -> Shell:
    return Shell(folder, sys.executable, network, PYTHONPATH=str(ROOT))


def read(name: str, images: int | None = None) -> dict:
    """A COCO file of DCNZOO_DATA, or its first images."""
    content = json.loads((DATA / name).read_text())
    content["images"] = content["images"][:images]
    for image in content["images"]:
        image["path"] = (DATA / name).parent / "images" / image["file_name"]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    return content


@pytest.mark.parametrize("heading", FORMATS)
def test_formats(tmp_path, monkeypatch, heading):
    """All 3,941 objects of BCCD survive the conversion in this process, and the commands find no problems."""
    make, images = FORMATS[heading]
    parts = {part: read(f"bccd/{part}.json") for part in ("train", "val")}
    make(tmp_path / "fruits", parts)
    monkeypatch.chdir(tmp_path)
    for line in page_commands(heading):
        run(line)
    expected = set().union(*map(objects_of, parts.values()))
    found = objects(tmp_path / "train.json", tmp_path / "val.json")
    assert {(file, name, *(round(v, 6) for v in box)) for file, name, *box in found} == expected
    assert len(expected) > 3000
    run(f"dcnzoo data config train.json val.json fruits.py --images {images} --no-weights")
    assert "no problems" in run(f"dcnzoo data check val.json --images {images} --config fruits.py")


def voc(folder: Path, train: int, val: int) -> None:
    write_voc(folder, {"train": read("bccd/train.json", train), "val": read("bccd/val.json", val)})


def average_precision(truth: Path, found: list[dict], kind: str) -> float:
    """AP of detections whose ``image`` is a file name and whose ``class`` is a name."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        images = {Path(image["file_name"]).name: image["id"] for image in coco.dataset["images"]}
        classes = {category["name"]: category["id"] for category in coco.dataset["categories"]}
        results = [
            {**f, "image_id": images[Path(f["image"]).name], "category_id": classes[f["class"]]}
            for f in found
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def inferred(file: Path) -> list[dict]:
    content = json.loads(file.read_text())
    images = {image["id"]: image["file_name"] for image in content["images"]}
    classes = {category["id"]: category["name"] for category in content["categories"]}
    return [
        {**a, "image": images[a["image_id"]], "class": classes[a["category_id"]]}
        for a in content["annotations"]
    ]


DETECT = """
import json, sys
import numpy as np
from dcnzoo.export import Detector
detector = Detector("fruits.onnx")
found = []
for image in sys.argv[1:]:
    detections = detector(image)
    for box, score, label in zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels):
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        found.append({"image": image, "class": detector.classes[label], "score": score, "bbox": box})
print(json.dumps(found))
"""


def printed(output: str, kind: str) -> float:
    """AP of the last evaluation."""
    return float(re.findall(rf"coco/{kind}_mAP: (\S+)", output)[-1])


def journey(dcnzoo: Shell, heading: str, model: str, epochs: int, options: str = "") -> None:
    """From a folder in some format to detections of an exported model.

    The AP is the same in training, in `test`, and in pycocotools with the boxes and masks that `infer` and
    the ONNX file detect.
    """
    folder, images = dcnzoo.folder, FORMATS[heading][1]
    assert "no problems found" in dcnzoo("dcnzoo doctor")
    for line in page_commands(heading):
        dcnzoo(line)
    for part in ("train", "val"):
        assert "no problems" in dcnzoo(f"dcnzoo data check {part}.json --images {images}")
    config = f"dcnzoo data config train.json val.json fruits.py --images {images}"
    dcnzoo(f"{config} --model {model} --no-weights")
    settings = (
        f"train_cfg.max_epochs={epochs} train_cfg.val_interval={epochs} max_epochs={epochs} "
        f"param_scheduler.1.end={epochs} param_scheduler.1.T_max={epochs} "
        f"train_dataloader.batch_size=4 default_hooks.checkpoint.interval={epochs} {options}"
    )
    learned = dcnzoo(f"dcnzoo train fruits.py --auto-scale-lr --report --cfg-options {settings}")
    report = (folder / "work_dirs/fruits/report.html").read_text()
    assert "backbone.layer3.0.conv2" in report, "the deformable layers are in the report"
    trained = f"work_dirs/fruits/fruits.py work_dirs/fruits/epoch_{epochs}.pth"
    model = "--model work_dirs/fruits/fruits.py --checkpoint {1}".format(*trained.split())
    tested = dcnzoo(f"dcnzoo test {trained}")
    val = json.loads((folder / "val.json").read_text())
    files = " ".join(f"{images}/{image['file_name']}" for image in val["images"])
    first, *_ = files.split()
    dcnzoo(f"dcnzoo infer {files} {model} --score-threshold 0 --out found")
    assert {path.name for path in (folder / "found").iterdir()} == {
        "detections.json", *(f"{Path(file).stem}.png" for file in files.split())
    }  # fmt: skip
    for kind in ("bbox", "segm"):
        if f"coco/{kind}_mAP" in tested:
            ap = printed(tested, kind)
            assert ap == printed(learned, kind) > 0.02
            again = average_precision(folder / "val.json", inferred(folder / "found/detections.json"), kind)
            assert again == pytest.approx(ap, abs=1e-3)
            print(f"        {kind} AP {ap}, by infer {again:.4f}")
    for page in ("explain.html", "explain.png"):
        assert "backbone.layer3.0.conv2" in dcnzoo(f"dcnzoo explain {first} {model} --out {page}")
        assert (folder / page).stat().st_size > 10_000
    output = f"--out fruits.onnx --input-img {first} --dynamic-export --verify"
    assert re.search(r"(\d+) of \1 detections agree", dcnzoo(f"dcnzoo export {trained} {output}"))
    done = dcnzoo.run(dcnzoo.python, "-c", DETECT, *files.split())
    assert done.returncode == 0, done.stdout
    exported = average_precision(folder / "val.json", json.loads(done.stdout), "bbox")
    print(f"        bbox AP {printed(tested, 'bbox')}, exported {exported:.4f}")
    assert exported == pytest.approx(printed(tested, "bbox"), abs=5e-3)


@pytest.mark.slow
def test_boxes(tmp_path):
    voc(tmp_path / "fruits", 40, 12)
    journey(checkout(tmp_path), "Pascal VOC", "faster-rcnn_r14-mdconv_fpn_24e_coco", 16)


@pytest.mark.slow
def test_masks_without_a_network(tmp_path):
    """From LabelMe, with DCNv2 as a command line option."""
    write_labelme(tmp_path / "fruits", {"all": read("fruits_nuts/annotations.json")})
    dcnzoo = checkout(tmp_path, network=False)
    journey(dcnzoo, "LabelMe", "mask-rcnn_r14_fpn_8e_shapes", 60, "model.backbone.dcn=True")
    # The config lacks the option: its AP would be that of a model without offsets.
    trained = (tmp_path / "work_dirs/fruits/fruits.py").read_bytes()
    said = dcnzoo("dcnzoo test fruits.py work_dirs/fruits/epoch_60.pth", status=1)
    assert "model.backbone.dcn=True" in said.splitlines()[-1]
    assert (tmp_path / "work_dirs/fruits/fruits.py").read_bytes() == trained
    # Published weights cannot be downloaded.
    dcnzoo("dcnzoo data config train.json val.json published.py --images fruits")
    said = dcnzoo("dcnzoo train published.py", status=1).splitlines()[-1]
    assert all(part in said for part in ("https://", str(tmp_path / "home"), "--no-weights")), said


@pytest.mark.slow
def test_wheel(tmp_path):
    """Boxes and masks with `pip install dcnzoo-….whl[mmdet,onnx]`, then without a network."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if subprocess.run(
        [*pip, "download", "--no-deps", "-d", tmp_path, "click"], capture_output=True
    ).returncode:
        pytest.skip("pip reaches no index")
    wheel = make_wheel(tmp_path / "source")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    # the same release of torch as here: the newest would install gigabytes of CUDA
    same = f"torch=={torch.__version__.partition('+')[0]}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [*pip, "--python", python, "install", f"{wheel}[mmdet,onnx]", same]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("boxes", "masks"):
        (tmp_path / name).mkdir()
    write_yolo(
        tmp_path / "boxes/fruits", {p: read(f"bccd/{p}.json", n) for p, n in (("train", 40), ("val", 12))}
    )
    write_labelme(tmp_path / "masks/fruits", {"all": read("fruits_nuts/annotations.json")})
    journey(Shell(tmp_path / "boxes", python, False), "YOLO", "faster-rcnn_r14-mdconv_fpn_24e_coco", 16)
    journey(Shell(tmp_path / "masks", python, False), "LabelMe", "mask-rcnn_r14-mdconv_fpn_8e_shapes", 60)


def make_wheel(source: Path) -> Path:
    """A wheel of the sources and the loaded libraries. `nox -s packaging` compiles them instead."""
    copy_sources(source)
    environment = {**os.environ, "PYTHONPATH": str(source)}

    def setup(*arguments: str) -> None:
        command = [sys.executable, "setup.py", "-q", *arguments]
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    setup("build_py")
    (built,) = source.glob("build/lib*/dcnzoo/ops")
    for library in source.glob("dcnzoo/ops/_C_*.so"):
        shutil.copy2(library, built)
    setup("bdist_wheel", "--skip-build")
    (wheel,) = source.glob("dist/*.whl")
    return wheel
