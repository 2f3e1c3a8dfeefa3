"""Own data, from annotations to a shipped detector: the documented commands on real images, each in its own process.

``DCNZOO_DATA`` names a folder with two data sets in COCO's format, ``train.json``, ``val.json`` and ``images/`` each:
``bccd`` (blood cells, boxes) and ``fruits_nuts`` (masks).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

pytest.importorskip("mmdet")

from .test_docs_journeys import copy_sources
from .test_train_your_data import objects, page_commands, run

ROOT = Path(__file__).resolve().parents[1]
if "DCNZOO_DATA" not in os.environ:
    pytest.skip("needs real images: DCNZOO_DATA=FOLDER", allow_module_level=True)
DATA = Path(os.environ["DCNZOO_DATA"]).resolve()


class Shell:
    """Runs command lines in a folder, as a user whose home is empty types them."""

    def __init__(self, folder: Path, dcnzoo: list[str | Path], network: bool = True, **variables: str) -> None:
        self.folder, self.dcnzoo, self.network = folder, dcnzoo, network
        (folder / "home").mkdir()
        own = ("PYTHONPATH", "VIRTUAL_ENV", "TORCH_HOME", "XDG_CACHE_HOME", "DCNZOO_DATA")
        kept = {name: value for name, value in os.environ.items() if name not in own}
        self.environment = {**kept, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **variables}

    def __call__(self, line: str, status: int = 0) -> str:
        """What ``dcnzoo …`` prints, on both streams."""
        program, *arguments = shlex.split(line)
        assert program == "dcnzoo"
        prefix = [] if self.network else without_network()
        begin = time.monotonic()
        done = subprocess.run(
            [*prefix, *self.dcnzoo, *arguments],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        print(f"{time.monotonic() - begin:5.1f} s  {line}")
        assert done.returncode == status, f"{line}\nexit status {done.returncode}\n{done.stdout[-6000:]}"
        assert "Traceback" not in done.stdout, done.stdout[-6000:]
        return done.stdout


def without_network() -> list[str]:
    command = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare --net, to cut the network off")
    return command


def checkout(folder: Path, network: bool = True) -> Shell:
    return Shell(folder, [sys.executable, "-m", "dcnzoo"], network, PYTHONPATH=str(ROOT))


def read(name: str, images: int | None = None) -> dict:
    """A COCO file of DCNZOO_DATA, or its first images."""
    content = json.loads((DATA / name).read_text())
    content["images"] = content["images"][:images]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    return content


def link(image: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / image["file_name"]).symlink_to(DATA / "bccd/images" / image["file_name"])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def per_image(content: dict) -> list[tuple[dict, list[tuple[int, str, float, float, float, float]]]]:
    """[(image, [(index of the class, its name, x1, y1, x2, y2)])]"""
    names = {c["id"]: (i, c["name"]) for i, c in enumerate(content["categories"])}
    boxes: dict = {image["id"]: [] for image in content["images"]}
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        boxes[a["image_id"]].append((*names[a["category_id"]], x, y, x + w, y + h))
    return [(image, boxes[image["id"]]) for image in content["images"]]


def write_voc(folder: Path, parts: dict[str, dict]) -> None:
    """Pixels count from 1, both edges are in the box."""
    for split, content in parts.items():
        for image, boxes in per_image(content):
            link(image, folder / "JPEGImages")
            text = "".join(
                f"<object><name>{escape(name)}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for _, name, x1, y1, x2, y2 in boxes
            )
            file = image["file_name"]
            write(
                (folder / "Annotations" / file).with_suffix(".xml"),
                f"<annotation><filename>{file}</filename>{text}</annotation>",
            )
        names = "\n".join(Path(image["file_name"]).stem for image in content["images"])
        write(folder / f"ImageSets/Main/{split}.txt", names)


def write_yolo(folder: Path, parts: dict[str, dict]) -> None:
    for split, content in parts.items():
        for image, boxes in per_image(content):
            link(image, folder / "images" / split)
            w, h = image["width"], image["height"]
            lines = [
                f"{label} {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}"
                for label, _, x1, y1, x2, y2 in boxes
            ]
            write((folder / "labels" / split / image["file_name"]).with_suffix(".txt"), "\n".join(lines))
    names = [category["name"] for category in content["categories"]]
    write(folder / "data.yaml", f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")


def write_labelme(folder: Path, parts: dict[str, dict]) -> None:
    for content in parts.values():
        for image, boxes in per_image(content):
            link(image, folder)
            shapes = [
                {"label": name, "shape_type": "rectangle", "points": [[x2, y2], [x1, y1]], "group_id": None}
                for _, name, x1, y1, x2, y2 in boxes
            ]
            size = {"imageHeight": image["height"], "imageWidth": image["width"]}
            text = json.dumps({"imagePath": image["file_name"], "imageData": None, **size, "shapes": shapes})
            write((folder / image["file_name"]).with_suffix(".json"), text)


FORMATS: dict[str, tuple[Callable, str]] = {
    "Pascal VOC": (write_voc, "fruits/JPEGImages"),
    "YOLO": (write_yolo, "fruits"),
    "LabelMe": (write_labelme, "fruits"),
}


@pytest.mark.parametrize("heading", FORMATS)
def test_formats(tmp_path, monkeypatch, heading):
    """All of BCCD, in this process: 3,941 objects come back as they were, and the commands agree on them."""
    make, images = FORMATS[heading]
    parts = {part: read(f"bccd/{part}.json") for part in ("train", "val")}
    make(tmp_path / "fruits", parts)
    monkeypatch.chdir(tmp_path)
    for line in page_commands(heading):
        run(line)
    expected = {
        (image["file_name"], name, x1, y1, x2 - x1, y2 - y1)
        for content in parts.values()
        for image, boxes in per_image(content)
        for _, name, x1, y1, x2, y2 in boxes
    }
    found = objects(tmp_path / "train.json", tmp_path / "val.json")
    assert {(file, name, *(round(v, 6) for v in box)) for file, name, *box in found} == expected
    assert len(expected) > 3000
    run(f"dcnzoo data config train.json val.json fruits.py --images {images} --no-weights")
    assert "no problems" in run(f"dcnzoo data check val.json --images {images} --config fruits.py")
