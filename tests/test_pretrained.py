"""Backbone weights by name, without torchvision and without network."""

import re
import sys

import pytest
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as loading

import dcnzoo.models  # noqa: F401  applies the patches
from dcnzoo.openmmlab.packages import mim_folder
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.fetch import checksum_in_name

# the first weights (V1) in torchvision.models
TORCHVISION = {
    "resnet18": "f37072fd",
    "resnet50": "0676ba61",
    "resnext50_32x4d": "7cdf4587",
    "wide_resnet50_2": "95faca4d",
    "vgg16_bn": "6c64b313",
    "mobilenet_v2": "b0353104",
}


def test_names(asked):
    def ask(*names):
        asked.clear()
        for name in names:
            CheckpointLoader.load_checkpoint(name, logger="silent")
        return asked

    for name, digits in TORCHVISION.items():
        names = (f"torchvision://{name}", f"modelzoo://{name}", f"torchvision://{name}.imagenet1k_v1")
        assert ask(*names) == [f"https://download.pytorch.org/models/{name}-{digits}.pth"] * 3
    address = "https://download.openmmlab.com/pretrain/third_party/resnext101_32x4d-a5af3160.pth"
    assert ask("open-mmlab://resnext101_32x4d", "openmmlab://resnext101_32x4d") == [address] * 2
    # every name in MMDetection's configs
    names = set()
    for config in mim_folder("mmdet").glob("configs/**/*.py"):
        names |= set(re.findall(r"(?:torchvision|open-mmlab)://[\w./-]+", config.read_text(encoding="utf-8")))
    names = {name for name in names if not name.endswith("xxx")}
    assert len(names) > 30
    assert len(ask(*names)) == len(names) and all(map(checksum_in_name, asked))


@pytest.fixture
def asked(monkeypatch):
    """The requested URLs. Nothing is downloaded."""
    found = []
    monkeypatch.setattr(loading, "load_url", lambda url, **kwargs: found.append(url) or {"url": url})
    monkeypatch.setitem(sys.modules, "torchvision", None)
    return found


@pytest.mark.parametrize("scheme", ["torchvision", "modelzoo", "open-mmlab", "openmmlab", "mmcls"])
def test_unknown_name(asked, scheme):
    name = f"{scheme}://resnet5O"
    with pytest.raises(UserError, match=f"^{name}: expected the name of published weights"):
        CheckpointLoader.load_checkpoint(name, logger="silent")
    assert asked == []
