"""Measure CPU time and memory of large data sets: check, start of a training, conversion, metric.

``python -m benchmarks.data 1000 10000 118000 --tree 60de176f=../old``. Each step is a process.
"""

import json
import os
import subprocess  # nosec B404  # runs this package
import sys
from pathlib import Path

import cv2
import numpy as np

from benchmarks.measure import ROOT, describe, listed, markdown, parser_of, slug
from dcnzoo.utils.files import write_text

STEPS = {  # {data}: a folder, {work}: a work directory in it
    "data check": "command data check {data}/coco/annotations/instances_train.json",
    "train --data": "command train --data {data}/coco --work-dir {work} --force --batch-size 2",
    "train CONFIG": "command train {work}/data/work.py --work-dir {work} --force --batch-size 2",
    "data convert yolo": "command data convert yolo {data}/yolo/data.yaml {work}/yolo.json --force",
    "rank": "rank {data}/coco/annotations/instances_train.json {data}/coco/train",
    "metric": "metric {data}/coco/annotations/instances_{truth}.json {data}/coco/{truth}",
}
METHOD = """\
CPU seconds / largest memory of a process, one thread, by `python -m benchmarks.data`: pictures of 96 × 64
pixels with about seven polygons each and 80 classes, in COCO's and YOLO's layout. Imports are included; a
training stops before its first iteration. *Rank*: growth of a process that opens the training data. *Metric*:
100 boxes in each of at most 5,000 pictures (above 10,000, in those to validate), without the start.
pycocotools only reads the file."""
PROGRAM = """
import os, sys, time
def end(*args, **kwargs):
    # not ru_maxrss, which begins with the size of the process that started this one
    memory = int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) >> 10
    print("\\nMEASURED", round(time.process_time() - start, 1), memory, flush=True)
    os._exit(0)
start = 0
step = sys.argv.pop(1)
if step == "command":
    if sys.argv[1] == "train":
        from mmengine.runner.loops import EpochBasedTrainLoop
        EpochBasedTrainLoop.run_iter = end
    from dcnzoo.cli import main
    try:
        main()
    except SystemExit as error:
        if not error.code:
            end()
        raise
if step == "pycocotools":
    from pycocotools.coco import COCO
    COCO(sys.argv[1])
    end()
import json, numpy as np, dcnzoo.openmmlab.datasets
from mmdet.registry import DATASETS, METRICS
file, images = sys.argv[1:]
meta = dict(classes=[f"class{i:02}" for i in range(80)])
if step == "rank":
    def private():
        lines = open("/proc/self/smaps_rollup").read().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) >> 10
    before = private()
    data = dict(type="CocoDataset", ann_file=file, data_prefix=dict(img=images), metainfo=meta, pipeline=[])
    data = DATASETS.build(data)
    print("\\nMEASURED 0", private() - before)
else:
    metric = METRICS.build(dict(type="CocoMetric", ann_file=file, metric="bbox"))
    metric.dataset_meta, random = meta, np.random.default_rng(0)
    for image in json.load(open(file))["images"][:5000]:
        boxes = random.uniform(0, 48, (100, 4)).astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        result = dict(img_id=image["id"], bboxes=boxes, scores=random.random(100))
        result["labels"] = random.integers(0, 80, 100)
        metric.results.append((dict(image, img_id=image["id"]), result))
    start = time.process_time()
    metric.evaluate(len(metric.results))
    end()
"""


def make(folder: Path, number: int) -> None:
    """Write the data set."""
    random, angle = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 20, endpoint=False)
    for split, count in (("train", number), ("val", max(number // 24, 10))):
        paths = [folder / name / split for name in ("coco", "yolo/images", "yolo/labels")]
        for path in (*paths, folder / "coco/annotations"):
            path.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            name = f"{i:012}"
            picture = cv2.resize(random.integers(0, 255, (4, 6, 3), np.uint8), (96, 64))
            cv2.imwrite(str(paths[0] / f"{name}.jpg"), picture)
            os.link(paths[0] / f"{name}.jpg", paths[1] / f"{name}.jpg")
            images.append({"id": i, "file_name": f"{name}.jpg", "width": 96, "height": 64})
            lines = []
            for _ in range(random.integers(1, 14)):
                radius = random.uniform(6, 16) * random.uniform(0.7, 1, 20)
                middle = random.uniform((17, 17), (79, 47))
                points = np.round(middle + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), 2)
                box, label = [*points.min(0).tolist(), *np.ptp(points, 0).tolist()], int(random.integers(80))
                entry = {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "iscrowd": 0}
                entry |= {"bbox": box, "area": float(cv2.contourArea(points.astype(np.float32)))}
                annotations.append(entry | {"segmentation": [points.ravel().tolist()]})
                lines.append(f"{label} " + " ".join(map(str, (points / (96, 64)).round(6).ravel())))
            (paths[2] / f"{name}.txt").write_text("\n".join(lines))
        categories = [{"id": i + 1, "name": f"class{i:02}"} for i in range(80)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"coco/annotations/instances_{split}.json").write_text(json.dumps(content))
    names = [each["name"] for each in categories]
    (folder / "yolo/data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")


def measure(tree: str, step: str) -> str:
    """Run a step with the package in a folder; return seconds and MB."""
    variables = {"PYTHONPATH": tree, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, *step.split()]
    options = {"env": {**os.environ, **variables}, "cwd": tree, "capture_output": True, "text": True}
    done = subprocess.run(command, **options)  # nosec B603
    if "MEASURED" not in done.stdout:
        return f"failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    seconds, memory = done.stdout.split()[-2:]
    return f"{memory} MB" if seconds == "0" else f"{seconds} s / {memory} MB"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("pictures", type=int, nargs="+")
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=FOLDER", help="another version")
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/data"))
    parser.add_argument("--write", default="data", help="first part of the page's name (empty: no page)")
    args = parser.parse_args()
    trees = {"dcnzoo": ROOT, **dict(each.split("=", 1) for each in args.tree)}
    rows = [["pictures", "version", *STEPS]]
    for number in args.pictures:
        data = (args.folder / str(number)).resolve()
        if not (data / "yolo/data.yaml").exists():
            make(data, number)
        truth = "train" if number <= 10_000 else "val"
        for name, tree in trees.items():
            steps = [
                each.format(data=data, work=data / name / "work", truth=truth) for each in STEPS.values()
            ]
            values = [measure(os.path.abspath(tree), step) for step in steps]
            rows.append([f"{number:,}", name, *values])
            print(*rows[-1], sep=", ", flush=True)
        peer = measure(str(ROOT), f"pycocotools {data}/coco/annotations/instances_train.json")
        rows.append([f"{number:,}", "pycocotools", peer, *["–"] * (len(STEPS) - 1)])
    if args.write:
        facts = describe("msgspec", "faster-coco-eval", "pycocotools")
        page = ROOT / "docs/benchmarks" / f"{args.write}-{slug(facts)}.md"
        write_text(page, f"# Large data sets\n\n{listed(facts)}.\n\n{METHOD}\n\n{markdown(rows)}\n")


if __name__ == "__main__":
    main()
