"""Arguments of LoadImageFromFile that select other channels are refused by name."""

import numpy as np
import pytest

import dcnzoo
from dcnzoo.detect.sources import ModelError
from dcnzoo.openmmlab.export.inputs import predicting_part
from dcnzoo.openmmlab.export.preprocessing import preprocessing_of

NAME = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
STEP = "test_dataloader.dataset.pipeline.0"
PICTURE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


def load(**arguments):
    return dcnzoo.load(NAME, cfg_options={f"{STEP}.{name}": value for name, value in arguments.items()})


def preprocessing(detector):
    pipeline = detector.model.cfg.test_dataloader.dataset.pipeline
    return preprocessing_of(pipeline, predicting_part(detector.model).data_preprocessor, detector.classes)


@pytest.mark.parametrize("value", ["color_ignore_orientation", "grayscale", "unchanged"])
def test_arguments_that_dcnzoo_does_not_apply_are_refused(value):
    detector = load(color_type=value)
    for use in (lambda: detector(PICTURE), lambda: preprocessing(detector)):
        with pytest.raises(ModelError, match=f"LoadImageFromFile: color_type: expected .*got '{value}'"):
            use()


@pytest.mark.parametrize(
    "arguments", [{"to_float32": True}, {"color_type": "color"}, {"imdecode_backend": "pillow"}]
)
def test_other_arguments_count(arguments):
    detector = load(**arguments)
    inputs = detector.prepare(PICTURE)["inputs"]
    assert inputs.is_floating_point() == arguments.get("to_float32", False)
    assert preprocessing(detector).classes == detector.classes
