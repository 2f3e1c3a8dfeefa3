"""The preprocessing in files equals MMDetection's pipelines, on other pictures than an export compares."""

from itertools import product

import numpy as np
import pytest
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import TRANSFORMS
from mmengine.registry import DefaultScope
from PIL import Image

from dcnzoo.detect.pictures import read
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.openmmlab.export.preprocessing import preprocessing_of

LOADS = [{}, dict(to_float32=True), dict(imdecode_backend="pillow")]
RESIZES = [
    dict(type="Resize", scale=(133, 80), keep_ratio=True),
    dict(type="Resize", scale=(201, 117), keep_ratio=False),
    dict(type="Resize", scale=(160, 90), keep_ratio=True, backend="pillow"),
    dict(type="Resize", scale_factor=0.37, keep_ratio=True),
    dict(type="FixScaleResize", scale=(133, 80), keep_ratio=True),
    dict(type="ResizeShortestEdge", scale=80, max_size=133),
]
PADS = [None, dict(type="Pad", size_divisor=32), dict(type="Pad", pad_to_square=True, pad_val=dict(img=114))]
PREPROCESSORS = [
    dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True, pad_size_divisor=32),
    {},
]
PIPELINES = [
    (
        [dict(type="LoadImageFromFile", **load), resize, *([pad] if pad else []), dict(type="PackDetInputs")],
        settings,
    )
    for load, resize, pad, settings in product(LOADS, RESIZES, PADS, PREPROCESSORS)
    if not ("to_float32" in load and resize.get("backend") == "pillow")  # mmcv refuses float32 for Pillow
]
SIZES = ((31, 47), (97, 171), (480, 640), (640, 427), (1, 90), (333, 20), (711, 1280), (80, 133))


def save_pictures(folder):
    rng = np.random.default_rng(5)
    for i, (height, width) in enumerate(SIZES):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        yield image, folder / f"{i}.{'png' if i % 2 else 'jpg'}"
    yield Image.fromarray(rng.integers(0, 256, (57, 83), np.uint8)), folder / "grey.png"
    yield Image.fromarray(rng.integers(0, 256, (57, 83, 4), np.uint8)), folder / "transparent.png"


@pytest.mark.slow
def test_pipelines(tmp_path):
    paths, stored, refused = [], 0, []
    for image, path in save_pictures(tmp_path):
        image.save(path)
        paths.append(path)
    order = np.random.default_rng(3).permutation(len(PIPELINES))
    for pipeline, settings in (PIPELINES[i] for i in order[:36]):
        preprocessor = DetDataPreprocessor(**settings)
        try:
            ours = preprocessing_of(pipeline, preprocessor, ("a",))
        except ValueError as error:  # refused: the message names the step
            assert "test_pipeline: {'type'" in str(error)
            refused.append(pipeline)
            continue
        stored, ours = stored + 1, Preprocessing.from_metadata(ours.to_metadata())
        for path in paths:
            with DefaultScope.overwrite_default_scope("mmdet"):
                data = dict(img_path=str(path), img_id=0)
                for step in pipeline:
                    data = TRANSFORMS.build(step)(data)
            sample = dict(inputs=[data["inputs"]], data_samples=[data["data_samples"]])
            expected = preprocessor(sample, False)["inputs"][0].numpy()
            inputs = ours(read(path))[0][0]
            assert inputs.shape == expected.shape, (pipeline, path)
            scale = max(1, np.abs(expected).max())
            # decoders of JPEG may differ by two grey levels
            limit = 3 / min(settings.get("std", [1])) if path.suffix == ".jpg" else 1e-4 * scale
            assert np.abs(inputs - expected).max() <= limit, (pipeline, path)
    assert stored >= 15 and refused, (stored, len(refused))
