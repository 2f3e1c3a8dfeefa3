"""``dcnzoo train --data``: every format leads to a config that trains, or to an error with the cause."""

import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from PIL import Image

import dcnzoo
import dcnzoo.zoo
from dcnzoo.data.dataset import Dataset, Object, Picture, ReadOptions
from dcnzoo.data.reading import describe, read
from dcnzoo.openmmlab import options as run_options
from dcnzoo.openmmlab.config.tree import LOADERS, dicts
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.recipe import TEST, Recipe, read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.folders import mim_folder
from dcnzoo.zoo import own_data, training
from dcnzoo.zoo.config_writer import BOXES, plan
from dcnzoo.zoo.own_data import DataOptions, with_own_data
from dcnzoo.zoo.source import resolve
from tests.helpers.commands import run
from tests.helpers.formats import (
    FORMATS,
    FRUITS,
    fruits,
    objects,
    objects_of,
    write_coco,
    write_voc,
    write_yolo,
)
from tests.helpers.processes import python, python_with_torch


def written(splits, work_dir, model, **options):
    """The config that a training with these options writes."""
    choice = own_data.choose(splits, model, DataOptions(**options), on_gpu=False)
    return own_data.write(plan(splits, choice, work_dir))


def prepare(data, work_dir):
    pictures = read(data)
    splits = pictures.split()
    config = written(splits, work_dir, None)
    return config, read_config_file(config).train_cfg.max_epochs, describe(pictures, splits)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(tmp_path, name):
    parts = fruits(tmp_path / "drawn")
    FORMATS[name](tmp_path / "fruits", parts)
    config, epochs, decisions = prepare(tmp_path / "fruits", tmp_path / "run")
    train, val = tmp_path / "run/data/train.json", tmp_path / "run/data/val.json"
    if name == "LabelMe":  # has no validation set: a random split
        assert not objects(train) & objects(val)
        assert any("at random" in line for line in decisions)
    else:
        assert objects(val) == objects_of(parts["val"])
    assert objects(train, val) == set().union(*map(objects_of, parts.values()))
    cfg = read_config_file(config)
    assert cfg.model.roi_head.bbox_head.num_classes == len(FRUITS) and cfg.model.backbone.dcn
    kind = "segm" if name == "LabelMe" else "bbox"
    assert cfg.default_hooks.checkpoint.save_best == f"coco/{kind}_mAP"
    with DefaultScope.overwrite_default_scope("mmdet"):
        data = DATASETS.build(cfg.train_dataloader.dataset)
    assert tuple(data.metainfo["classes"]) == FRUITS
    learnt = {
        (Path(item["img_path"]).name, FRUITS[instance["bbox_label"]], *instance["bbox"])
        for item in map(data.get_data_info, range(len(data)))
        for instance in item["instances"]
    }
    assert learnt == {(name, c, x, y, x + w, y + h) for name, c, x, y, w, h in objects(train)}
    assert epochs * len(json.loads(train.read_text())["images"]) >= 4 * 600
    assert max(schedule.end for schedule in cfg.param_scheduler if schedule.get("by_epoch", True)) == epochs


MISTAKES = {  # format: a file, and the text that is replaced
    "Pascal VOC": ("Annotations/*.xml", "<xmax>", "<xmax>9"),
    "YOLO": ("labels/train/*.txt", "0 ", "7 "),
    "LabelMe": ("*.json", "polygon", "line"),
    "COCO": ("instances_train.json", '"category_id": 1', '"category_id": 9'),
}


def spoil(name, folder):
    pattern, old, new = MISTAKES[name]
    file = next(folder.glob(pattern))
    file.write_text(file.read_text().replace(old, new, 1))


