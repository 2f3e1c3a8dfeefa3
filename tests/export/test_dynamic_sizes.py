"""Traced programs of one detector of each kind, at a size, a batch and pictures that were not traced.

`make test-all` compares their files, in runtimes, and the other families: test_detectors.py.
"""

import numpy as np
import pytest
import torch

from dcnzoo.export.onnx import quiet, trace
from dcnzoo.export.vmap import symbolic_batches
from dcnzoo.openmmlab.export.predict import Predictor
from tests.helpers.detectors import (
    ANCHORS,
    CONFIGS,
    MASKS,
    RTMDET,
    SOLO,
    WIDTHS,
    agreement_of,
    build,
    shrink_deformable_detr,
)

DYNAMIC = torch.export.Dim.DYNAMIC
TWO_LEVELS = {"backbone.out_indices": (0, 1), "neck.in_channels": WIDTHS[:2]}


def shrink_to_two_levels(cfg):
    shrink_deformable_detr(cfg)
    cfg.num_feature_levels = cfg.neck.num_outs = 2
    cfg.backbone.out_indices, cfg.neck.in_channels = (1, 2), WIDTHS[1:]
    cfg.encoder.layer_cfg.self_attn_cfg.num_levels = cfg.decoder.layer_cfg.cross_attn_cfg.num_levels = 2


# fewer levels: torch.export takes seconds for each
FEW_LEVELS = {
    "RetinaNet": {**ANCHORS, "neck.num_outs": 2, "bbox_head.anchor_generator.strides": [8, 16]},
    "Mask R-CNN": {
        **MASKS, **TWO_LEVELS, "neck.num_outs": 2, "rpn_head.anchor_generator.strides": [4, 8]
    },
    "RTMDet-Ins": {**RTMDET, **TWO_LEVELS, "bbox_head.anchor_generator.strides": [4, 8]},
    "SOLO": SOLO,
    "Deformable DETR": shrink_to_two_levels,
}  # fmt: skip


@pytest.mark.parametrize("family", FEW_LEVELS)
def test_another_size_and_batch(family, monkeypatch):
    monkeypatch.setitem(CONFIGS, family, CONFIGS[family]._replace(shrink=FEW_LEVELS[family]))
    detector = build(family)
    model = Predictor(detector).eval()
    example = torch.zeros(2, 3, 128, 160), torch.tensor([[128, 160]] * 2)
    with symbolic_batches(), quiet():
        shapes = {0: "batch", 2: "height", 3: "width"}, {0: DYNAMIC}
        program = trace(model, example, shapes).module()

    def run(images, sizes):
        values = program(torch.from_numpy(images), torch.from_numpy(sizes))
        return dict(zip(model.output_names, map(np.asarray, values), strict=True))

    for height, width, sizes in (
        (192, 128, [(192, 128), (130, 90), (61, 128)]),
        (128, 256, [(128, 250)]),
    ):
        # also noise in the padding: of equal scores, the program may take others than MMDetection
        images = torch.randn(len(sizes), 3, height, width)
        agreement = agreement_of(detector, images, sizes, run=run)
        assert agreement.number >= 50 and agreement.holds, agreement
