"""Imports: each part of dcnzoo runs if only the packages that it needs are installed."""

import pytest

from tests.helpers.formats import FORMATS, fruits, objects, objects_of
from tests.helpers.processes import OPENMMLAB, only, python, python_with_torch
from tests.helpers.processes import run_code as run

# packages that each part needs, with their dependencies
DATA = {
    *("numpy", "PIL", "shapely", "pycocotools", "yaml", "msgspec"),
    *("click", "rich", "pygments", "markdown_it", "mdurl"),
    *(
        "matplotlib",
        "mpl_toolkits",
        "contourpy",
        "cycler",
        "dateutil",
        "fontTools",
        "kiwisolver",
        "packaging",
        "pyparsing",
    ),
    *("jinja2", "markupsafe", "six"),
}
TORCH = {
    *("torch", "functorch", "torchgen", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx"),
    *("numpy", "packaging", "sympy", "typing_extensions"),
}


NEED_TORCH_ONLY = """
import dcnzoo
from dcnzoo.ops import deform_conv2d
from dcnzoo.layers import DeformConv2d
from dcnzoo.compat.mmcv import DeformConv2dPack
from dcnzoo import to_deformable
from dcnzoo.backbones.intern_image import InternImage
"""


def test_needs_torch_only():
    code = """
import torch
network = InternImage(channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8])
print([list(level.shape) for level in network(torch.zeros(1, 3, 64, 64))])
"""
    shapes = [[1, 16, 16, 16], [1, 32, 8, 8], [1, 64, 4, 4], [1, 128, 2, 2]]
    assert python_with_torch(f"{only(*TORCH)}{NEED_TORCH_ONLY}{code}").stdout.strip() == str(shapes)


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("infer --demo", "mmdet"),
        ("zoo list", "mmdet"),
        ("export CONFIG CHECKPOINT", "mmdet,onnx"),
        ("bench model.onnx", "onnx"),
        ("data convert . out", "data"),
    ],
)
def test_commands_without_their_extra_name_it(line, extra, tmp_path):
    """The error needs no torch. numpy, requests and rich come with several extras."""
    (tmp_path / "model.onnx").touch()
    command = f"import os, runpy\nos.chdir({str(tmp_path)!r})\nsys.argv = ['dcnzoo', *{line.split()}]\n"
    code = f"{only('click', 'filelock')}{command}runpy.run_module('dcnzoo', run_name='__main__')"
    (message,) = python("-c", code, status=1).stderr.splitlines()
    assert f"[{extra}]" in message


def test_imports_no_openmmlab_though_it_is_there():
    imported = f"[name for name in {OPENMMLAB} if name in sys.modules]"
    assert python_with_torch(f"import sys{NEED_TORCH_ONLY}print({imported})").stdout.strip() == "[]"


def test_data_needs_no_torch(tmp_path):
    """The commands for all formats and the drawing of shapes run without torch, in one process."""
    lines = [only(*DATA, "cv2"), "import os", "from dcnzoo.cli import commands"]
    lines += ["from dcnzoo.data.shapes import ShapesSpec, make_shapes", f"os.chdir({str(tmp_path)!r})"]
    lines.append("make_shapes('shapes', ShapesSpec(train=1, val=1))")
    for heading, write in FORMATS.items():
        folder = tmp_path / heading
        write(folder / "fruits", parts := fruits(folder / "drawn"))
        lines.append(f"os.chdir({str(folder)!r})")
        for command in ("'convert', 'fruits', '.'", "'show', 'fruits'"):
            lines.append(f"assert not commands.main(['data', {command}], standalone_mode=False)")
    lines.append("commands.main(['data', 'check', 'train.json', '--as-mmdetection'])")
    run("\n".join(lines))
    assert (tmp_path / "shapes/annotations/train.json").is_file()
    for heading in FORMATS:
        files = (tmp_path / heading / "train.json", tmp_path / heading / "val.json")
        assert (tmp_path / heading / "sheet.html").is_file()
        assert objects(*files) == set().union(*map(objects_of, parts.values()))


def test_subpackages_are_imported_on_access():
    code = "import sys, dcnzoo; dcnzoo.export.Detector; dcnzoo.data; print('torch' in sys.modules)"
    assert run(code).strip() == "False"
    python_with_torch("import dcnzoo; dcnzoo.ops.nms")


def test_every_public_name_is_an_attribute():
    """``dir`` lists it, and neither the import nor ``dir`` loads what it needs."""
    names = ("train", "test", "to_deformable", "deform_conv2d", "zoo", "report", "models")
    packages = ("torch", "numpy", *OPENMMLAB, "dcnzoo.zoo", "dcnzoo.report")
    listed = f"{{*{names}, *dcnzoo.__all__}} <= {{*dir(dcnzoo)}}"
    code = f"import sys, dcnzoo; print({listed}, [name for name in {packages} if name in sys.modules])"
    assert run(code).strip() == "True []"
    python_with_torch(f"import dcnzoo\nfor name in {names}: getattr(dcnzoo, name)")


def test_models_without_mmdet():
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "mmdet" else find(name, *package)
sys.modules["mmdet"] = None  # `import mmdet` raises ModuleNotFoundError
import dcnzoo.openmmlab
from mmengine.registry import MODELS
dcnzoo.openmmlab.setup()
where = MODELS.get("DCNv2").__module__
import dcnzoo.models
print(where, sorted(dcnzoo.models.__all__))
"""
    where, names = python_with_torch(code).stdout.split("\n")[0].split(" ", 1)
    assert where == "dcnzoo.openmmlab.models.dcn"
    assert "'DCNv2'" in names and "'InternImage'" in names and "'ResNet'" not in names


def test_import_changes_nothing_of_others():
    """The import adds one finder, for mmcv._ext, behind all others."""
    code = """
import sys, warnings
before, path, hooks = list(warnings.filters), list(sys.meta_path), list(sys.path_hooks)
import dcnzoo
from dcnzoo.compat import mmcv, patches
assert sys.meta_path == [*path, mmcv._Finder] and sys.path_hooks == hooks
assert warnings.filters == before and not patches.active()
import torch
export = torch.onnx.export
assert torch.onnx.export.__module__.startswith("torch.onnx")
import dcnzoo.layers
assert torch.onnx.export is export
"""
    python_with_torch(code)