def test_data_are_read_before_a_used_folder_is_renamed(tmp_path):
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    spoil("YOLO", tmp_path / "fruits")
    used = tmp_path / "run"
    used.mkdir()
    (used / "last_checkpoint").write_text("epoch_1.pth")
    (used / "epoch_1.pth").touch()
    with pytest.raises(UserError, match="class: expected"):
        dcnzoo.train(data=tmp_path / "fruits", work_dir=used, force=True)
    with pytest.raises(UserError, match="work_dir: expected a folder without checkpoints"):
        dcnzoo.train(data=tmp_path / "fruits", work_dir=used)
    assert {path.name for path in used.iterdir()} == {"last_checkpoint", "epoch_1.pth"}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("mask-rcn", {}, "model"),
        ("mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", {}, "mask of every object"),
        ("detr_r50_8xb2-150e_coco", {"size": 448}, "size: expected one step Resize"),
        (None, {"cfg_options": {"modle.backbone.depth": 50}}, "cfg_options: modle"),
        (None, {"cfg_options": {"load_from": "none.pth"}}, "load_from: expected a file"),
        ("run", {}, r"force: expected a work_dir that can be renamed, .*run\.py, used by the new training"),
        (None, {"cfg_options": {"load_from": "run/epoch_1.pth"}}, "force: .*epoch_1.pth, used by"),
    ],
)
def test_nothing_is_renamed_before_a_refusal(tmp_path, monkeypatch, model, options, message):
    monkeypatch.chdir(tmp_path)
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    used = tmp_path / "run"
    (used / "20260101_000000/vis_data").mkdir(parents=True)
    (used / "run.py").write_text(f"_base_ = 'dcnzoo::dcnv2/{BOXES}.py'")
    (used / "last_checkpoint").write_text("epoch_1.pth")
    (used / "epoch_1.pth").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        dcnzoo.train(model, data="fruits", work_dir="run", force=True, device="cpu", **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_rate_on_a_gpu_fits_the_batch(tmp_path):
    """The published model's rate is that of 16 pictures; a batch has 2."""
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    splits = read(tmp_path / "fruits").split()
    for number, (on_gpu, scale_lr, line) in enumerate(
        [
            (True, True, "rate      0.0025 in batches of 2 pictures"),
            (True, False, "rate      0.02 in batches of 2 pictures (with --auto-scale-lr 0.0025)"),
            (False, True, "rate      0.0015 in batches of 4 pictures (with --auto-scale-lr 0.00075)"),
        ]
    ):
        choice = own_data.choose(splits, None, DataOptions(), on_gpu=on_gpu, scale_lr=scale_lr)
        assert on_gpu == (choice.model == BOXES)
        config = read_config_file(own_data.write(plan(splits, choice, tmp_path / str(number))))
        assert config.auto_scale_lr.enable == (on_gpu and scale_lr)
        assert line in own_data.lines_of(config, splits["train"])
    own = own_data.choose(splits, BOXES, DataOptions(), on_gpu=True)
    assert not own.scale_lr, "a model that the user names is trained as its config says"


@pytest.mark.parametrize(
    ("options", "scales"),
    [({}, True), ({"lr": 0.01}, False), ({"cfg_options": {"optim_wrapper.optimizer.lr": 0.01}}, False)],
)
def test_a_rate_of_the_user_is_not_scaled(tmp_path, monkeypatch, options, scales):
    def choose(*arguments, scale_lr, **others):
        raise UserError(f"scales: {scale_lr}")

    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    monkeypatch.setattr(training, "choose", choose)
    with pytest.raises(UserError, match=f"^scales: {scales}$"):
        dcnzoo.train(data=tmp_path / "fruits", work_dir=tmp_path / "run", device="cpu", **options)


@pytest.mark.parametrize("call", [dcnzoo.train, partial(dcnzoo.test, "mask-rcnn_r14-mdconv_fpn_8e_shapes")])
def test_a_path_that_does_not_exist_is_not_its_neighbour(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    with pytest.raises(FileNotFoundError, match=r"data: expected .*found none at .*frutis"):
        call(data=tmp_path / "frutis")
    assert not list(tmp_path.glob("work_dirs/*/*"))


def test_the_work_directory_has_the_name_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    used = tmp_path / "work_dirs/fruits"
    used.mkdir(parents=True)
    (used / "epoch_1.pth").touch()
    for data in ("fruits", "fruits/", "fruits/data.yaml"):
        with pytest.raises(UserError, match=r"work_dir: expected .* work_dirs/fruits"):
            dcnzoo.train(data=data)


@pytest.mark.parametrize("name", ["COCO", "LabelMe"])  # boxes and masks have models of their own
def test_moved_pictures(tmp_path, name):
    """The same option is for each model that a training on a CPU chooses."""
    FORMATS[name](tmp_path / "fruits", fruits(tmp_path / "drawn"))
    config = prepare(tmp_path / "fruits", tmp_path / "run")[0]
    moved = tmp_path / "new/pictures"
    shutil.copytree(tmp_path / "drawn", moved)
    shutil.rmtree(tmp_path / "fruits")
    cfg = read_config_file(config)
    splits = ("train", "val", "test")
    cfg.merge_from_dict({f"{split}_dataloader.dataset.data_prefix.img": f"{moved}/" for split in splits})
    for split in splits:
        with DefaultScope.overwrite_default_scope("mmdet"):
            data = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
        assert len(data) and all(
            Path(info["img_path"]).is_file() for info in map(data.get_data_info, range(len(data)))
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_one_command_trains(tmp_path, name):
    FORMATS[name](tmp_path / "fruits", fruits(tmp_path / "drawn", [*map(str, range(40))]))
    shutil.copytree(tmp_path / "fruits", tmp_path / "mistake", symlinks=True)
    spoil(name, tmp_path / "mistake")
    output = run("train", "--data", tmp_path / "mistake", "--work-dir", tmp_path / "none", status=1)
    assert len(output.splitlines()) == 2 and not list((tmp_path / "none").rglob("*.pth"))
    folder, learns = tmp_path / "run", name == "LabelMe"  # test_every_format compares the data
    options = ("--epochs", 40 if learns else 1, "--cfg-options", "randomness.seed=0")
    run("train", "--data", tmp_path / "fruits", "--work-dir", folder, *options)
    if name == "COCO":
        output = run("train", folder, "--work-dir", folder, "--resume", "--epochs", 2)
        assert "2/2" in output and (folder / "epoch_2.pth").is_file() and not (folder / "data_2").exists()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in FRUITS)
    logs = [file.read_text() for file in sorted(folder.glob("*/vis_data/scalars.json"))]
    rows = [json.loads(line) for log in logs for line in log.splitlines()]
    aps = [value for row in rows for key, value in row.items() if key.endswith("_mAP")]
    assert aps and (not learns or aps[-1] > 0), aps


def test_dry_run_says_what_was_decided(tmp_path):
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn", "abcdefghi"))
    background = tmp_path / "fruits/images/train/empty.jpg"
    Image.new("RGB", (64, 48)).save(background)
    output = run("train", "--data", tmp_path / "fruits", "--work-dir", tmp_path / "run", "--dry-run")
    assert f"sheet     {tmp_path / 'run/sheet.html'}" in output
    assert "at 320 pixels" in (tmp_path / "run/sheet.html").read_text(), "the objects' sides after the resize"
    assert not list(tmp_path.rglob("*.pth"))
    assert re.search(r"^train +7 pictures, 12 objects, 1 without objects", output, re.MULTILINE)
    assert re.search(r"^start +weights of mask-rcnn_r14-mdconv[^/]*safetensors", output, re.MULTILINE)
    assert re.search(r"^input +320 pixels, .* 21.7% of it, 69 pixels then; --size", output, re.MULTILINE)
    assert re.search(r"^flips +horizontal$", output, re.MULTILINE)
    assert re.search(r"^note +fewer than 10 objects to train on: date \(6\)", output, re.MULTILINE)
    cfg = read_config_file(tmp_path / "run/data/run.py")
    assert cfg.val_dataloader.batch_size == cfg.test_dataloader.batch_size == 1
    with DefaultScope.overwrite_default_scope("mmdet"):
        assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 7, "pictures without objects are used"


def test_on_data_is_called_before_the_model_is_built(tmp_path, monkeypatch, capsys):
    """It gets the splits with their pictures, and the config is there. An error in it stops the training.

    The lines before it are about the config with the settings of the user.
    """
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    monkeypatch.setattr("mmdet.registry.MODELS.build", None)
    calls = []

    def look(splits, work_dir, size):
        numbers = {name: len(split.pictures) for name, split in splits.items()}
        calls.append((numbers, size, [file.name for file in (work_dir / "data").glob("*.py")]))
        raise UserError("seen")

    with pytest.raises(UserError, match="seen"):
        settings = {"load_from": None}
        dcnzoo.train(data=tmp_path / "fruits", work_dir=tmp_path / "run", on_data=look, cfg_options=settings)
    assert "start     random weights" in capsys.readouterr().out
    assert calls == [({"train": 4, "val": 2}, (320, 320), ["run.py"])]


def test_what_on_data_gets_can_be_kept(tmp_path, monkeypatch):
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    monkeypatch.setattr(execute, "build_runner", stop)
    kept = []
    for _ in range(2):  # the second one finds the files of the first one
        with pytest.raises(UserError, match="stopped"):
            look = partial(_keep, kept)
            dcnzoo.train(data=tmp_path / "fruits", work_dir=tmp_path / "run", on_data=look)
    for splits in kept:
        assert list(splits) == ["train", "val"] and all(split.pictures for split in splits.values())
        assert all(objects(tmp_path / f"run/data/{name}.json") for name in splits)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["data"]


def _keep(kept, splits, *_):
    kept.append(splits)


def stop(*_, **__):
    raise UserError("stopped")


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", {}, (12, 2, 1)),
        ("faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", {"batch_size": 8}, (12, 8, 1)),
        (
            "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
            {"cfg_options": {"train_dataloader.batch_size": 8}},
            (12, 8, 1),
        ),
        (None, {"epochs": 20}, (20, 4, 2)),
        (None, {"epochs": 20, "cfg_options": {"train_cfg.val_interval": 5}}, (20, 4, 5)),
        (None, {"epochs": 100}, (100, 4, 6)),  # of 60 epochs
    ],
)
def test_a_tenth_of_the_training(tmp_path, monkeypatch, model, options, expected):
    """A warm-up is at most that with the options of the training, and so is the time to a validation."""
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn", [*map(str, range(60))]))
    configs = []
    monkeypatch.setattr(execute, "build_runner", lambda cfg, *_, **__: configs.append(cfg) or stop())
    with pytest.raises(UserError, match="stopped"):
        dcnzoo.train(model, data=tmp_path / "fruits", work_dir=tmp_path / "run", device="cpu", **options)
    (cfg,) = configs
    number = len(json.loads((tmp_path / "run/data/train.json").read_text())["images"])
    assert number == 40
    got = (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size, cfg.train_cfg.val_interval)
    assert got == expected
    (warm_up,) = (each.end for each in cfg.param_scheduler if each.type == "LinearLR")
    assert 2 <= warm_up <= expected[0] * math.ceil(number / expected[1]) / 10


