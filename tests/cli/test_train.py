"""The train, test and browse commands, with a configuration that trains in seconds."""

import csv
import pickle
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device

import dcnzoo
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.prepare import prepare
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.openmmlab.runs.start import Start, choose_start
from dcnzoo.openmmlab.runs.work_dir import WorkDirHook
from dcnzoo.openmmlab.saved import SavedCheckpoints
from dcnzoo.utils import lock
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import write_text
from dcnzoo.zoo import training
from dcnzoo.zoo.source import resolve

from .. import commands
from ..commands import error_of
from ..demo import PLAIN as CONFIG
from ..distributed.launching import settings
from ..formats import fruits, write_yolo


def tiny(data, train=4, val=4, epochs=2):
    """Settings with which the demo config trains in seconds."""
    return settings(data, train, val, epochs, train_dataloader__batch_size=2)


def log_of(folder):
    """The text of mmengine's last log in a work directory."""
    return sorted(Path(folder).glob("*/*.log"))[-1].read_text(encoding="utf-8")


def average_precisions(folder):
    """The last box and mask AP in the log of a work directory."""
    return [re.findall(rf"coco/{kind}_mAP: (-?[\d.]+)", log_of(folder))[-1] for kind in ("bbox", "segm")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data of the tests with the default numbers of pictures. Other numbers would replace the pictures."""
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A work directory after training with deformable convolutions, and the output."""
    work = tmp_path_factory.mktemp("trained")
    options = [*tiny(data), "model.backbone.dcn=True"]
    return work, commands.run("train", CONFIG, "--work-dir", work, "--report", *options)


def test_train_writes_checkpoints_and_a_report(trained, data):
    work, output = trained
    assert len(list((data / "train").iterdir())) == 4
    assert sorted(p.name for p in work.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]
    assert Path((work / "last_checkpoint").read_text()) == work / "epoch_2.pth"
    weights = torch.load(work / "epoch_2.pth", weights_only=False)["state_dict"]
    assert any("conv_offset" in name for name in weights), "dcn=True took effect"
    assert "Epoch(train) [2][2/2]" in log_of(work)
    *_, shown, following = output.splitlines()
    assert shown.split() == ["report", str(work / "report.html")] and following.startswith("next ")
    # 30 iterations of warm-up, and a schedule of 8 epochs, in a training of 2 epochs with 4 iterations
    warnings = [line for line in output.splitlines() if "WARN" in line]
    assert "param_scheduler.0.end: expected at most 4 in this training" in warnings[0]
    assert all("in this training" in line for line in warnings), warnings
    assert not any(text in output for text in ("be deprecated", "\x1b["))
    page = (work / "report.html").read_text(encoding="utf-8")
    box, mask = average_precisions(work)
    assert f"<dt>box AP</dt><dd>{float(box):.3f}</dd>" in page
    assert f"<dt>mask AP</dt><dd>{float(mask):.3f}</dd>" in page
    assert "backbone.layer3.0.conv2" in page and "Environment of" in page and "conv_offset" not in page


def test_test_repeats_the_last_validation(trained, tmp_path):
    work, _ = trained
    config = work / Path(CONFIG).name  # saved by training, with the options of its command line
    shown, predictions = tmp_path / "shown", tmp_path / "predictions.pkl"
    commands.run(
        "test", config, work / "epoch_2.pth", "--work-dir", tmp_path, "--out", predictions,
        "--show-dir", shown,
    )  # fmt: skip
    assert average_precisions(tmp_path) == average_precisions(work)
    assert len(pickle.loads(predictions.read_bytes())) == 4
    images = sorted(shown.glob("*.png"))
    assert len(images) == 4 and cv2.imread(str(images[0])).shape[2] == 3
    again = ("test", config, work / "epoch_2.pth", "--work-dir", tmp_path, "--show-dir", shown)
    images[1].write_bytes(b"mine")
    assert f"{images[1].name}; --force" in commands.error_of(*again) and images[1].read_bytes() == b"mine"
    (tmp_path / "twice.py").write_text(
        f"_base_ = {str(config)!r}\ninner = _base_.test_dataloader.dataset\n"
        "test_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[inner, inner]))\n"
    )
    again = ("test", tmp_path / "twice.py", *again[2:-1], tmp_path / "both")
    assert "show-dir: expected pictures with different names" in commands.error_of(*again)


@pytest.mark.slow  # test_masks_of_a_mirrored_view_come_back merges views
def test_test_time_augmentation(trained, tmp_path):
    work, _ = trained
    config = work / Path(CONFIG).name
    predictions = tmp_path / "predictions.pkl"
    commands.run("test", config, work / "epoch_2.pth", "--work-dir", tmp_path, "--tta", "--out", predictions)
    images = pickle.loads(predictions.read_bytes())
    assert len(images) == 4
    for image in images:
        boxes, (height, width) = image["pred_instances"]["bboxes"], image["ori_shape"]
        assert len(boxes) == len(image["pred_instances"]["masks"])
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()


def test_mixed_precision_on_the_cpu(tmp_path):
    options = ["--amp", "--auto-scale-lr", "--epochs", 1, "--lr", 0.003, "--patience", 1]
    options += tiny(tmp_path / "data", train=2, val=1)
    output = commands.run("train", CONFIG, "--work-dir", tmp_path, "--verbose", *options)
    assert "max_epochs 2 → 1, " in output and "lr 0.0015 → 0.003" in output
    assert "changed: optim_wrapper.type OptimWrapper → AmpOptimWrapper, " in output
    losses = re.findall(r"\bloss: ([\d.]+|nan)", output)
    assert losses and all(0 < float(loss) < 20 for loss in losses)
    weights = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    assert weights["backbone.conv1.weight"].dtype == torch.float32
    assert not list(tmp_path.glob("report.*")), "only with --report"


def test_a_loss_that_is_no_number_ends_in_one_line(data, tmp_path):
    settings = ["optim_wrapper.optimizer.lr=1e30", "optim_wrapper.clip_grad=None", "param_scheduler=None"]
    output = commands.run("train", CONFIG, "--work-dir", tmp_path, *tiny(data), *settings, status=1)
    expected = rf"error: loss: .* nan, .* in iteration 2, epoch 1, images {data}/train/\d+.png.*"
    assert re.fullmatch(expected, output.splitlines()[-1])
    assert "--resume" not in output, "there is no checkpoint"
    assert not list(tmp_path.glob("*.pth"))


def test_browse_dataset(data, trained, tmp_path):
    options = [*tiny(data), "--num-images", 3, "--out", tmp_path]
    commands.run("browse", CONFIG, *options)
    images = [cv2.imread(str(path)) for path in sorted(tmp_path.glob("*.png"))]
    assert len(images) == 3
    plain = cv2.imread(str(data / "train" / "00000.png"))
    assert images[0].shape[:2] >= plain.shape[:2]


# A training that replaces another


def weights_of(folder, name="last"):
    return dcnzoo.load(folder, checkpoint=name, device="cpu").model.state_dict()


@pytest.mark.slow  # test_only_files_of_the_training_are_replaced and those after it train nothing
def test_force_replaces_a_training_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    small = [*tiny(tmp_path / "data", train=2, val=1, epochs=1), "val_evaluator.metric=bbox"]
    commands.run("train", CONFIG, "--work-dir", work, "--patience", 5, *small, "randomness.seed=1")
    fresh = Config.fromfile(work / Path(CONFIG).name)
    dry = ("train", work, "--resume", "--dry-run", "--cfg-options", "train_cfg.max_epochs=2")
    written = files_of(work)
    assert "groups of parameters" in error_of(*dry, "optim_wrapper.paramwise_cfg.norm_decay_mult=0.")
    commands.run(*dry)
    assert files_of(work) == written
    commands.run("train", work, "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    commands.run("report", work, "--evaluate", 1, "--num-images", 0)
    rows = list(csv.DictReader((work / "report.csv").open(encoding="utf-8")))
    assert {row["epoch"] for row in rows if row["coco/bbox_mAP"]} == {"1", "2"}
    resumed = Config.fromfile(work / Path(CONFIG).name)
    assert (fresh.train_cfg.pop("max_epochs"), resumed.train_cfg.pop("max_epochs")) == (1, 2)
    assert resumed.to_dict() == fresh.to_dict() and "resume" not in resumed

    assert "--force" in error_of("train", work)
    before = weights_of(work), weights_of(work, "best")
    files = {path.name for path in work.iterdir() if not path.name.startswith(".")}
    mistake = "train_dataloader.dataset.ann_file=missing.json"
    assert "missing.json" in error_of("train", work, "--force", "--cfg-options", mistake)
    assert files <= {path.name for path in work.iterdir()}, "a mistake moves nothing"

    printed = commands.run("train", work, "--force", "--cfg-options", "randomness.seed=2")
    assert f"{work}/replaced_1" in printed and "2/2" in printed, "it trains all epochs"
    replaced = {path.name for path in (work / "replaced_1").iterdir()}
    assert files <= replaced
    for ours, name in zip(before, ("last", "best"), strict=True):
        torch.testing.assert_close(weights_of(work / "replaced_1", name), ours, rtol=0, atol=0)
        new = weights_of(work, name)
        assert any(not torch.equal(new[key], ours[key]) for key in new)
    commands.run("train", work, "--force", "--cfg-options", f"load_from={work}/epoch_2.pth")
    assert (work / "replaced_2/epoch_2.pth").is_file()
    assert Config.fromfile(work / Path(CONFIG).name).load_from == f"{work}/replaced_2/epoch_2.pth"


def test_a_training_that_ends_while_another_waits_is_not_replaced(tmp_path, monkeypatch):
    def lock(folder):
        (tmp_path / "epoch_1.pth").touch()
        return nullcontext()

    monkeypatch.setattr(execute, "lock_work_dir", lock)
    recipe = Recipe.read(CONFIG, {"work_dir": str(tmp_path)})
    with pytest.raises(UserError, match=r"^work_dir: .*force=True"):
        execute.train(recipe, TrainOptions())


def files_of(folder):
    """The content of all files, without locks and records."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_data_of_a_training_stay(tmp_path, monkeypatch):
    """A new training may end before its first step, which keeps the old one, or after it."""
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    work, data = tmp_path / "work", tmp_path / "fruits"
    (work / "data").mkdir(parents=True)
    (work / "data/train.json").write_text("old")
    (work / "work.py").write_text("model = dict()\na = '{{ fileDirname }}/data/train.json'")
    torch.save({"state_dict": {}}, work / "epoch_1.pth")
    before = files_of(work)
    for options, message in (
        ({"data": data}, "force=True"),
        ({"data": tmp_path / "drawn", "force": True}, "expected annotations"),
        ({"data": data, "force": True, "resume": True}, "^force: .*resume"),
        ({"data": data, "resume": True}, "the folder of its log"),
    ):
        with pytest.raises(UserError, match=message):
            dcnzoo.train(work_dir=work, **options)
        assert files_of(work) == before
    wrong = {"cfg_options": {"train_cfg.max_epoch": 3}}
    for options in ({"dry_run": True}, {"dry_run": True, **wrong}, wrong):
        with pytest.raises(UserError, match="max_epochs") if "cfg_options" in options else nullcontext():
            dcnzoo.train(data=data, work_dir=work, force=True, **options)
        # apart from mmengine's log folder, whose name is the time
        after = {name: file for name, file in files_of(work).items() if not name[:8].isdecimal()}
        new = {name for name in after if name.startswith("data_2/")}
        assert {name: after[name] for name in after.keys() - new} == before
        assert new == {"data_2/train.json", "data_2/val.json", "data_2/work.py"}
    (work / "data_2/work.py").write_text("edited")
    dcnzoo.train(data=data, work_dir=work, force=True, dry_run=True)
    assert (work / "data_3/work.py").exists() and (work / "data_2/work.py").read_text() == "edited"


def replace(recipe, start=Start(replaces=True)):  # noqa: B008  it cannot be changed
    """What a training does to its work directory when it begins."""
    WorkDirHook(recipe, start).before_train(SimpleNamespace(log_dir=f"{recipe.work_dir}/20260102_000000"))


def test_only_files_of_the_training_are_replaced(tmp_path):
    """Paths in a config are relative to it, and it moves one folder down."""
    work, replaced = tmp_path / "it" / "work", tmp_path / "it/work/replaced_1"
    for folder in (work / "data", work / "20260101_000000", work / "20260102_000000", tmp_path / "images"):
        folder.mkdir(parents=True)
    (work / "data/train.json").touch()
    text = (
        "model = dict()\na = '{{ fileDirname }}/data/train.json'\n"
        "b = dict(img='{{ fileDirname }}/../../images/')\n"
    )
    write_text(work / "cfg.py", text)
    write_text(work / "changed.py", text + "a = 3")
    write_text(work / "report.html", '<!doctype html><head><meta name="dcnzoo" content="report of .">')
    users = ("own_program.py", "own_config.py", "new.py", "weights.pth")
    for name in users:
        (work / name).write_text("model = dict(\n    type='A')\n")
    for name in ("epoch_1.pth", "best_coco_bbox_mAP_epoch_1.pth", "last_checkpoint"):
        (work / name).touch()
    replace(Recipe(Config({"work_dir": str(work)}, filename=str(work / "new.py"))))
    assert {path.name for path in replaced.iterdir()} == {
        *("cfg.py", "changed.py", "report.html", "20260101_000000"),
        *("epoch_1.pth", "best_coco_bbox_mAP_epoch_1.pth", "last_checkpoint"),
        "new.py",  # in the way
    }
    assert all((work / name).exists() for name in users) and (work / "20260102_000000").exists()
    config = Config.fromfile(replaced / "cfg.py")
    assert Path(config.a).samefile(work / "data/train.json") and config.b.img.endswith("/")
    assert Path(config.b.img).samefile(tmp_path / "images")
    replace(
        Recipe(Config({"work_dir": str(replaced)}, filename=str(replaced / "cfg.py"))), Start(resumes=True)
    )
    assert not (replaced / "replaced_1").exists(), "its config is still a training's"


def test_a_training_from_an_earlier_checkpoint_replaces_the_later_ones(tmp_path):
    names = ["best_coco_bbox_mAP_epoch_1.pth", "best_coco_bbox_mAP_epoch_3.pth"]
    names += [f"epoch_{number}.pth" for number in (1, 2, 3)]
    for name in (*names, "last_checkpoint"):
        (tmp_path / name).write_text(str(tmp_path / "epoch_3.pth"))
    write_text(tmp_path / "cfg.py", "model = dict()")
    recipe = Recipe(Config({"work_dir": str(tmp_path)}, filename=str(tmp_path / "cfg.py")))
    for file, moved in (("epoch_3.pth", ()), ("epoch_1.pth", (names[1], *names[3:]))):
        replace(recipe, Start(str(tmp_path / file), resumes=True))
        assert {path.name for path in tmp_path.glob("replaced_1/*")} == {*moved}
    assert {path.name for path in tmp_path.glob("*.pth")} == {names[0], names[2]}
    assert SavedCheckpoints(tmp_path).best() == tmp_path / names[0]
    replace(recipe, Start(str(tmp_path / "epoch_1.pth"), resumes=True, replaces=True))
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_1.pth"], "until it has its own"


@pytest.mark.parametrize("number", range(6))
def test_a_replacement_that_is_cut_off_goes_on(tmp_path, monkeypatch, number):
    work = tmp_path / "work"
    (work / "20260101_000000").mkdir(parents=True)
    write_text(work / "cfg.py", "model = dict()")
    names = {"epoch_1.pth", "epoch_2.pth", "best_coco_bbox_mAP_epoch_1.pth", "last_checkpoint"}
    names |= {"epoch_2-dbfc5184.pth", "best_coco_bbox_mAP_epoch_1-a2f364fd.pth"}  # with published_keys
    for name in names:
        (work / name).write_text(name)
    recipe = Recipe(Config({"work_dir": str(work), "launcher": "none"}, filename=str(work / "cfg.py")))
    rename, left = Path.rename, number

    def cut_off(path, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", cut_off)
        replace(recipe)
    with pytest.raises(UserError, match="force=True"):
        choose_start(recipe)
    stay = [path.name for path in work.glob("epoch_*.pth")]
    assert not stay or "epoch_2.pth" in stay, "resume=True continues from the last one"
    replace(recipe)
    assert {path.name for path in work.glob("replaced_*/*") if path.is_file()} >= {*names, "cfg.py"}
    assert not choose_start(recipe).replaces


@pytest.mark.parametrize("start", [Start(resumes=True), Start()])
def test_a_config_of_the_user_is_not_lost(tmp_path, monkeypatch, start):
    """With ``work_dir="."``, its name is that of the config that a training writes."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("model = dict()  # mine\n")
    recipe = Recipe(Config({"work_dir": ".", "launcher": "none", "train_cfg": {}}, filename="own.py"))
    with pytest.raises(UserError, match=r"own.py.*force=True"):
        prepare(recipe, choose_start(recipe))
    Path("epoch_1.pth").touch()  # one of mmengine
    replace(recipe, start)
    assert (
        Path("replaced_1/own.py").read_text() == "model = dict()  # mine\n" and Path("epoch_1.pth").exists()
    )
    replace(recipe, start)
    assert not Path("replaced_2").exists(), "now it is the training's own"


def test_ranks_compare_the_work_directory_of_a_dry_run(tmp_path, monkeypatch, capsys):
    """Each rank has another folder of logs, and only the first one prints."""
    seen, work = [], tmp_path / "work"
    monkeypatch.setattr(execute.ranks, "agree_on_config", lambda cfg: seen.append(cfg.work_dir))
    for first in (True, False):
        monkeypatch.setattr(training, "is_first", lambda first=first: first)
        dcnzoo.train(CONFIG, work_dir=work, dry_run=True)
        assert ("dry run" in capsys.readouterr().out) == first
    assert seen == [str(work)] * 2 and not work.exists()


def test_a_folder_of_checkpoints_has_one_training(tmp_path, monkeypatch):
    """With one out_dir, two work directories with the same name have the same one."""
    monkeypatch.setattr(lock, "_ORPHANS_END", 0)
    recipe = Recipe.read(CONFIG, {"default_hooks.checkpoint.out_dir": str(tmp_path / "out")})
    refused = pytest.raises(UserError, match=r"running.* got .*out/work")
    with lock.lock_work_dir(tmp_path / "out/work"), refused:
        execute.train(recipe, TrainOptions(work_dir=tmp_path / "work"))


def test_own_data_of_a_training_with_its_checkpoints_elsewhere(tmp_path, monkeypatch):
    """The start depends on settings that the options or the model have."""
    monkeypatch.chdir(tmp_path)
    Path("out/work").mkdir(parents=True)
    Path("work").mkdir()
    Path("work/last_checkpoint").write_text("out/work/epoch_2.pth")
    torch.save({"state_dict": {}}, "out/work/epoch_2.pth")
    Path("own.py").write_text("default_hooks = dict(checkpoint=dict(out_dir='out'))\nresume = True\n")
    options = {"default_hooks.checkpoint.out_dir": "out", "resume": True}
    file, seen = {"resume": "out/work/epoch_2.pth"}, []

    def stop(*args):
        seen.append(args[-1])
        raise UserError("enough")

    monkeypatch.setattr(training, "prepare", stop)
    for how in ({"cfg_options": options}, {**file, "cfg_options": options}, {"model": "own.py"}):
        with pytest.raises(UserError, match="enough"):
            dcnzoo.train(data="data", work_dir="work", **how)
    Path("work/20260101_000000").mkdir()
    write_text(Path("work/own.py"), Path("own.py").read_text())
    with pytest.raises(UserError, match="enough"):
        dcnzoo.train(data="data", work_dir="work", resume=True)
    assert seen == [True] * 4


@pytest.mark.parametrize("own", ["ckpt_{}.pth", "out", "ckpt_{}.pth in out"])
def test_checkpoints_with_other_names_or_in_another_folder(tmp_path, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CONFIG, "own.py")
    template, folder = "epoch_{}.pth", Path("work")
    hook = {"type": "AtomicCheckpointHook"}
    if "ckpt" in own:
        template = hook["filename_tmpl"] = "ckpt_{}.pth"
    if "out" in own:
        hook["out_dir"], folder = "out", Path("out/work")
    settings = {"work_dir": "work", "launcher": "none", "train_cfg": {}}
    cfg = Config({**settings, "default_hooks": {"checkpoint": hook}}, filename="own.py")
    folder.mkdir(parents=True)
    names = [template.format(1), template.format(2), f"best_coco_bbox_mAP_{template.format(1)}"]
    for name in names:
        torch.save({"state_dict": {}}, folder / name)
    assert choose_start(Recipe(cfg), resume=True).file == str(folder / names[1]), "without last_checkpoint"
    Path("work/20260101_000000").mkdir(parents=True)
    Path("work/last_checkpoint").write_text(str(tmp_path / folder / template.format(2)))
    shutil.copy(CONFIG, "work/own.py")
    assert resolve("work", "last").read_weights().samefile(folder / template.format(2))
    with pytest.raises(UserError, match="force=True"):
        choose_start(Recipe(cfg))
    cfg.load_from = str(folder / names[0])
    recipe = Recipe(cfg)
    replace(recipe, prepare(recipe, choose_start(recipe, force=True), force=True))
    assert {path.name for path in (folder / "replaced_1").glob("*.pth")} == {*names}
    written = Config.fromfile("work/own.py")
    assert Path(written.load_from).samefile(folder / "replaced_1" / names[0])
    assert cfg.load_from == str(folder / names[0]), "the caller's config stays"
    assert not list(folder.glob("*.pth"))
    cfg.load_from = None
    assert not choose_start(Recipe(cfg)).replaces
    assert resolve("work/replaced_1", "last").read_weights().parent.samefile(folder / "replaced_1")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("work/epoch_1.pth", "work/replaced_1/epoch_1.pth"),
        ("~/link.pth", "work/replaced_1/epoch_1.pth"),
        ("https://host/epoch_1.pth", "https://host/epoch_1.pth"),
        ("~/other.pth", "~/other.pth"),
        (None, None),
    ],
)
def test_a_config_names_its_weights_after_they_were_replaced(tmp_path, monkeypatch, before, after):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    work = Path("work")
    work.mkdir()
    for file in (work / "epoch_1.pth", Path("other.pth")):
        file.touch()
    Path("link.pth").symlink_to("work/epoch_1.pth")
    Path("own.py").write_text(
        f"work_dir = 'work'\nload_from = {before!r}\n"
        "model = dict(teacher_ckpt=load_from, backbone=dict(init_cfg=dict(checkpoint=load_from)))"
    )
    recipe = Recipe(Config.fromfile("own.py"))
    settings = recipe.cfg.to_dict()
    replace(recipe)
    assert recipe.cfg.to_dict() == settings, "a config does not change after it was prepared"
    written, expected = Config.fromfile(work / "own.py"), after
    if str(after).startswith("work"):
        expected = str(tmp_path / after)
    assert written.load_from == written.model.teacher_ckpt == expected
    assert written.model.backbone.init_cfg.checkpoint == expected


