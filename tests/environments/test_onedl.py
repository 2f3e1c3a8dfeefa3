"""The maintained forks of OpenMMLab's packages: ``nox -s onedl``."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from dcnzoo.compat.mmcv import OWN_FILE
from dcnzoo.diagnosis import FORKS, Installation

try:
    version("onedl-mmengine")
except PackageNotFoundError:
    pytest.skip("onedl-mmengine is not installed here", allow_module_level=True)

from benchmarks.coverage import test_mmdet

FAMILIES = ["atss", "carafe", "crowddet", "dcn", "deformable_detr", "dyhead", "mask_rcnn", "rtmdet", "solo"]
FAMILIES += ["ssd", "yolo"]


def test_these_are_the_forks():
    import mmcv._ext
    import mmdet
    import mmengine

    installed = Installation.here().packages
    imported = {"onedl-mmengine": mmengine, "onedl-mmcv": mmcv, "onedl-mmdetection": mmdet}
    assert set(installed) == set(FORKS)
    assert {name: module.__version__ for name, module in imported.items()} == installed
    assert mmcv._ext.__file__ == str(OWN_FILE), "built without its operators"


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    assert test_mmdet.result_of(family) == "ok"