def test_the_home_folder(tmp_path, monkeypatch):
    """What is returned, checked and written is one path, and nothing is written to a folder ``~``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert dcnzoo.zoo.download("mask-rcnn_r14-mdconv_fpn_10e_shapes-320", "~/w").parent == tmp_path / "home/w"
    split = split_of(((64, 48), [(8, 8, 0)]))
    split.write("~/x.json")
    assert objects(tmp_path / "home/x.json")
    recipe = resolve("mask-rcnn_r14-mdconv_fpn_10e_shapes-320").recipe({}, TEST)
    for out in ("~/p.pkl", "~/p.json"):
        cfg = recipe.with_options(run_options.TestOptions(out=out, show_dir="~/drawn")).cfg
        assert cfg.default_hooks.visualization.test_out_dir == str(tmp_path / "home/drawn")
        assert str(tmp_path / "home/p") in str(cfg.test_evaluator) and "~" not in str(cfg.test_evaluator)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def split_of(*pictures):
    """Objects of the given widths and heights in each picture, (size, [(width, height, iscrowd)])."""
    dataset = Dataset({"a": None}, splits={"train": []})
    for number, (size, own) in enumerate(pictures):
        boxes = enumerate(own)
        objects = {i: Object("a", [3.0, 2.0, w, h], w * h, crowd, None) for i, (w, h, crowd) in boxes}
        dataset.splits["train"].append(Picture(Path(str(number)), size, objects=objects))
    return dataset


@pytest.mark.parametrize(
    ("pictures", "size", "side"),
    [
        ([((640, 480), [(128, 32, 0)])], 320, 0.1),  # the root of the area, in parts of the longer side
        ([((480, 640), [(64, 16, 0)])], 480, 0.05),
        ([((640, 480), [(64, 16, 0)]), ((320, 200), [(32, 8, 0)])], 480, 0.05),  # each in its own picture
        ([((1000, 10), [(30, 30, 0)])], 800, 0.03),
        ([((1000, 10), [(29, 29, 0)])], 800, 0.029),  # no size is enough
        ([((1000, 900), [(5, 5, 1)] * 9 + [(200, 200, 0)])], 320, 0.2),  # crowds do not count
        ([((1000, 900), [(5, 5, 0)] + [(50, 50, 0)] * 9)], 480, 0.05),  # nine of ten are larger than one
        ([((1000, 900), [(5, 5, 0)] * 2 + [(50, 50, 0)] * 8)], 800, 0.005),
    ],
)
def test_the_size_of_pictures_is_that_of_their_objects(pictures, size, side):
    assert own_data.side_of(split_of(*pictures)) == pytest.approx(side)
    assert own_data.size_for(own_data.side_of(split_of(*pictures))) == size


@pytest.mark.parametrize("model", [None, BOXES])
def test_size_is_an_option(tmp_path, model):
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn", "abcdefghi"))
    splits = read(tmp_path / "fruits").split()
    config = written(splits, tmp_path / "run", model, size=448)
    cfg = read_config_file(config)
    lines = own_data.lines_of(cfg, splits["train"])
    steps = [step for name in LOADERS for step in cfg[name].dataset.pipeline if step.type == "Resize"]
    assert [(step.scale, step.keep_ratio) for step in steps] == [((448, 448), True)] * 3
    assert any(line.startswith("input") and "448 pixels" in line for line in lines)
    with pytest.raises(UserError, match=r"^size: expected one step Resize in train.*RandomChoice"):
        written(splits, tmp_path / "two", "detr_r50_8xb2-150e_coco", size=448)
    for option in ({"size": 448}, {"flip": False}):
        with pytest.raises(UserError, match=f"^{next(iter(option))}: expected data"):
            dcnzoo.train(BOXES, **option)


@pytest.mark.parametrize("flip", [True, False])
# the second one's wrapper flips, and a hook of the third one exchanges the pipeline
@pytest.mark.parametrize("model", [None, "yolox_s_8xb8-300e_coco", "rtmdet_tiny_8xb32-300e_coco"])
def test_flips(tmp_path, model, flip):
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn", "abcdefghi"))
    splits = read(tmp_path / "fruits").split()
    config = written(splits, tmp_path / "run", model, flip=flip)
    lines = own_data.lines_of(read_config_file(config), splits["train"])
    with DefaultScope.overwrite_default_scope("mmdet"):
        data = DATASETS.build(read_config_file(config).train_dataloader.dataset)
    set_random_seed(0)
    ways = {data[0]["data_samples"].get("flip_direction") for _ in range(12)}
    assert ways == ({None, "horizontal"} if flip else {None})
    assert f"flips     {'horizontal' if flip else 'none'}" in lines
    later = [dict(node) for _, node in dicts(read_config_file(config).get("custom_hooks")) if "prob" in node]
    assert flip or all(node["prob"] == 0 for node in later)


def test_objects_that_are_too_small_are_named(tmp_path):
    """Below 8 pixels at the largest size; with a smaller size, a larger one is the remedy."""
    for side, size, remedy in [(11, None, False), (9, None, True), (11, 320, True)]:
        split = split_of(((1000, 900), [(side, side, 0)]))
        splits = {"train": split, "val": split}
        config = written(splits, tmp_path / f"{side}-{size}", None, size=size)
        lines = own_data.lines_of(read_config_file(config), split)
        assert any("not found" in line for line in lines) == remedy


def test_what_the_crops_keep_of_an_object_has_a_mask_and_a_box(tmp_path):
    """A crop may have a part of a bent object's box, but none of its polygon: the loss would be NaN."""
    corner = [*(0, 0, 620, 0, 620, 12), *(12, 12, 12, 620, 0, 620)]  # an L along two borders
    picture = Picture(
        tmp_path / "a.png", (640, 640), objects={0: Object("a", [0, 0, 620, 620], 14_736, 0, [corner])}
    )
    Image.new("RGB", picture.size).save(picture.file)
    split = Dataset({"a": None}, splits={"train": [picture]})
    config = written({"train": split, "val": split}, tmp_path / "run", None, size=640)
    cfg = read_config_file(config)
    with DefaultScope.overwrite_default_scope("mmdet"):
        data = DATASETS.build(cfg.train_dataloader.dataset)
    set_random_seed(0)
    samples = [data[0]["data_samples"].gt_instances for _ in range(40)]
    sizes = [len(each) for each in samples]
    assert 0 < sum(sizes) < 40, "some crops have the object, some have nothing"
    for each in samples:
        assert each.masks.areas.min(initial=1) > 0
        assert len(each) == 0 or (each.bboxes.tensor[:, 2:] - each.bboxes.tensor[:, :2]).min() >= 2
        assert len(each) == 0 or each.bboxes.tensor.max() <= 320
    folder = dcnzoo.train(config, work_dir=tmp_path / "run", epochs=4, seed=0, device="cpu", sanity=False)
    (log,) = folder.glob("*/vis_data/scalars.json")
    losses = [row["loss"] for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]
    assert losses and all(map(math.isfinite, losses))


