"""Options of an export are checked before its work."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import dcnzoo
from dcnzoo.export.options import ExportOptions, Int8
from dcnzoo.export.result import ExportResult
from dcnzoo.openmmlab.export import export as export_module
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import write_text
from tests.helpers.commands import error_of

pytest.importorskip("onnx")

MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
PICTURE = Path(__file__).parents[1] / "data" / "color.jpg"
VALID = (
    {}, {"shape": (240, 320)}, {"shape": [240, np.int64(320)]}, {"precision": "float16"},
    {"force": True},
    {"opset_version": 21}, {"deform_conv": "gatherelements"}, {"raw_outputs": True}, {"verify": False},
    {"metadata": {"author": "me", "dcnzoos": "a word"}}, {"img_shape": None},
)  # fmt: skip
WRONG = (
    ("shape", "240"), ("shape", 240), ("shape", (240.0, 320)), ("shape", (True, 320)), ("shape", (0, 320)),
    ("shape", (240,)), ("precision", "fp16"), ("precision", 16), ("opset_version", 24),
    ("deform_conv", 2), ("deform_conv", "gridsample"),
    ("metadata", {"author": 1}), ("metadata", {"dcnzoo.classes": "[]"}), ("metadata", {"dcnzoo": "{}"}),
    ("img_shape", True), ("verify", "absent.png"),
)  # fmt: skip


@pytest.mark.parametrize("options", VALID)
def test_valid_options(options, tmp_path):
    ExportOptions(tmp_path / "model.onnx", **options).check()
    ExportOptions(os.fspath(tmp_path / "new" / "model.onnx"), **options).check()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_options_are_named(name, value, tmp_path):
    with pytest.raises((ValueError, UserError), match=f"^{name}: expected"):
        ExportOptions(tmp_path / "model.onnx", **{name: value}).check()


def test_raw_outputs_have_no_input_img_shape(tmp_path):
    with pytest.raises(ValueError, match=r"^img_shape: expected"):
        ExportOptions(tmp_path / "model.onnx", raw_outputs=True, img_shape="required")


def test_int8_reads_no_pictures_of_the_system(tmp_path):
    """Those of archives from a Mac and of a NAS are not the user's."""
    for name in ("a.jpg", "b/c.jpg", "__MACOSX/._a.jpg", "@eaDir/a.jpg/thumb.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert Int8(tmp_path).files == [tmp_path / "a.jpg", tmp_path / "b" / "c.jpg"]


def test_wrong_options_of_int8_are_named():
    with pytest.raises(ValueError, match=r"^count: expected"):
        Int8("photos", 0)


@pytest.mark.parametrize("path", ["model", "new/folder/model.onnx"])
def test_wrong_paths(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, UserError), match=r"^path: expected"):
        ExportOptions(path).check()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected a new file.*model.onnx"),
        (["--force", "--test-img", "absent.png"], "absent.png"),
        (["--force", "--test-img", "."], "--test-img: expected a file"),
        (["--force", "--fp16", "--test-img", PICTURE], "verify: expected no picture with"),
        (["--force", "--test-img", PICTURE, "--skip-postprocess"], "raw.outputs|skip-postprocess"),
        (["--force", "--int8", "."], "int8: expected a folder of images"),
        (["--force", "--deform-conv", "native", "--opset-version", 18], "expected 19 to 23"),
    ],
)
def test_the_command_checks_its_options_before_a_model_is_loaded(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dcnzoo, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "model.onnx").write_text("of somebody")
    error = error_of("export", MODEL, "--out", "model.onnx", *options)
    assert re.search(message, error)


def test_a_file_in_float16_is_not_compared():
    assert "--verify: not allowed with --fp16" in error_of("export", MODEL, "--fp16", "--verify", status=2)


@pytest.mark.parametrize("options", [{}, {"precision": Int8(Path(__file__).parents[1] / "data")}])
def test_the_package_that_runs_the_file_is_named_before_the_work(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match="onnxruntime"):
        ExportOptions(tmp_path / "model.onnx", **options).check()
    ExportOptions(tmp_path / "model.onnx", verify=False).check()


def test_an_existing_file_and_the_pictures_are_checked_before_the_work(tmp_path, monkeypatch):
    def write(model, images, options, **_):
        write_text(options.path, "a model")
        return (Path(options.path),)

    monkeypatch.setattr(export_module, "write_detector", write)
    detector = dcnzoo.load(MODEL)
    path, damaged = tmp_path / "model.onnx", tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"damaged\.png"):
        detector.export(path, verify=damaged)
    with pytest.raises(ValueError, match=r"damaged\.png"):  # once, after the trace
        detector.export(path, precision=Int8(tmp_path))
    assert not path.exists()
    path.write_text("of somebody")
    with pytest.raises(UserError, match=r"expected a new file.*model\.onnx"):
        detector.export(path)
    assert path.read_text() == "of somebody"
    detector.export(path, force=True, verify=False)
    assert path.read_text() == "a model"


def test_a_file_that_does_not_agree_replaces_nothing(tmp_path, monkeypatch):
    def write(model, images, options, **_):
        write_text(options.path, "a wrong model")
        return (Path(options.path),)

    def differs(*_):
        raise ValueError("verify: expected 99 % of the detections to agree")

    monkeypatch.setattr(export_module, "write_detector", write)
    monkeypatch.setattr(export_module, "verify", differs)
    monkeypatch.setattr(ExportResult, "load", lambda *_, **__: None)
    detector = dcnzoo.load(MODEL)
    for path in (tmp_path / "model.onnx", tmp_path / "new" / "model.onnx"):
        with pytest.raises(ValueError, match="verify: expected 99 %"):
            detector.export(path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.onnx").write_text("a right model")
    with pytest.raises(ValueError, match="verify: expected 99 %"):
        detector.export(tmp_path / "model.onnx", force=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["a right model"]
    detector.export(tmp_path / "model.onnx", force=True, verify=False)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["a wrong model"]
