import io
import logging
import re
from types import SimpleNamespace

import pytest
import torch

import dcnzoo.models  # noqa: F401  first: mmdet needs mmcv._ext; and it lets checkpoints load

# isort: split
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from rich.console import Console
from torch.utils.data import Dataset

from dcnzoo.engine import AtomicCheckpointHook, AtomicLocalBackend, ProgressHook
from dcnzoo.engine.cli import UserError, require_file, user_errors
from dcnzoo.engine.tta import InstanceTTAModel


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file.pth"
    backend = AtomicLocalBackend()
    backend.put(b"old", target)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(UserError, match=r"file.pth cannot be written \(0.0 MB\): disk full"):
            backend.put(b"new and longer", target)
    assert target.read_bytes() == b"old"
    assert [p.name for p in target.parent.iterdir()] == ["file.pth"]
    backend.put_text("größer", target)
    assert target.read_bytes() == "größer".encode()


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, mode):
        x = torch.stack(inputs)
        return {"loss": ((self.weight - x) ** 2).mean()} if mode == "loss" else [self.weight]


class Numbers(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"inputs": torch.tensor([float(index)])}


def make_runner(work_dir, name, epochs=4, **kwargs):
    loader = {
        "dataset": Numbers(),
        "batch_size": 1,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "collate_fn": pseudo_collate,
    }
    return Runner(
        Model(),
        str(work_dir),
        train_dataloader=dict(loader),
        val_dataloader=dict(loader),
        train_cfg={"by_epoch": True, "max_epochs": epochs, "val_interval": 2},
        val_cfg={},
        val_evaluator={"type": "mmengine.Evaluator", "metrics": []},
        test_dataloader=dict(loader),
        test_cfg={},
        test_evaluator={"type": "mmengine.Evaluator", "metrics": []},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        experiment_name=name,
        **kwargs,
    )


def train(work_dir, name, **kwargs):
    hook = {"type": "AtomicCheckpointHook", "interval": 1, "max_keep_ckpts": 1}
    runner = make_runner(work_dir, name, default_hooks={"checkpoint": hook}, **kwargs)
    runner.train()
    return runner


def checkpoints(folder):
    return sorted(p.name for p in folder.glob("*.pth"))


def test_only_the_last_checkpoints_stay(tmp_path):
    runner = train(tmp_path, "keep")
    assert any(isinstance(hook, AtomicCheckpointHook) for hook in runner.hooks)
    assert checkpoints(tmp_path) == ["epoch_4.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "epoch_4.pth")


def test_death_while_saving_leaves_a_checkpoint_to_resume_from(tmp_path, monkeypatch):
    put = AtomicLocalBackend.put

    def die_in_epoch_3(self, obj, filepath):
        if "epoch_3" in str(filepath):
            raise KeyboardInterrupt
        put(self, obj, filepath)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicLocalBackend, "put", die_in_epoch_3)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "dies")
    assert checkpoints(tmp_path) == ["epoch_2.pth"], "the old one stays until the new one is there"

    resumed = train(tmp_path, "resumes", resume=True)
    assert checkpoints(tmp_path) == ["epoch_4.pth"]
    uninterrupted = train(tmp_path / "other", "whole")
    torch.testing.assert_close(resumed.model.weight, uninterrupted.model.weight, rtol=0, atol=0)


def test_bar_on_a_terminal(tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    hook = ProgressHook(console)
    runner = make_runner(tmp_path, "bar", custom_hooks=[hook])
    stream_handlers = [h for h in runner.logger.handlers if type(h) is logging.StreamHandler]
    streams = [h.stream for h in stream_handlers]
    runner.train()
    shown = screen.getvalue()
    assert "train" in shown and "12/12" in shown and "loss" in shown
    assert "left" in shown and "validate" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor comes back"
    assert [h.stream for h in stream_handlers] == streams


def test_bar_of_a_test_ends_full(tmp_path):
    screen = io.StringIO()
    hook = ProgressHook(Console(file=screen, force_terminal=True, width=120))
    make_runner(tmp_path, "testing", custom_hooks=[hook]).test()
    frames = re.findall(r"\d/3", screen.getvalue())
    assert frames[-1] == "3/3", "the last frame drawn is the one that stays"


def test_no_bar_elsewhere(tmp_path):
    screen = io.StringIO()
    hook = ProgressHook(Console(file=screen))
    make_runner(tmp_path, "quiet", custom_hooks=[hook]).train()
    assert screen.getvalue() == ""


def test_user_errors_become_one_line():
    with pytest.raises(UserError, match=r"^first line second line$"), user_errors():
        raise ValueError("first line\n   second line")
    with pytest.raises(UserError, match=r"^no such key$"), user_errors():
        raise KeyError("no such key")
    with pytest.raises(UserError, match=r"^NotImplementedError$"), user_errors():
        raise NotImplementedError


def test_require_file_leaves_addresses_alone(tmp_path):
    require_file("https://example.org/x.pth", "checkpoint")
    with pytest.raises(UserError, match=f"checkpoint: expected a file, found none at {tmp_path}"):
        require_file(str(tmp_path), "checkpoint")


@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_masks_of_a_mirrored_view_come_back(direction):
    """A detection seen only in the mirrored view lands where it is in the image."""

    def view(box, label, score, mirror):
        mask = torch.zeros(1, 20, 30, dtype=torch.bool)
        x0, y0, x1, y1 = box
        mask[0, y0:y1, x0:x1] = True
        boxes = torch.tensor([box], dtype=torch.float32)
        if mirror:
            boxes = bbox_flip(boxes, (20, 30), direction)
            axes = {"horizontal": (-1,), "vertical": (-2,), "diagonal": (-1, -2)}[direction]
            mask = mask.flip(axes)
        meta = {"ori_shape": (20, 30), "flip": mirror, "flip_direction": direction}
        sample = DetDataSample(metainfo=meta)
        sample.pred_instances = InstanceData(
            bboxes=boxes,
            scores=torch.tensor([score]),
            labels=torch.tensor([label]),
            masks=mask,
        )
        return sample

    model = SimpleNamespace(
        tta_cfg=ConfigDict(nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=10),
        merge_aug_bboxes=lambda *args: InstanceTTAModel.merge_aug_bboxes(None, *args),
    )
    views = [view((2, 3, 9, 7), 0, 0.6, False), view((11, 8, 29, 20), 1, 0.9, True)]
    merged = InstanceTTAModel._merge_single_sample(model, views).pred_instances
    assert merged.labels.tolist() == [1, 0]
    assert merged.bboxes.tolist() == [[11, 8, 29, 20], [2, 3, 9, 7]]
    for box, mask in zip(merged.bboxes.int().tolist(), merged.masks, strict=True):
        expected = torch.zeros(20, 30, dtype=torch.bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        assert torch.equal(mask, expected)
