"""Configs that train a model of the zoo on one's own COCO files."""

import json
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

import dcnzoo.models  # noqa: F401
from dcnzoo.data.reading import read
from dcnzoo.openmmlab.config.check import dicts
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.config_reader import has_size, scale_of
from dcnzoo.zoo.config_writer import BOXES, MASKS, SMALL_BOXES, SMALL_MASKS, Choice, plan
from dcnzoo.zoo.own_data import write
from tests.helpers.demo import DEFORMABLE

BOXES_CONFIG = "dcnzoo::dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def coco(tmp_path):
    three = (1, 2, 3)
    shape = dict(bbox=[1, 2, 8, 9], area=72, iscrowd=0, segmentation=[[1, 2, 9, 2, 9, 11, 1, 11]])
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in three],
        "annotations": [{"id": i, "image_id": i, "category_id": i, **shape} for i in three],
        "categories": [{"id": i, "name": f"class {i}"} for i in three],
    }
    for i in three:
        Image.new("RGB", (64, 48)).save(tmp_path / f"{i}.png")

    def write(change=None):
        changed = json.loads(json.dumps(content))
        if change is not None:
            change(changed)
        (tmp_path / "coco.json").write_text(json.dumps(changed))
        return tmp_path / "coco.json"

    return write


def write_config(file, out, **options):
    """Write a config whose training and validation have the same data."""
    splits = {name: read(file) for name in ("train", "val")}
    return write(plan(splits, Choice(**{"model": BOXES, **options}), Path(out)))


def heads(config):
    keys = ("num_classes", "num_things_classes")
    return [node[key] for _, node in dicts(config.model) for key in keys if node.get(key)]


def downloads(config):
    return [node for _, node in dicts(config.model) if node.get("checkpoint") or node.get("pretrained")]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (MASKS, [3, 3]),
        (BOXES, [3]),
        ("cascade-mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco", [3, 3, 3, 3]),  # three box heads in a list
        ("yolox_s_8xb8-300e_coco", [3]),  # a data set wrapped in another
        ("mask2former_r50_8xb2-lsj-50e_coco", [3, 3]),
        (DEFORMABLE, [3, 3]),
        (SMALL_BOXES, [3]),
    ],
)
def test_models(tmp_path, coco, model, expected):
    file = coco()
    file = write_config(file, tmp_path / "out", model=model)
    assert f"{Path(model).stem}.py" in file.read_text().splitlines()[0]
    config = Config.fromfile(file)
    assert heads(config) == expected
    if model == SMALL_BOXES:  # the weights of the model with a mask head
        assert f"{SMALL_MASKS}-" in config.load_from
    elif model == DEFORMABLE:
        assert config.get("load_from") is None
    else:
        assert config.load_from.startswith("https://")
    assert downloads(config) == [], "load_from has the weights of all of it"
    for loader, name in (
        ("train_dataloader", "train"),
        ("val_dataloader", "val"),
        ("test_dataloader", "val"),
    ):
        dataset = config[loader].dataset
        while "dataset" in dataset:
            dataset = dataset.dataset
        assert dataset.ann_file == str(file.with_name(f"{name}.json"))
        assert list(dataset.metainfo.classes) == ["class 1", "class 2", "class 3"]
    if "mask2former" in model:
        assert config.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 1.0, 0.1]
        assert config.model.panoptic_fusion_head.num_stuff_classes == 0
    if "cascade" in model:
        first, *_ = config.model.roi_head.bbox_head
        assert first.type == "Shared2FCBBoxHead" and first.loss_bbox.type == "SmoothL1Loss"


def test_a_warm_up_ends_within_the_training(tmp_path, coco):
    """COCO's warm-up has 500 iterations, but 12 epochs of two batches have only 24."""
    file = coco()
    written = write_config(file, tmp_path / "out", model=BOXES)
    warm_up, steps = Config.fromfile(written).param_scheduler
    assert (warm_up.type, warm_up.end, steps.milestones) == ("LinearLR", 2, [8, 11])
    written = write_config(file, tmp_path / "short", model=BOXES, epochs=3)
    assert Config.fromfile(written).param_scheduler[0].end == 2, "one has no second rate"


def test_choices_do_not_depend_on_each_other(tmp_path, coco):
    """Each changes its own settings; together, they change all of these."""
    file, choices = coco(), {"epochs": 5, "val_interval": 7, "size": 448, "flip": False}

    def written(**options):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        config = write_config(file, tmp_path / "out", model=SMALL_MASKS, **options)
        return {
            f"{path}.{key}": value
            for path, node in dicts(Config.fromfile(config)._cfg_dict)
            for key, value in node.items()
            if next(dicts(value), None) is None
        }

    plain = written()
    expected = {**plain}
    for name, value in choices.items():
        changed = {key: new for key, new in written(**{name: value}).items() if plain.get(key) != new}
        assert changed, name
        expected |= changed
    assert written(**choices) == expected


