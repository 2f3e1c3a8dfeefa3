"""Arguments of LoadImageFromFile that select other channels are refused by name."""

import dataclasses
import io

import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from PIL import Image

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.detect.pictures import read
from dcnzoo.detect.sources import ModelError
from dcnzoo.openmmlab.export.pictures import predicting_part
from dcnzoo.openmmlab.export.preprocessing import preprocessing_of
from tests.helpers.products import in_turn

NAME = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
STEP = "test_dataloader.dataset.pipeline.0"
PICTURE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


def load(**arguments):
    return dcnzoo.load(NAME, cfg_options={f"{STEP}.{name}": value for name, value in arguments.items()})


def preprocessing(detector):
    pipeline = detector.model.cfg.test_dataloader.dataset.pipeline
    return preprocessing_of(pipeline, predicting_part(detector.model).data_preprocessor, detector.classes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("color_type", value) for value in ("color_ignore_orientation", "grayscale", "unchanged")],
        ("imdecode_backend", "tifffile"),
    ],
)
def test_arguments_that_dcnzoo_does_not_apply_are_refused(name, value, tmp_path):
    detector = load(**{name: value})
    make_shapes(tmp_path, ShapesSpec(train=1, val=1))
    uses = (
        lambda: detector(PICTURE),
        lambda: detector.evaluate(tmp_path / "annotations/val.json", images=tmp_path / "val"),
    )
    for use in uses:
        with pytest.raises(ModelError, match=f"LoadImageFromFile: {name}: expected .*got '{value}'"):
            use()
    with pytest.raises(ValueError, match=f"test_pipeline: .*{value}"):  # of a file
        preprocessing(detector)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_backends_of_mmcv_read_the_same_pixels(mode, kind):
    """OpenCV can therefore read the pictures of a config with ``imdecode_backend="pillow"``."""
    content = io.BytesIO()
    picture = Image.fromarray(np.kron(PICTURE[:6, :8], np.ones((8, 8, 1), np.uint8))).convert(mode)
    picture.convert("RGB" if kind == "JPEG" else mode).save(content, kind, quality=60)
    for backend in ("cv2", "pillow"):
        expected = mmcv.imfrombytes(content.getvalue(), flag="color", backend=backend)
        np.testing.assert_array_equal(read(content.getvalue()), expected)


ARGUMENTS = [{}, {"to_float32": True}, {"color_type": "color"}, {"imdecode_backend": "pillow"}]


@in_turn("arguments, mode", ARGUMENTS, ["RGB", "L"])
def test_one_input_for_all_ways_to_predict(arguments, mode, tmp_path):
    """``dcnzoo test`` runs the pipeline; the detector and its ``evaluate`` call ``prepare``."""
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "picture.png")
    detector = load(**arguments)
    steps = [step for step in get_test_pipeline_cfg(detector.model.cfg) if step.type != "LoadAnnotations"]
    expected = Compose(steps)({"img_path": str(tmp_path / "picture.png"), "img_id": 0})["inputs"]
    inputs = detector.prepare(read(tmp_path / "picture.png"))["inputs"]
    assert torch.equal(inputs, expected)
    assert inputs.is_floating_point() == arguments.get("to_float32", False)
    stored = dataclasses.replace(preprocessing(load()), float32=inputs.is_floating_point())
    assert preprocessing(detector) == stored  # of a file