def test_test_pictures_are_only_for_tests(tmp_path):
    parts = fruits(tmp_path / "drawn", "abcdef")
    write_voc(tmp_path / "fruits", parts)
    (tmp_path / "fruits/ImageSets/Main/val.txt").rename(tmp_path / "fruits/ImageSets/Main/test.txt")
    config, *_ = prepare(tmp_path / "fruits", tmp_path / "run")
    cfg = read_config_file(config)
    assert objects(cfg.test_dataloader.dataset.ann_file) == objects_of(parts["val"])
    assert cfg.test_evaluator.ann_file == cfg.test_dataloader.dataset.ann_file
    train, val = (cfg[f"{split}_dataloader"].dataset.ann_file for split in ("train", "val"))
    assert objects(train, val) == objects_of(parts["train"]) and not objects(train) & objects(val)


@pytest.mark.parametrize("tool", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_programs_that_do_not_know_dcnzoo_read_the_config(tmp_path, tool):
    """MMEngine reads it, and MMDetection's own script trains with it."""
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn", "abcdefghi"))
    config = prepare(tmp_path / "fruits", tmp_path / "run")[0]
    arguments = [mim_folder("mmdet") / "tools/train.py", config, "--work-dir", tmp_path / "other"]
    arguments += ["--cfg-options", "train_cfg.max_epochs=1"]
    code = (
        "import json, sys; from mmengine.config import Config; assert 'dcnzoo' not in sys.modules;"
        "print(json.dumps(Config.fromfile(sys.argv[1])._cfg_dict.to_dict(), default=str))"
    )
    if tool:
        python(*arguments, cwd=tmp_path)
        assert (tmp_path / "other/epoch_1.pth").is_file()
    else:
        read = json.loads(python_with_torch(code, config).stdout.splitlines()[-1])
        assert read == json.loads(json.dumps(read_config_file(config)._cfg_dict.to_dict(), default=str))


def test_other_data_by_the_names_of_classes(tmp_path, capsys):
    """The other data is the test set; the categories are in the order of the model's classes."""
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    recipe = Recipe.read(prepare(tmp_path / "fruits", tmp_path / "run")[0], {}, TEST)
    (tmp_path / "other").mkdir()
    content = fruits(tmp_path / "other/pictures", "uvwxyz")["train"]
    for image in content["images"]:
        del image["path"]
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] == 2]
    content["categories"] = [{"id": 2, "name": "fig"}]
    (tmp_path / "other/test.json").write_text(json.dumps(content))
    cfg = with_own_data(recipe, tmp_path / "other", ReadOptions(), tmp_path).cfg
    dataset = cfg.test_dataloader.dataset
    assert cfg.test_evaluator.ann_file == dataset.ann_file != recipe.cfg.test_evaluator.ann_file
    written = json.loads(Path(dataset.ann_file).read_text())
    assert [each["name"] for each in written["categories"]] == [*FRUITS]
    assert objects(dataset.ann_file) == objects_of(content)
    assert all((Path(dataset.data_prefix.img) / each["file_name"]).is_file() for each in written["images"])
    assert "no objects of 1 class: date" in capsys.readouterr().out
    content["categories"][0]["name"] = "nut"
    (tmp_path / "other/test.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="one of the classes date, fig, got 'nut'"):
        with_own_data(recipe, tmp_path / "other", ReadOptions(), tmp_path)


def test_a_test_set_without_a_training_set(tmp_path, capsys):
    parts = fruits(tmp_path / "drawn")
    write_yolo(tmp_path / "fruits", parts)
    recipe = Recipe.read(prepare(tmp_path / "fruits", tmp_path / "run")[0], {}, TEST)
    write_coco(tmp_path / "other", {"val": parts["train"], "test": parts["val"]})
    cfg = with_own_data(recipe, tmp_path / "other", ReadOptions(), tmp_path).cfg
    assert objects(cfg.test_dataloader.dataset.ann_file) == objects_of(parts["val"])
    assert re.search("^test ", capsys.readouterr().out, re.MULTILINE)


def test_pictures_of_the_training_are_not_tested(tmp_path, monkeypatch, capsys):
    """The training has divided the folder at random. More pictures in the folder would divide it anew."""
    parts = fruits(tmp_path / "drawn", [*map(str, range(9))])
    FORMATS["LabelMe"](tmp_path / "fruits", parts)
    config = prepare(tmp_path / "fruits", tmp_path / "run")[0]
    val = objects(tmp_path / "run/data/val.json")
    weights = tmp_path / "weights.pth"
    weights.touch()
    tested = []
    monkeypatch.setattr(execute, "test", lambda recipe, *_: tested.append(annotated(recipe.cfg)) or {})

    def annotated(cfg):
        assert cfg.test_evaluator.ann_file == cfg.test_dataloader.dataset.ann_file
        return objects(cfg.test_evaluator.ann_file)

    def test(data):
        dcnzoo.test(config, weights, data=data)
        return tested.pop(), capsys.readouterr().out

    got, output = test(tmp_path / "fruits")
    assert val and got == val
    assert "7 pictures left out: the model was trained on them" in output
    copied = shutil.copytree(tmp_path / "fruits", tmp_path / "copied", symlinks=False)
    got, output = test(copied)
    assert got == val and "7 pictures left out" in output
    more = fruits(tmp_path / "more", "uvwxyz", seed=1)
    FORMATS["LabelMe"](tmp_path / "other", more)
    got, output = test(tmp_path / "other")
    assert got == objects_of(more["train"]) | objects_of(more["val"])
    assert re.search("^all +6 pictures", output, re.MULTILINE) and "trained" not in output
    shutil.copytree(tmp_path / "other", tmp_path / "fruits/other")
    got, output = test(tmp_path / "fruits")
    assert len(got) == len(val) + len(objects_of(more["train"]) | objects_of(more["val"])) and val <= got
    shutil.copy(tmp_path / "run/data/train.json", tmp_path / "drawn")
    got, output = test(tmp_path / "drawn/train.json")
    assert got == objects(tmp_path / "run/data/train.json")
    assert "the model was trained on all of these pictures" in output and "missing" not in output
    (tmp_path / "drawn/0.jpg").rename(tmp_path / "drawn/moved.jpg")
    assert re.search(r"^note +missing: 1 file of the training: \S+0.jpg;", test(copied)[1], re.MULTILINE)
    (tmp_path / "run/data/train.json").unlink()
    got, output = test(copied)
    assert re.search(r"^note +missing: 1 file of the training: \S+train.json;", output, re.MULTILINE)


def test_boxes_do_not_test_masks(tmp_path):
    """The error names the data and the option, not a temporary file."""
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    recipe = Recipe.read(prepare(tmp_path / "fruits", tmp_path / "run")[0], {}, TEST)
    recipe.cfg.test_evaluator.metric = ["bbox", "segm"]
    with pytest.raises(UserError, match=r"^data: .*metric segm, got 4 objects .*metrics=bbox"):
        with_own_data(recipe, tmp_path / "fruits", ReadOptions(), tmp_path)
    with_own_data(recipe, tmp_path / "fruits", ReadOptions(), tmp_path, ["bbox"])


@pytest.mark.slow
def test_the_command_tests_on_other_data(tmp_path):
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    write_voc(tmp_path / "other", fruits(tmp_path / "more", "uvwxyz"))
    run("train", "--data", tmp_path / "fruits", "--work-dir", tmp_path / "run", "--epochs", 1)
    output = run("test", tmp_path / "run", "--data", tmp_path / "other")
    assert "val       2 pictures, 4 objects" in output and "box AP" in output
