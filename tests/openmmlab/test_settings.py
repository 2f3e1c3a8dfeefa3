"""Single settings that had no effect, or were refused though they are valid."""

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel

from dcnzoo.openmmlab import options as run_options
from dcnzoo.openmmlab.config.check import check_config
from dcnzoo.openmmlab.hooks import FiniteLossHook
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs.recipe import read_config_file
from dcnzoo.utils.errors import UserError

from ..demo import PLAIN
from .test_training import make_runner


class Convolution(BaseModel):
    def __init__(self):
        super().__init__(init_cfg={"type": "Normal", "layer": "Conv2d", "std": 0.1})
        self.layer = ConvModule(3, 4, (3, 2))

    def forward(self, inputs, mode):
        loss = self.layer.conv.weight.square().sum()
        return {"loss": loss} if mode == "loss" else [loss]


class First(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.weight = self.weight if batch_idx else runner.model.layer.conv.weight.detach().clone()


def test_initial_weights_do_not_depend_on_the_memory_format(tmp_path):
    """The same bits in channels-last order: random numbers are drawn in the order of the memory."""
    starts = []
    for hooks in ([], [{"type": "ChannelsLastHook"}]):
        first = First()
        runner = make_runner(
            tmp_path, "start", Convolution(), 1, custom_hooks=[*hooks, first], randomness={"seed": 3}
        )
        runner.train()
        starts.append(first.weight)
    assert torch.equal(*starts) and starts[1].is_contiguous(memory_format=torch.channels_last)


def test_a_training_without_iterations_is_refused(tmp_path):
    loader = {"dataset": [1, 2], "batch_size": 4, "drop_last": True, "sampler": {"type": "DefaultSampler"}}
    runner = make_runner(tmp_path, "empty", Convolution(), train_dataloader=loader)
    runner.register_hook(FiniteLossHook())
    with pytest.raises(UserError, match=r"^train_dataloader: .*2 pictures with batch_size=4 and drop_"):
        runner.train()
    assert not [*tmp_path.rglob("*.pth")]


def test_a_users_own_head_may_count_other_classes(package):
    text = """from mmdet.models import RetinaHead
from mmdet.registry import MODELS

@MODELS.register_module(force=True)
class HeadOfParts(RetinaHead):
    pass
"""
    package("head_of_parts", text)
    __import__("head_of_parts")
    head = dict(type="HeadOfParts", num_classes=7, in_channels=8)
    data = dict(dataset=dict(type="CocoDataset", metainfo=dict(classes=("a", "b"))))
    check_config(Config(dict(model=dict(type="RetinaNet", bbox_head=head), train_dataloader=data)), "mine.py")


def test_options_of_one_cycle_and_of_several_sources():
    cfg = Config.fromfile(PLAIN)
    cfg.param_scheduler = [dict(type="OneCycleLR", eta_max=0.1)]
    cfg.param_scheduler += [dict(type="CosineAnnealingMomentum", eta_min=0.8)]
    cfg.train_dataloader.sampler = dict(type="MultiSourceSampler", batch_size=5, source_ratio=[1, 4])
    before = cfg.optim_wrapper.optimizer.lr
    TrainOptions(lr=2 * before, batch_size=10).apply(cfg)
    assert cfg.param_scheduler[0].eta_max == 0.2 and cfg.param_scheduler[1].eta_min == 0.8
    assert cfg.train_dataloader.sampler.batch_size == cfg.train_dataloader.batch_size == 10


def test_options_of_several_evaluators(tmp_path):
    cfg = read_config_file(PLAIN)
    cfg.test_evaluator = [dict(type="DumpDetResults", out_file_path="a.pkl"), dict(cfg.test_evaluator)]
    options = run_options.TestOptions(metrics=["bbox"], out=tmp_path / "b.json", work_dir=tmp_path)
    options.apply(cfg)
    dump, coco = cfg.test_evaluator
    assert dump.keys() == {"type", "out_file_path"} and coco.metric == ["bbox"]
    assert coco.outfile_prefix == str(tmp_path / "b")
    cfg.test_evaluator = dump
    with pytest.raises(UserError, match=r"^metrics: .*got DumpDetResults"):
        run_options.TestOptions(metrics=["bbox"], work_dir=tmp_path).apply(cfg)
