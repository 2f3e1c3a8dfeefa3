"""Write docs/benchmarks/detectors.md: the time of complete detectors for a picture on one thread of a CPU.

The detectors of README's table have random weights, because COCO's weights must be downloaded: every layer's
output has a standard deviation of 1, also the offsets, and a picture has 100 detections, the configs' limit.
"""

import time
from functools import partial

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from benchmarks.coverage.trial import forget_weights
from benchmarks.measure import ROOT, describe, listed, markdown, parser_of, take_turns
from dcnzoo import models, zoo  # noqa: F401  registers dcnzoo's parts
from dcnzoo.openmmlab.config.read import read_config_file
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.utils.files import write_text
from tests.helpers.detectors import calibrate

NAMES = (
    "faster-rcnn_r50_fpn_1x_coco",
    "faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
    "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "mask-rcnn_internimage-t_fpn_1x_coco",
    "mask-rcnn_flash-internimage-t_fpn_1x_coco",
)
SIZE, ROUNDS = (800, 1333), 3
PAGE = ROOT / "docs/benchmarks/detectors.md"
TEXT = """# Complete detectors on a CPU

CPU seconds for a picture of 1333 × 800 pixels in float32, preparation and post-processing included: the
median of {rounds} rounds, in which the detectors take turns, on one thread. Random weights; offsets have a
standard deviation of 1 pixel, and the picture has 100 detections. By `python -m benchmarks.detectors`.

{table}

{machine}
"""


def build(name: str) -> TorchDetector:
    cfg = read_config_file(zoo.find(name).config)
    forget_weights(cfg.model)
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    calibrate(model, torch.randn(1, 3, 256, 320))
    model.cfg = cfg
    return TorchDetector(model, score_threshold=0.0)


def main() -> None:
    parser_of(__doc__).parse_args()
    torch.set_num_threads(1)
    init_default_scope("mmdet")
    detectors = {name: build(name) for name in NAMES}
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    for name, detector in detectors.items():  # the first call warms up
        print(f"{name}: {len(detector(picture).scores)} detections", flush=True)
    calls = {name: (partial(detector, picture), 1) for name, detector in detectors.items()}
    times = take_turns(calls, seconds=0, timer=time.process_time, rounds=ROUNDS)
    rows = [(f"`{name}`", f"{timed.median:.1f}", f"{1 / timed.median:.2f}") for name, timed in times.items()]
    table = markdown([("model", "CPU seconds for a picture", "pictures per second"), *rows])
    write_text(PAGE, TEXT.format(rounds=ROUNDS, table=table, machine=f"{listed(describe())}."))


if __name__ == "__main__":
    main()
