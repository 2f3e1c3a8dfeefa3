"""Configs of MMDetection and dcnzoo build, predict and train: one per family, and deformable ones.

``make test`` runs a few of different kinds; ``make test-all`` runs every config of docs/deformable_configs.md
and every family.
"""

import argparse
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools" / "analysis"))

import deformable_configs  # noqa: E402
import family_trials  # noqa: E402
import mmdet_coverage  # noqa: E402

# They need packages that `make setup` does not install. `make test-others` runs them, except misc.
NEED_MORE = {
    *("boxinst", "bytetrack", "convnext", "deepsort", "glip", "grounding_dino", "lad", "misc"),
    *("mm_grounding_dino", "ocsort", "paa", "reid", "sort", "strongsort", "timm_example"),
}
FAMILIES = {family: name for family, name in mmdet_coverage.families() if family not in NEED_MORE}
QUICK_FAMILIES = ("atss", "yolox")
DEFORMABLE = re.findall(
    r"^\| `(.+)` \| .+ \| (.+) \|$", (ROOT / "docs/deformable_configs.md").read_text(), re.MULTILINE
)
QUICK_CONFIGS = {
    "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
    "mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "mmdet::vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py",
}


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in QUICK_FAMILIES else pytest.mark.slow) for name in FAMILIES],
)
def test_family(family):
    assert mmdet_coverage.apart(FAMILIES[family]) == "ok"


@pytest.mark.parametrize(
    ("name", "result"),
    [pytest.param(*row, marks=() if row[0] in QUICK_CONFIGS else pytest.mark.slow) for row in DEFORMABLE],
)
def test_deformable_config(name, result):
    package = re.search(r"(\w+) is not installed", result)
    if package and not find_spec(package[1]):
        pytest.skip(f"{package[1]} is not installed")
    ((_, cfg, found, why_not),) = deformable_configs.deformable_configs([name])
    assert found and not why_not and deformable_configs.result_of(cfg) == "ok"


def test_stored_trials(tmp_path):
    """Results are reused; failed or all trials can be repeated; the page can list what was not tried."""
    parser = argparse.ArgumentParser()
    family_trials.add_arguments(parser, str(tmp_path / "results.json"))
    tried = []

    def rows(result, *options, version="1", families=("a", "b")):
        def trial(name):
            tried.append(name)
            return result

        chosen = [(name, f"{name}.py") for name in families]
        args = parser.parse_args(options)
        return [row[2] for row in family_trials.try_all(chosen, trial, args, {"torch": version}, {})]

    assert rows("error", families=["a"]) == ["error"]
    assert rows("ok", "--stored") == ["error", family_trials.UNTRIED] and tried == ["a.py"]
    assert rows("ok, fixed size") == ["error", "ok, fixed size"] and tried == ["a.py", "b.py"]
    assert rows("ok", "--failed") == ["ok", "ok, fixed size"] and tried[2:] == ["a.py"]
    assert rows("ok", "--again", families=["b"]) == ["ok"] and tried[3:] == ["b.py"]
    assert rows("error", version="2", families=["b"]) == ["error"] and tried[4:] == ["b.py"]