def test_the_report_of_a_training_runs_on_its_device(tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr("dcnzoo.zoo.training.train", lambda model, **options: tmp_path)
    write_report = "dcnzoo.report.report.write_report"
    monkeypatch.setattr(write_report, lambda folders, device, force: devices.append(device))
    for device in ([], ["--device", "cpu"]):
        commands.run("train", CONFIG, "--report", *device)
    assert devices == ["auto", "cpu"]


def test_weights_of_the_classes_in_another_order(data, trained, tmp_path):
    """Each object would silently count as one of another class."""
    work = shutil.copytree(trained[0], tmp_path / "work")  # reproduce writes a log into the work directory
    config, weights = work / Path(CONFIG).name, tmp_path / "weights.pth"
    checkpoint = torch.load(work / "epoch_2.pth", weights_only=False)
    checkpoint["meta"]["dataset_meta"]["classes"] = ("cross", "trefoil", "oval")
    torch.save(checkpoint, weights)
    for line in (
        ["test", config, weights, "--work-dir", tmp_path],
        ["reproduce", config, "--checkpoint", weights, "--out", tmp_path / "rows.jsonl"],
        ["train", config, "--work-dir", tmp_path / "w", "--resume", weights, "--epochs", 3],
    ):
        assert "whose class 0 is oval, got cross" in error_of(*line)
    checkpoint["meta"]["dataset_meta"]["classes"] = ("Oval", "Trefoil", "Cross")
    torch.save(checkpoint, weights)
    commands.run("test", config, weights, "--work-dir", tmp_path)


def test_a_gpu_is_used(monkeypatch):
    """With a stand-in, because the machine has none."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(chosen.append(device)))
    before = get_device()
    with use_device("cuda:1"):
        assert get_device() == "cuda" and chosen == [torch.device("cuda:1")]
    assert get_device() == before