def test_classes_that_the_data_does_not_say(tmp_path, coco):
    """A config may have five classes, not ``CocoDataset``'s 80; heads with different numbers are an error."""
    file = coco()
    base = f"_base_ = {BOXES_CONFIG!r}\nmodel = dict(roi_head=dict(bbox_head=dict(num_classes=5)"
    (tmp_path / "one.py").write_text(base + "))")
    assert heads(Config.fromfile(write_config(file, "out", model="one.py"))) == [3]
    (tmp_path / "two.py").write_text(base[:-1] + ", loss_cls=dict(num_classes=7))))")
    with pytest.raises(UserError, match=r"two\.py: .*num_classes=80, .*num_classes=5, 7"):
        write_config(file, "not", model="two.py")
    assert not (tmp_path / "not").exists()


def boxes_only(content):
    for annotation in content["annotations"]:
        del annotation["segmentation"]


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        (boxes_only, MASKS, r"mask of every object.* 6 objects .*on a CPU"),
        (None, "mask-rcnn", "name of a model"),
        (None, "panoptic_fpn_r50_fpn_1x_coco", "CocoPanopticDataset"),
    ],
)
def test_config_mistakes(tmp_path, coco, change, model, message):
    with pytest.raises(UserError, match=message):
        write_config(coco(change), tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


def test_config_files_are_named(tmp_path, coco):
    (tmp_path / "notes.txt").write_text("a = 1")
    (tmp_path / "notes.py").write_text("a = 1")
    base = f"_base_ = {DEFORMABLE!r}\n"
    (tmp_path / "voc.py").write_text(f"{base}test_evaluator = dict(_delete_=True, type='VOCMetric')")
    for model, named in (
        ("notes.txt", r"model: .*notes\.txt"),
        ("notes.py", r"notes\.py: .*model"),
        ("voc.py", r"test_evaluator: expected a CocoMetric, got .*VOCMetric"),
    ):
        with pytest.raises(UserError, match=named):
            write_config(coco(), tmp_path / "out", model=model and str(tmp_path / model))
    assert not [*tmp_path.glob("out*")]


def test_settings_of_another_run_are_left_out(tmp_path, coco):
    """The config can be trained again, in a work directory of its own."""
    base = f"_base_ = {BOXES_CONFIG!r}\nwork_dir = 'others'\nresume = True\nlauncher = 'pytorch'\n"
    (tmp_path / "own.py").write_text(base)
    config = Config.fromfile(write_config(coco(), tmp_path / "out", model="own.py"))
    assert not {"work_dir", "resume", "launcher"} & config.keys()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("test_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', scale=640)]))", (640, 640)),
        ("train_dataloader = dict(dataset=dict(type='mmdet.CocoDataset'))", (1333, 800)),
        ("val_evaluator = dict(type='mmdet.CocoMetric')", (1333, 800)),
    ],
)
def test_names_and_numbers_as_mmdetection_reads_them(tmp_path, coco, change, expected):
    (tmp_path / "own.py").write_text(f"_base_ = {BOXES_CONFIG!r}\n{change}\n")
    config = Config.fromfile(write_config(coco(), tmp_path / "out", model="own.py"))
    assert scale_of(config) == expected and has_size(config, "train_dataloader")


def test_modules_that_the_model_config_imports_stay(tmp_path, coco, monkeypatch):
    """A later process reads only the written config."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_layers.py").write_text("")
    for imports in ("own_layers", ["own_layers", "dcnzoo.models"]):
        (tmp_path / "own.py").write_text(
            f"_base_ = {BOXES_CONFIG!r}\ncustom_imports = dict(imports={imports!r})\n"
        )
        config = write_config(coco(), tmp_path / "out", model=str(tmp_path / "own.py"))
        written = Config.fromfile(config).custom_imports.imports
        assert written.count("own_layers") == written.count("dcnzoo.models") == 1
    (tmp_path / "own.py").write_text(f"_base_ = {BOXES_CONFIG!r}\ncustom_imports = None\n")
    config = write_config(coco(), tmp_path / "out", model=str(tmp_path / "own.py"))
    assert "dcnzoo.models" in Config.fromfile(config).custom_imports.imports
