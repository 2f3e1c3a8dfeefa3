"""The kinds of the argument MODEL, and the mistakes in it."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import dcnzoo
import dcnzoo.models  # before mmdet, which needs mmcv.ops
from dcnzoo import zoo
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import write_text
from dcnzoo.zoo.source import resolve
from tests.helpers.demo import PLAIN

SHAPES = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
OURS = (zoo.find(SHAPES).config, zoo.find(SHAPES).weights[0])
THEIRS = zoo.find("mmdet::dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco")
MMDET = THEIRS.config.parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work directories ``best``, ``last``, ``none`` (without checkpoints), and files beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("best", "last", "none"):
        work = tmp_path / name
        (work / "20260101_000000/vis_data").mkdir(parents=True)  # the log
        for number, config in enumerate(("old.py", "new.py")):
            shutil.copy(PLAIN, work / config)
            os.utime(work / config, (number, number))
        if name != "none":
            for checkpoint in ("epoch_1.pth", "epoch_2.pth"):
                (work / checkpoint).touch()
            (work / "last_checkpoint").write_text("/moved/since/epoch_2.pth")
    (tmp_path / "best/best_coco_bbox_mAP_epoch_1.pth").touch()
    (tmp_path / "moved/20260101_000000/vis_data").mkdir(parents=True)
    shutil.copy(PLAIN, tmp_path / "moved/20260101_000000/vis_data/config.py")
    (tmp_path / "files").mkdir()
    for name in ("files/weights.pth", "files/m.onnx", "own.py"):
        (tmp_path / name).touch()
    (tmp_path / "files/setup.py").write_text("from setuptools import setup\n\nsetup()\n")  # no config
    return tmp_path


@pytest.mark.parametrize(
    ("model", "checkpoint", "config", "weights"),
    [
        ("best", None, "best/new.py", "best/best_coco_bbox_mAP_epoch_1.pth"),
        ("best", "best", "best/new.py", "best/best_coco_bbox_mAP_epoch_1.pth"),
        ("best", "last", "best/new.py", "best/epoch_2.pth"),
        ("best", "files/weights.pth", "best/new.py", "files/weights.pth"),
        ("last", None, "last/new.py", "last/epoch_2.pth"),
        ("~/last", None, "last/new.py", "last/epoch_2.pth"),
        (Path("last"), Path("files/weights.pth"), "last/new.py", "files/weights.pth"),
        ("none", None, "none/new.py", None),
        ("none", "https://x/y.pth", "none/new.py", "https://x/y.pth"),
        ("moved", None, "moved/20260101_000000/vis_data/config.py", None),
        ("last/epoch_1.pth", None, "last/new.py", "last/epoch_1.pth"),
        ("own.py", None, "own.py", None),
        ("./own.py", "~/files/weights.pth", "own.py", "files/weights.pth"),
        (PLAIN, None, PLAIN, None),
        (SHAPES, None, *OURS),
        (SHAPES, "files/weights.pth", OURS[0], "files/weights.pth"),
        (f"{SHAPES}.py", None, *OURS),
        (f"dcnzoo::demo/{SHAPES}.py", None, *OURS),
        (THEIRS.id, None, THEIRS.config, THEIRS.weights[0]),
        ("mmdet::_base_/models/ssd300.py", None, MMDET / "_base_/models/ssd300.py", None),
    ],
)
def test_every_kind(folder, model, checkpoint, config, weights):
    source = resolve(model, checkpoint)
    assert source.config.resolve() == (folder / config).resolve()
    assert bool(source.weights or source.published) == (weights is not None)
    if weights is not None and "://" in weights:
        assert source.published == weights and source.weights is None
    elif weights is not None:
        assert Path(source.weights or source.published).resolve() == (folder / weights).resolve()
    path = Path(model).expanduser()
    folder = path if path.is_dir() else path.parent if path.suffix == ".pth" else None
    assert source.work_dir == folder


@pytest.mark.parametrize(
    ("model", "checkpoint", "message"),
    [
        ("", None, "model: expected a name"),
        (None, None, "model: expected a name"),
        (3, None, "model: expected a name"),
        ("files", None, "model: .* found no config"),
        ("nowhere.py/", None, "nowhere"),
        ("nowhere/x.py", None, "model: .*nowhere/x.py"),
        ("files/weights.pth", None, "; checkpoint=FILE takes "),
        ("files/m.onnx", None, "; checkpoint=FILE takes "),
        ("mask-rcnn_r14-mdconv_fpn_8e_shape", None, f"closest names: .*{SHAPES}"),
        ("mmdet::nowhere.py", None, "mmdet::nowhere.py"),
        (SHAPES, "best", "checkpoint: .*best"),
        (SHAPES, "", "checkpoint: expected a file"),
        (SHAPES, "nowhere.pth", "checkpoint: .*nowhere.pth"),
        ("last", "best", "checkpoint: expected a best one"),
        ("none", "last", "checkpoint: expected a last one"),
        ("last/epoch_1.pth", "files/weights.pth", "checkpoint: expected none .*files/weights.pth"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_every_mistake(model, checkpoint, message):
    with pytest.raises(UserError, match=message):
        resolve(model, checkpoint)


@pytest.mark.usefixtures("folder")
def test_a_copied_work_directory_is_its_own(tmp_path):
    """The config in a copied work directory has the path of the original."""
    for config in Path("last").glob("*.py"):
        text = f"_base_ = 'dcnzoo::demo/{SHAPES}.py'\nwork_dir = '{tmp_path}/last'\n"
        write_text(config, text)
    shutil.copytree("last", "copy")
    for model in ("copy", "copy/epoch_1.pth", "copy/old.py"):
        assert resolve(model).recipe().cfg.work_dir == "copy"
    assert resolve("copy").recipe({"work_dir": "other"}).cfg.work_dir == "other"
    shutil.copy("copy/new.py", "own.py")
    assert resolve("own.py").recipe().cfg.work_dir == str(tmp_path / "last")


@pytest.mark.usefixtures("folder")
def test_dates_of_files_decide_nothing():
    """A copy or a clone changes dates. A checkpoint has the name of its config."""
    Path("best/best_of_mine.pth").touch()
    Path("best/best_coco_bbox_mAP_epoch_10.pth").touch()
    assert resolve("best").weights == Path("best/best_coco_bbox_mAP_epoch_10.pth")
    os.utime("best/best_coco_bbox_mAP_epoch_10.pth", (0, 0))
    assert resolve("best").weights == Path("best/best_coco_bbox_mAP_epoch_10.pth")
    assert resolve("best").config.name == "new.py"
    meta = {"experiment_name": "old_20260101_000000"}
    torch.save({"state_dict": {}, "meta": meta}, "best/best_coco_bbox_mAP_epoch_10.pth")
    for model in ("best", "best/best_coco_bbox_mAP_epoch_10.pth"):
        assert resolve(model).config == Path("best/old.py")


@pytest.mark.parametrize("template", ["epoch_{}.pth", "e{}-v2.pth", "{}_r50.pth"])
@pytest.mark.parametrize("out", [None, "out"])
def test_the_best_of_a_training_with_own_names(folder, template, out):
    hook = {"type": "CheckpointHook", "filename_tmpl": template, "out_dir": out}
    text = f"_base_ = {PLAIN!r}\ndefault_hooks = dict(checkpoint={hook})\n"
    write_text(folder / "none/new.py", text)
    files = folder / (out or ".") / "none"
    files.mkdir(parents=True, exist_ok=True)
    best = files / f"best_coco_bbox_mAP_{template.format(2)}"
    for path in (best, files / template.format(2), files / template.format(12)):
        path.touch()
    (folder / "none/last_checkpoint").write_text(str(files / template.format(12)))
    for checkpoint in (None, "best"):
        assert resolve("none", checkpoint).weights.samefile(best)
    assert resolve("none", "last").weights.samefile(files / template.format(12))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("model", ["last", "last/epoch_1.pth"])
def test_a_program_beside_weights_is_not_run(model):
    """A folder from elsewhere, such as a repository of the Hub, has no log of a training."""
    shutil.rmtree("last/20260101_000000")
    with pytest.raises(UserError, match=r"^model: .*the program (old|new)\.py.*model=last/.*checkpoint="):
        resolve(model)
    assert resolve("last/new.py", "last/epoch_1.pth").weights == Path("last/epoch_1.pth")


@pytest.mark.usefixtures("folder")
def test_weights_are_found_when_they_are_read(capsys):
    assert resolve("best").read_weights() == Path("best/best_coco_bbox_mAP_epoch_1.pth")
    assert capsys.readouterr().out.count("best/best_coco_bbox_mAP_epoch_1.pth, the best") == 1
    assert resolve(SHAPES).read_weights() == Path(zoo.find(SHAPES).weights[0])
    assert resolve(PLAIN).entry == zoo.find(Path(PLAIN).stem) and resolve("own.py").entry is None
    Path("last/epoch_2.pth").unlink()
    for model, message in (("last", "last/epoch_2.pth"), ("own.py", "with weights for own.py")):
        with pytest.raises(UserError, match=f"^checkpoint: .*{message}"):
            resolve(model).read_weights()


@pytest.mark.parametrize("name", ["files/m.onnx", "~/files/m.onnx", "https://host/m.onnx"])
def test_an_exported_file_as_checkpoint(folder, monkeypatch, name):
    tested = []
    monkeypatch.setattr("dcnzoo.zoo.source.fetch", lambda url: folder / "files/m.onnx")
    monkeypatch.setattr(
        "dcnzoo.openmmlab.runs.execute.test",
        lambda recipe, options, weights, *drawing: tested.append((options.exported, weights)),
    )
    dcnzoo.test(PLAIN, name)
    ((file, weights),) = tested
    assert file.samefile(folder / "files/m.onnx") and weights is None
