"""The index of MMDetection's metafiles and ours, compared with the files."""

from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save

from dcnzoo import zoo
from dcnzoo.openmmlab.checkpoints import CheckpointError, load_file
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.fetch import ChecksumError
from dcnzoo.utils.folders import mim_folder
from dcnzoo.zoo import index
from tests.zoo.conftest import entry

OURS = Path(__file__).parents[2] / "configs"


def test_every_entry_of_every_metafile_is_found():
    files = [*OURS.glob("*/metafile.yml"), *mim_folder("mmdet").glob("configs/*/metafile.yml")]
    contents = [yaml.safe_load(file.read_text()) for file in files]
    entries = sum(len(c["Models"] if isinstance(c, dict) else c) for c in contents)
    assert len(files) > 90 and entries > 590
    ours = {m.name for m in index.models() if m.package == "dcnzoo"}
    replaced = sum(m.name in ours for m in index._models_of("mmdet"))
    twice = 1  # one of MMDetection's metafiles has an entry twice
    assert replaced >= 11 and len(index.models()) == entries - twice - replaced
    assert all(m.config.is_file() and m.config.stem == m.name for m in index.models())
    assert len({m.name for m in index.models()}) == len(index.models())
    results = [(model, result) for model in index.models() for result in model.results]
    assert all(r.source.startswith(("published (", "measured (")) for _, r in results)
    assert {m.package for m, r in results if not r.published} == {"dcnzoo"}
    ours = [value for m, r in results if m.package == "dcnzoo" for value in r.metrics.values()]
    assert all(isinstance(value, int | float) for value in ours), "`mim search` compares numbers"


def test_a_model():
    found = index.find("mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco")
    assert found.id == "dcnzoo::dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py"
    assert found.weights[0].endswith("_20200203-ad97591f.pth")
    assert found.metrics() == {"box AP": 41.5, "mask AP": 37.1}
    assert found.sources() == ["published (MMDetection)"]
    assert found.paper["URL"] == "https://arxiv.org/abs/1811.11168"
    assert found.metadata["Training Memory (GB)"] == 4.5, "what MMDetection says about the same weights"


MDCONV = "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco"


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("faster-rcnn_r50_fpn_mdconv_c3-c5_1x_coco", f"dcnzoo::{MDCONV}.py"),
        (f"dcnzoo::{MDCONV}", f"dcnzoo::{MDCONV}.py"),
        (f"mmdet::{MDCONV}.py", f"mmdet::{MDCONV}.py"),
        (f"mmdet::{MDCONV.removeprefix('dcnv2/')}", f"mmdet::{MDCONV}.py"),
        ("retinanet_r50_fpn_1x_coco.py", "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"),
        # configs whose folder is not in their metafiles
        ("mask-rcnn_r50_fpn_gn-ws-all_2x_coco", "mmdet::gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py"),
        ("rpn_r50_fpn_2x_coco", "mmdet::rpn/rpn_r50_fpn_2x_coco.py"),
        ("retinanet_r50_fpn_1x_objects365v1", "mmdet::objects365/retinanet_r50_fpn_1x_objects365v1.py"),
    ],
)
def test_find(name, id):
    assert index.find(name).id == id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("faster-rcnn_r50-mdcnv-c3-c5_fpn_1x_coco", "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco, "),
        ("mmdet::retinanet/retinanet_r50_1x", "mmdet::retinanet/retinanet_r50_fpn_1x_coco"),
        ("%", "dcnzoo zoo list"),
        ("other::retinanet/retinanet_r50_fpn_1x_coco", "mmdet::retinanet/retinanet_r50_fpn_1x_coco"),
        ("dino-4scale_r50_8xb2-24e_coco", "found none$"),  # these have no weights file, or several
        ("deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval", "found 2$"),
    ],
)
def test_unknown_names_and_weights(name, expected):
    with pytest.raises((index.UnknownModelError, UserError), match=f"^{name}: .*{expected}"):
        zoo.download(name)


# Metafiles of a test package


MEASURED = {"Machine": "2 cores", "Date": "2026-11-20", "Command": "make demo"}


def test_whose_figures(package):
    published = entry("a", Published="its authors")
    both = entry("c", Published="its authors")
    both["Results"].append({"Dataset": "COCO", "Metrics": {"box AP": 39.5}, "Measured": MEASURED})
    a, c = package(published, both)
    assert a.sources() == ["published (its authors)"] and a.paper == {"Title": "T"}
    assert c.sources() == ["published (its authors)", "measured (2 cores, 2026-11-20, make demo)"]
    assert [c.metrics(source)["box AP"] for source in c.sources()] == [40.0, 39.5]
    assert [result.published for result in c.results] == [True, False]


def test_ours_goes_before_mmdetections(package):
    weights = "https://download.openmmlab.com/mmdetection/v2.0/vfnet/vfnet_r50_fpn_1x_coco/vfnet_r50_fpn_1x_coco_20201027-38db6f58.pth"
    (same,) = package(entry("vfnet_r50_fpn_1x_coco", Published="a", Weights=weights, Metadata={"Epochs": 9}))
    assert index.find("vfnet_r50_fpn_1x_coco") is same
    theirs = index.find("mmdet::vfnet/vfnet_r50_fpn_1x_coco")
    assert theirs.package == "mmdet" and theirs.weights == same.weights
    assert same.metadata == {**theirs.metadata, "Epochs": 9}
    (other,) = package(entry("vfnet_r50_fpn_1x_coco", Published="a", Weights="https://x.org/y.pth"))
    assert other.metadata == {}, "figures of other weights are not taken over"


def test_weights_that_come_with_the_package(package, tmp_path, monkeypatch):
    folder, content = tmp_path / ".mim/configs/paper", save({"x": torch.arange(3.0)})
    digits = sha256(content).hexdigest()[:8]
    (folder / f"net-{digits}.safetensors").write_bytes(content)
    listed = entry(Weights=f"configs/paper/net-{digits}.safetensors")
    listed["Results"][0]["Measured"] = {"Machine": "m", "Date": "2026-11-21", "Command": "c"}
    package(listed)
    monkeypatch.setenv("DCNZOO_OFFLINE", "1")
    file = zoo.download("net_1x")
    assert file.parent == folder
    assert load_file(file)["state_dict"]["x"].tolist() == [0, 1, 2]
    copy = zoo.download("net_1x", tmp_path / "out")
    assert copy.parent == tmp_path / "out" and copy.read_bytes() == content
    file.write_bytes(content[:-1])
    with pytest.raises(ChecksumError, match=digits):
        zoo.download("net_1x")
    with pytest.raises(CheckpointError, match=file.name):
        load_file(file)
    file.unlink()  # wheels do not contain all weights
    with pytest.raises(UserError, match=f"^{file}: .*they are in dcnzoo's repository"):
        zoo.download("net_1x")
