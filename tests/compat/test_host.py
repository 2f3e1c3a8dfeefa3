"""``dcnzoo.compat.provide``, its names, its variable, and ``dcnzoo run``."""

import importlib

import pytest

from dcnzoo.compat import host

from ..processes import python

NAMES = [name for name, each in host.known().items() if each.provides and name != "mmcv._ext"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_function_is_named(provide, package, name):
    if "." in name:
        package(f"{name.partition('.')[0]}.config")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    provide(name)
    compiled = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"'{name}' has no attribute 'ml_nms'.*dcnzoo"):
        compiled.ml_nms  # noqa: B018


@pytest.mark.parametrize("names", [(), ("DCNv5",), ("DCNv3", "mmcv")])
def test_wrong_names_list_the_names(provide, names):
    with pytest.raises(RuntimeError) as raised:
        provide(*names)
    assert all(name in str(raised.value) for name in (*host.known(), *names[-1:]))
    assert not host.status(), "none of them is provided"


@pytest.mark.parametrize("name", ["MultiScaleDeformableAttention", "groundingdino._C"])
def test_an_installed_module_stays_in_use(provide, package, name):
    package(name, "real = True")
    project = "groundingdino.models.GroundingDINO.ms_deform_attn"
    package(project, "multi_scale_deformable_attn_pytorch = from_project = object()")
    provide(name)
    assert importlib.import_module(name).real
    assert host.status()[name].startswith("installed, ")
    module = importlib.import_module(project)
    assert module.multi_scale_deformable_attn_pytorch is module.from_project


def test_status(provide):
    provide("MultiScaleDeformableAttention", "groundingdino._C")
    assert host.status() == {
        "MultiScaleDeformableAttention": "dcnzoo's",
        "groundingdino._C": "not found: No module named 'groundingdino'",
    }


def test_the_environment_names_them():
    code = "import dcnzoo, sys\nfrom importlib.util import find_spec\nassert 'torch' not in sys.modules\n"
    code += "print(find_spec('DCNv3').origin, find_spec('_ext').origin)"
    output = python("-c", code, DCNZOO_PROVIDE="DCNv3, _ext").stdout
    assert "compiled.py" in output and "dcn_v2.py" in output
    message = "DCNZOO_PROVIDE: expected one or more of these names, got 'dcnv4'"
    result = python("-c", "import dcnzoo", status=1, DCNZOO_PROVIDE="DCNv3,dcnv4")
    assert f"RuntimeError: {message}" in result.stderr
    result = python("-m", "dcnzoo", "doctor", status=1, DCNZOO_PROVIDE="dcnv4")
    assert result.stderr.startswith(f"error: {message}"), "one line and the names, no traceback"


def test_run(tmp_path):
    """``dcnzoo run``: a program without dcnzoo keeps its arguments, its import path and its errors."""
    (tmp_path / "helper.py").write_text("import MultiScaleDeformableAttention as MSDA\n")
    script = tmp_path / "main.py"
    script.write_text(
        "import sys\nfrom helper import MSDA\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv, MSDA.ms_deform_attn_forward.__name__, 'colorsys' in sys.modules)\n"
        "    import torch\n"
        "    print(torch.nn.Linear(2, 2).cuda()(torch.ones(2).to('cuda')).device)\n"
        "    open('no such file')\n"
    )
    command = ("-m", "dcnzoo", "run", "--provide", "MultiScaleDeformableAttention")
    command += ("--cpu", "--import", "colorsys", str(script))
    other = tmp_path / "current folder"
    other.mkdir()
    (other / "helper.py").write_text("")  # must not hide the module beside the script
    result = python(*command, "--provide", "mine", "-m", "x", status=1, cwd=other)
    lines = [f"{[str(script), '--provide', 'mine', '-m', 'x']} ms_deform_attn_forward True", "cpu"]
    assert result.stdout.splitlines() == lines, result.stderr
    assert "CUDA calls" in result.stderr
    assert "Traceback" in result.stderr and "main.py" in result.stderr
