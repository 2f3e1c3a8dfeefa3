"""Run a detector on request: a line of JSON on standard input names the pass, a line of JSON is the answer.

Started by detectors.py, with mmcv's compiled operators or with dcnzoo's. Imports dcnzoo only for the latter.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

SIZE = (800, 1344)
OBJECTS = 10


def build(config: str) -> torch.nn.Module:
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.hub import get_config
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    cfg = get_config(config) if "::" in config else Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if hasattr(model, "roi_head"):
        # random weights give all classes the same score: peaks, so that there are detections and masks
        model.roi_head.bbox_head.fc_cls.weight.data.mul_(100)
    return model


def batch() -> dict:
    """Return an image of noise, [3, 800, 1344], with boxes and masks, as a data loader does."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = SIZE
    random = np.random.default_rng(0)
    corners = random.uniform(0, (width / 2, height / 2), (OBJECTS, 2))
    boxes = np.concatenate([corners, corners + random.uniform(30, 300, (OBJECTS, 2))], axis=1)
    masks = np.zeros((OBJECTS, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), SIZE)
    sample = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.arange(OBJECTS),
        masks=BitmapMasks(masks, height, width),
    )
    image = torch.tensor(random.integers(0, 256, (3, *SIZE)), dtype=torch.uint8)
    return {"inputs": [image], "data_samples": [sample]}


def run(model: torch.nn.Module, name: str) -> int:
    """Return the number of detections of an inference, or of the losses of a training step."""
    torch.manual_seed(0)
    if name == "inference":
        with torch.no_grad():
            return len(model.eval().test_step(batch())[0].pred_instances)
    data = model.train().data_preprocessor(batch(), training=True)
    losses = model(**data, mode="loss")
    model.zero_grad()
    model.parse_losses(losses)[0].backward()
    return len(losses)


def status(name: str) -> int:
    """Return bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    config, threads, plugin, channels_last = json.loads(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # the detector's output
    torch.set_num_threads(threads)
    if plugin:
        import dcnzoo.models  # noqa: F401
    model = build(config)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    empty = status("VmRSS")
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        start = time.perf_counter()
        count = run(model, json.loads(line))
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "memory": status("VmHWM") - empty, "count": count}
        os.write(answers, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    main()
