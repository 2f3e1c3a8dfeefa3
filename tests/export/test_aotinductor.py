"""Packages of AOTInductor, in Python and in C++."""

import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import dcnzoo.ops
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.export import Detector, export_pt2
from dcnzoo.export.aotinductor import trace
from dcnzoo.export.fixed_size import keep_boxes, roi_align_pyramid
from dcnzoo.layers import PackedDeformConv2d

CPP = Path(__file__).parents[2] / "tools/deployment/cpp"
LIBRARY = Path(dcnzoo.ops.__file__).parent / "_C_cpu.so"
SIZE = (64, 96)
PREPROCESSING = Preprocessing(("cat", "dog"), True, (10.0, 20, 30), (100.0, 90, 80), SIZE[::-1], True, 32)

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the operators are not compiled")


class Model(nn.Module):
    """Deformable convolution, proposals by NMS, and scores from RoIAlign: sizes that depend on the data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = PackedDeformConv2d(3, 8, 3, stride=4, padding=1, modulated=True)
        nn.init.normal_(self.layer.conv_offset.weight, std=0.1)
        centres = torch.rand(1, 60, 2) * torch.tensor([96.0, 64])
        extents = 4 + 40 * torch.rand(1, 60, 2)
        self.register_buffer("boxes", torch.cat([centres - extents / 2, centres + extents / 2], -1))

    def forward(self, images):
        features = self.layer(images)
        scores = (self.boxes[..., 0] + 90 * features.mean()).sin()  # some are negative: no candidates
        labels = (torch.arange(60) % 2)[None]
        proposals, labels, _ = keep_boxes(self.boxes, scores, labels, 0.5, 20, 2, 8)
        rois = torch.cat([torch.zeros(20, 1), proposals[0, :, :4]], 1)
        levels = [features, features[:, :, ::2, ::2]]
        pooled = roi_align_pyramid(levels, rois, [1 / 4, 1 / 8], [2, 2], 16.0, 2, "avg", True)
        scores = (pooled.mean((1, 2, 3)) - features.mean()).mul(9).sigmoid()[None]
        scores = torch.where((labels >= 0) & (scores > 0.5), scores, -1)
        return keep_boxes(proposals[..., :4], scores, labels, 0.3, 30, 2, 0)[:2]


@pytest.fixture(scope="module")
def model():
    return Model().eval()


def image(seed):
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def test_the_trace_needs_no_python(model):
    """It contains only operators that the compiled library defines, for numbers of boxes not seen before."""
    program = trace(model, (image(0),))
    schemas = LIBRARY.with_name("schemas.txt").read_text()
    used = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("dcnzoo")}
    assert used == {"dcnzoo.deform_conv.default", "dcnzoo.nms.default", "dcnzoo.roi_align.default"}
    assert all(f"{name.split('.')[1]}(" in schemas for name in used)
    counts = set()
    for seed in range(4):
        with torch.no_grad():
            expected, found = model(image(seed)), program.module()(image(seed))
        counts.add(int((expected[1] >= 0).sum()))
        torch.testing.assert_close(found, expected)
    assert len(counts) > 1 and 1 < max(counts) < 30


@pytest.fixture(scope="module")
def package(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    names = dict(input_names=["input"], output_names=["dets", "labels"])
    export_pt2(model, (image(0),), path, metadata=PREPROCESSING.to_metadata(), **names)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A PPM file of the network's size, whose pixels need no resizing."""
    path = tmp_path_factory.mktemp("picture") / "picture.ppm"
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def expected_of(model, picture):
    images = torch.from_numpy(PREPROCESSING(cv2.imread(str(picture)))[0])
    with torch.no_grad():
        dets, labels = model(images)
    there = labels[0] >= 0
    assert there.sum() > 1
    return dets[0, there], labels[0, there]


@pytest.mark.slow
def test_a_package_in_python(model, package, picture):
    dets, labels = expected_of(model, picture)
    detector = Detector(package)
    found = detector(picture, score_threshold=0, bgr=True)
    assert detector.classes == PREPROCESSING.classes
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.scores, dets[:, 4], atol=1e-5)
    np.testing.assert_allclose(found.boxes, dets[:, :4], atol=1e-3)
    assert len([*detector([picture] * 3, batch_size=3)]) == 3, "one image at a time"


@pytest.mark.slow
def test_a_package_in_cpp(model, package, picture, tmp_path):
    """The example of the documentation, built as documented."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["cmake", "-S", CPP, "-B", tmp_path, prefix], ["cmake", "--build", tmp_path]):
        subprocess.run(command, check=True, capture_output=True)
    # outside Python, and where dcnzoo cannot be imported
    output = subprocess.run(
        [tmp_path / "detect", package, LIBRARY, picture],
        check=True, capture_output=True, text=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]},
    ).stdout  # fmt: skip
    dets, labels = expected_of(model, picture)
    found = np.array([line.split() for line in output.splitlines()], float)
    np.testing.assert_array_equal(found[:, 0], labels)
    np.testing.assert_allclose(found[:, 1], dets[:, 4], atol=1e-5)
    np.testing.assert_allclose(found[:, 2:], dets[:, :4], atol=2e-3)
    (tmp_path / "half.ppm").write_bytes(picture.read_bytes()[:-9])
    for arguments in ([package, LIBRARY, tmp_path / "half.ppm"], [picture, LIBRARY, picture], []):
        failed = subprocess.run([tmp_path / "detect", *arguments], capture_output=True, text=True)
        assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1


def test_files_that_are_no_package(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"no package")
    with pytest.raises(ValueError, match=r"model\.pt2: expected a package"):
        Detector(path, "aotinductor")
