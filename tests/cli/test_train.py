"""The train, test and browse commands, with a configuration that trains in seconds."""

import json
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
from dcnzoo.data.shapes import CLASSES
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.openmmlab.runs.work_dir import WorkDirHook, next_replaced, set_aside
from dcnzoo.utils.errors import UserError

from .. import commands
from ..commands import error_of
from ..demo import PLAIN as CONFIG
from ..distributed.launching import settings
from ..formats import fruits, write_yolo


def tiny(data, train=8, val=4, epochs=2):
    """Settings with which the demo config trains in seconds."""
    return settings(data, train, val, epochs, train_dataloader__batch_size=4)


def log_of(folder):
    """The text of mmengine's last log in a work directory."""
    return sorted(Path(folder).glob("*/*.log"))[-1].read_text(encoding="utf-8")


def average_precisions(folder):
    """The last box and mask AP in the log of a work directory."""
    return [re.findall(rf"coco/{kind}_mAP: (-?[\d.]+)", log_of(folder))[-1] for kind in ("bbox", "segm")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A work directory after training with deformable convolutions, and the output."""
    work = tmp_path_factory.mktemp("trained")
    options = [*tiny(data), "model.backbone.dcn=True"]
    return work, commands.run("train", CONFIG, "--work-dir", work, "--report", *options)


def test_train_writes_checkpoints_and_a_report(trained, data):
    work, output = trained
    assert len(list((data / "train").iterdir())) == 8
    assert sorted(p.name for p in work.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]
    assert Path((work / "last_checkpoint").read_text()) == work / "epoch_2.pth"
    weights = torch.load(work / "epoch_2.pth", weights_only=False)["state_dict"]
    assert any("conv_offset" in name for name in weights), "dcn=True took effect"
    assert "Epoch(train) [2][2/2]" in log_of(work)
    *_, shown, following = output.splitlines()
    assert shown.split() == ["report", str(work / "report.html")] and following.startswith("next ")
    assert not any(text in output for text in ("WARN", "be deprecated", "\x1b["))
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


def test_data_in_an_archive(data, trained, tmp_path):
    """A zip file with annotations and pictures is tested with the AP of its folder, and trained from."""
    archive = shutil.make_archive(str(tmp_path / "shapes"), "zip", data)
    backend = dict(backend="fsspec", fo=archive)
    cfg = Config.fromfile(trained[0] / Path(CONFIG).name)
    for name in ("train", "val", "test"):
        dataset = cfg[f"{name}_dataloader"].dataset
        dataset.pop("shapes")
        dataset.update(
            type="CocoDataset", data_root="zip://", backend_args=backend, metainfo={"classes": CLASSES}
        )
        dataset.pipeline[0].backend_args = backend
        cfg[f"{name}_dataloader"].update(num_workers=1)
    for name in ("val", "test"):
        cfg[f"{name}_evaluator"].update(ann_file="zip://annotations/val.json", backend_args=backend)
    cfg.dump(tmp_path / "zip.py")
    work = tmp_path / "work"
    commands.run("test", tmp_path / "zip.py", trained[0] / "epoch_2.pth", "--work-dir", work)
    assert average_precisions(work) == average_precisions(trained[0])
    commands.run("train", tmp_path / "zip.py", "--work-dir", work, "--epochs", 1)
    assert (work / "epoch_1.pth").exists()


def test_mixed_precision_on_the_cpu(data, tmp_path):
    options = ["--amp", "--auto-scale-lr", "--epochs", 1, "--lr", 0.003, "--patience", 1, *tiny(data)]
    output = commands.run("train", CONFIG, "--work-dir", tmp_path, "--verbose", *options)
    assert "changed: max_epochs 2 → 1, " in output and "lr 0.0015 → 0.003" in output
    losses = re.findall(r"\bloss: ([\d.]+|nan)", output)
    assert losses and all(0 < float(loss) < 20 for loss in losses)
    weights = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    assert weights["backbone.conv1.weight"].dtype == torch.float32
    assert not list(tmp_path.glob("report.*")), "only with --report"


def test_arguments_in_messages_become_options(tmp_path):
    """The library's messages have Python's spelling."""
    (tmp_path / "epoch_1.pth").touch()
    with pytest.raises(UserError, match="resume=True continues its training, force=True replaces it"):
        dcnzoo.train(CONFIG, work_dir=tmp_path)
    message = error_of("train", CONFIG, "--work-dir", tmp_path)
    assert message.startswith("error: --work-dir: expected a folder without checkpoints")
    assert "--resume continues its training, --force replaces it" in message


def test_a_loss_that_is_no_number_ends_in_one_line(data, tmp_path):
    settings = ["optim_wrapper.optimizer.lr=1e30", "optim_wrapper.clip_grad=None", "param_scheduler=None"]
    output = commands.run("train", CONFIG, "--work-dir", tmp_path, *tiny(data), *settings, status=1)
    expected = rf"error: loss: .* nan, .* in iteration 2, epoch 1, images {data}/train/\d+.png.*"
    assert re.fullmatch(expected, output.splitlines()[-1])
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


def test_force_replaces_a_training_and_loses_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    small = [*tiny(data, train=2, val=1, epochs=1), "val_evaluator.metric=bbox"]
    commands.run("train", CONFIG, "--work-dir", work, "--patience", 5, *small, "randomness.seed=1")
    fresh = Config.fromfile(work / Path(CONFIG).name)
    commands.run("train", work, "--resume", "--cfg-options", "train_cfg.max_epochs=2")
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
    def lock(folder, launcher):
        (tmp_path / "epoch_1.pth").touch()
        return nullcontext()

    monkeypatch.setattr(execute, "lock_work_dir", lock)
    recipe = Recipe.read(CONFIG, {"work_dir": str(tmp_path)})
    with pytest.raises(UserError, match=r"^work_dir: .*force=True"):
        execute.train(recipe, TrainOptions())


def test_force_replaces_data(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "train", lambda *arguments, **options: None)
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    work, old = tmp_path / "work", tmp_path / "work/data/train.json"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    (work / "epoch_1.pth").touch()
    for data in (tmp_path / "fruits", tmp_path / "drawn"):
        with pytest.raises(UserError, match=r"force=True|expected annotations"):
            dcnzoo.train(data=data, work_dir=work, force=data.name == "drawn")
        assert old.read_text() == "old" and not (work / "replaced_1").exists()
    dcnzoo.train(data=tmp_path / "fruits", work_dir=work, force=True)
    assert (work / "replaced_1/data/train.json").read_text() == "old"
    assert next_replaced(work) == work / "replaced_1", "the checkpoints follow"
    dcnzoo.train(data=tmp_path / "fruits", work_dir=work, force=True)
    assert (work / "replaced_1/data/train.json").read_text() == "old" and not (work / "replaced_2").exists()
    assert json.loads(old.read_text())["images"]


@pytest.mark.parametrize("with_data", [False, True])
def test_a_replaced_config_keeps_its_data(tmp_path, with_data):
    """Paths in a config are relative to it, and it moves one folder down."""
    work, replaced = tmp_path / "it" / "work", tmp_path / "it/work/replaced_1"
    for folder in (work / "data", tmp_path / "images"):
        folder.mkdir(parents=True)
    (work / "data/train.json").touch()
    (work / "cfg.py").write_text(
        "model = dict()\na = '{{ fileDirname }}/data/train.json'\n"
        "b = dict(img='{{ fileDirname }}/../../images/')\n"
    )
    (work / "data/own.py").write_text(
        "a = '{{ fileDirname }}/train.json'\nb = '{{ fileDirname }}/../../../images'"
    )
    for name in ("epoch_1.pth", "own_program.py", "report.csv"):
        (work / name).write_bytes(b"x")
    for name in ("other.py", "stays.py"):
        (work / name).write_text("_base_ = 'x.py'")
    if with_data:
        replaced.mkdir()
        (work / "data").rename(replaced / "data")
    set_aside(work, replaced, ["stays.py"])
    assert (work / "stays.py").exists() and (replaced / "other.py").read_text() == "_base_ = 'x.py'"
    assert (work / "own_program.py").exists(), "a folder of programs may be a work directory"
    assert (replaced / "report.csv").exists()
    config = Config.fromfile(replaced / "cfg.py")
    assert Path(config.a).exists() and Path(config.b.img).samefile(tmp_path / "images")
    assert config.b.img.endswith("/")
    own = Config.fromfile((replaced if with_data else work) / "data/own.py")
    assert Path(own.a).exists() and Path(own.b).samefile(tmp_path / "images")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("work/epoch_1.pth", "work/replaced_1/epoch_1.pth"),
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
    Path("own.py").write_text(f"work_dir = 'work'\nload_from = {before!r}\n")
    hook = WorkDirHook(Recipe(Config.fromfile("own.py")), replaced=next_replaced(work))
    hook.before_train(SimpleNamespace(log_dir="work/20260101_000000"))
    written = Config.fromfile(work / "own.py").load_from
    assert written == (str(tmp_path / after) if str(after).startswith("work") else after)


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
    work, _ = trained
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


def test_seed_and_device(data, tmp_path):
    options = ["--seed", 3, "--device", "cpu", *tiny(data, train=4, val=1, epochs=1)]
    states = []
    for name in ("first", "second"):
        output = commands.run("train", CONFIG, "--work-dir", tmp_path / name, *options)
        states.append(torch.load(tmp_path / name / "epoch_1.pth", weights_only=False)["state_dict"])
    assert "seed None → 3" in output
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_gpu_is_used(monkeypatch):
    """With a stand-in, because the machine has none."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(chosen.append(device)))
    before = get_device()
    with use_device("cuda:1"):
        assert get_device() == "cuda" and chosen == [torch.device("cuda:1")]
    assert get_device() == before
