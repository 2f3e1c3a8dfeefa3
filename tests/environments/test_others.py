"""mmpretrain without MMDetection, and families of MMDetection that need other packages: ``nox -s others``."""

from importlib.util import find_spec

import pytest

if find_spec("mmpretrain") is None:
    pytest.skip("mmpretrain is not installed here", allow_module_level=True)

from benchmarks.coverage import test_mmdet

from ..test_import import run


def test_mmdet_is_not_needed():
    code = """
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "mmdet":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent)
from importlib import util
find = util.find_spec
util.find_spec = lambda name, *package: None if name == "mmdet" else find(name, *package)
import dcnzoo.models
from mmpretrain.registry import MODELS
backbone = MODELS.build(dict(type="mmpretrain.ResNet", depth=18, dcn=True))
print(sum(type(m) is dcnzoo.models.DCNv2 for m in backbone.modules()), "mmdet" in sys.modules)
"""
    assert run(code).splitlines()[-1] == "6 False"


FAMILIES = (
    *("boxinst", "bytetrack", "convnext", "deepsort", "glip", "grounding_dino", "lad", "mm_grounding_dino"),
    *("ocsort", "paa", "reid", "sort", "strongsort", "timm_example"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    assert test_mmdet.result_of(family) == "ok"
