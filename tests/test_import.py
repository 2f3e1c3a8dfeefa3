"""Imports: which packages each part of dcnzoo needs, and that it runs where only those are installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

OPENMMLAB = ("mmengine", "mmcv", "mmdet")

# and what they depend on
DATA = {
    *("numpy", "PIL", "shapely", "lxml", "pycocotools", "yaml"),
    *("click", "rich", "pygments", "markdown_it", "mdurl"),
}
TORCH = {
    *("torch", "functorch", "torchgen", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx"),
    *("numpy", "packaging", "sympy", "typing_extensions"),
}


def only(*packages: str) -> str:
    """Code after which Python finds only dcnzoo, these packages and its own, as in an environment of them."""
    return f"""
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        package = name.partition(".")[0]
        if package not in {("dcnzoo", *packages)} and package not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent)
"""


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_command(packages: set[str], *arguments: object) -> str:
    """``python -m dcnzoo`` in an environment of these packages."""
    command = f"import runpy\nsys.argv = {['dcnzoo', *map(str, arguments)]}\n"
    return run(f"{only(*packages)}{command}runpy.run_module('dcnzoo', run_name='__main__')")


@pytest.mark.parametrize(
    "statement",
    [
        "import dcnzoo",
        "from dcnzoo.ops import deform_conv2d",
        "from dcnzoo.layers import DeformConv2d",
        "from dcnzoo.compat import ndconv, torchvision, tvdcn",
        "from dcnzoo.compat.mmcv import DeformConv2dPack",
        "from dcnzoo import from_deformable, to_deformable",
        "from dcnzoo.backbones import intern_image",
    ],
)
def test_needs_torch_only(statement):
    run(f"{only(*TORCH)}\n{statement}")
    imported = f"[name for name in {OPENMMLAB} if name in sys.modules]"
    assert run(f"import sys\n{statement}\nprint({imported})").strip() == "[]"


def test_backbones_need_torch_only():
    code = """
import torch
from dcnzoo.backbones.intern_image import InternImage
network = InternImage(channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8])
print([list(level.shape) for level in network(torch.zeros(1, 3, 64, 64))])
"""
    shapes = [[1, 16, 16, 16], [1, 32, 8, 8], [1, 64, 4, 4], [1, 128, 2, 2]]
    assert run(only(*TORCH) + code).strip() == str(shapes)


class TestDataNeedsNoTorch:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        """Images with a box each in VOC's, YOLO's and LabelMe's formats."""
        voc = (
            "<annotation><filename>{}.png</filename><size><width>32</width><height>24</height></size><object>"
            "<name>fig</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>5</ymin><xmax>10</xmax>"
            "<ymax>14</ymax></bndbox></object></annotation>"
        )
        shape = dict(label="fig", shape_type="rectangle", points=[[2, 4], [10, 14]])
        for name in ("JPEGImages", "Annotations", "images", "labels", "labelme"):
            (tmp_path / name).mkdir()
        (tmp_path / "data.yaml").write_text("names: [fig]\ntrain: images\n")
        for i in range(4):
            for images in ("JPEGImages", "images", "labelme"):
                Image.new("RGB", (32, 24)).save(tmp_path / images / f"{i}.png")
            (tmp_path / "Annotations" / f"{i}.xml").write_text(voc.format(i))
            (tmp_path / "labels" / f"{i}.txt").write_text(f"0 {6 / 32} {9 / 24} {8 / 32} {10 / 24}\n")
            content = dict(imagePath=f"{i}.png", imageWidth=32, imageHeight=24, shapes=[shape])
            (tmp_path / "labelme" / f"{i}.json").write_text(json.dumps(content))
        return tmp_path

    @pytest.mark.parametrize(
        ("kind", "source", "images"),
        [("voc", ".", "JPEGImages"), ("yolo", "data.yaml", "images"), ("labelme", "labelme", "labelme")],
    )
    def test_convert_check_split(self, kind, source, images, folder):
        out, train, val = (folder / f"{name}.json" for name in ("all", "train", "val"))
        run_command(DATA, "data", "convert", kind, folder / source, out)
        content = json.loads(out.read_text())
        assert [entry["bbox"] for entry in content["annotations"]] == [[2, 4, 8, 10]] * 4
        prefix = folder if "/" in content["images"][0]["file_name"] else folder / images
        run_command(DATA, "data", "check", out, "--images", prefix)
        run_command(DATA, "data", "split", out, train, val)
        assert [len(json.loads(part.read_text())["images"]) for part in (train, val)] == [3, 1]

    def test_generate(self, tmp_path):
        """The shapes are drawn with OpenCV."""
        statement = "from dcnzoo.data.shapes import ShapesSpec, make_shapes"
        call = f"make_shapes({str(tmp_path / 'x')!r}, ShapesSpec(train=1, val=1))"
        run(f"{only('numpy', 'cv2')}{statement}\n{call}")
        assert len(json.loads((tmp_path / "x/annotations/train.json").read_text())["images"]) == 1


def test_import_dcnzoo_is_light():
    assert run("import sys, dcnzoo; print('torch' in sys.modules)").strip() == "False"


def test_what_dcnzoo_has():
    code = "import dcnzoo; dcnzoo.to_deformable, dcnzoo.from_deformable; dcnzoo.nothing"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == "AttributeError: module 'dcnzoo' has no attribute 'nothing'"


def test_models_without_mmdet():
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "mmdet" else find(name, *package)
sys.modules["mmdet"] = None  # `import mmdet` raises ModuleNotFoundError
import dcnzoo.models
from mmengine.registry import MODELS
print(MODELS.get("DCNv2").__module__, sorted(dcnzoo.models.__all__))
"""
    where, names = run(code).split("\n")[0].split(" ", 1)
    assert where == "dcnzoo.openmmlab.models.dcn"
    assert "'DCNv2'" in names and "'InternImage'" in names and "'ResNet'" not in names


def test_env():
    result = subprocess.run(
        [sys.executable, "-m", "dcnzoo", "env"], capture_output=True, text=True, check=True
    )
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    import torch

    from dcnzoo.ops import _library

    assert lines["torch"].strip() == torch.__version__
    assert lines["cpu operators"].strip() == str(_library.loaded["cpu"])
    assert lines["mmcv._ext"].split()[0] in ("dcnzoo's,", "mmcv's,")
