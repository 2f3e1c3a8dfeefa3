"""Single settings that had no effect, or were refused though they are valid."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel

from dcnzoo.openmmlab import options as run_options
from dcnzoo.openmmlab.config.check import check_config, find_problems
from dcnzoo.openmmlab.config.read import files, published_folders, wrong_top_level_keys
from dcnzoo.openmmlab.config.watched import Asked, unread
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs.execute import build
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, read_config_file
from dcnzoo.openmmlab.runs.schedules import EffectHook, unusual_rate, without_effect
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.marks import config_of

from ..commands import error_of, run
from ..demo import PLAIN
from .test_training import Images, make_runner

RTMDET = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"


def findings(folder, text, base=RTMDET):
    (folder / "mine.py").write_text(f"_base_ = {base!r}\n{text}\n")
    return find_problems(read_config_file(folder / "mine.py"), TRAINING)


TRAINING_DATA = "dict(ann_file='annotations/instances_train2017.json')"


REGNET = (
    "backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='open-mmlab://regnetx_3.2gf'))"
)


@pytest.mark.parametrize(
    ("text", "subject", "stops"),
    [
        ("model = dict(bbox_head=dict(bbox_coder=dict(clip_borders=True)))",
         "model.bbox_head.bbox_coder.clip_borders", True),
        (f"val_dataloader = dict(dataset={TRAINING_DATA})", "val_dataloader", False),
        (f"val_dataloader = dict(dataset=dict({TRAINING_DATA[5:-1]}, indices=9))", "", False),
        ("backend_arg = None", "backend_arg", False),
        ("model = dict(train_cfg=dict(assigner=dict(_delete_=True, type='MaxIoUAssigner', pos_iou_thr=0.3,"
         " neg_iou_thr=0.7, ignore_iof_thr=-1)))", "model.train_cfg.assigner.neg_iou_thr", False),
        ("default_hooks = dict(checkpoints=dict(type='CheckpointHook'))", "default_hooks.checkpoints", False),
        ("classes = ('a',)", "classes", False),
        ("custom_hooks = [dict(type='EMAHook')]", "custom_hooks", False),  # without PipelineSwitchHook
        ("custom_hooks = []", "", False),
        ("data_preprocessor = dict(std=[1.0, 2.0, 3.0])", "data_preprocessor", False),  # the model has one
        ("clip_grad = dict(max_norm=35)", "clip_grad", False),
        ("optim_wrapper = dict(clip_grad=dict(max_norm=float('inf')))", "", False),
        ("mine = dict(indices=9, times=2)\ntrain_dataloader = dict(dataset=dict(**mine))", "", False),
        ("dcn = dict(type='DCNv2')", "dcn", False),
        ("warmup = 'linear'", "warmup", False),
        ("img_scale = (320, 320)", "img_scale", False),  # one of tta_pipeline has this value
        ("_notes = 'of mine'", "", False),
        ("default_hooks = dict(visualization=None)", "default_hooks.visualization", True),
        ("default_hooks = dict(timer=None)", "", False),
        ("nms_pre = 3", "nms_pre", False),
        ("model = dict(test_cfg=dict(nms_pre='3000'))", "model.test_cfg.nms_pre", True),
        ("train_dataloader = dict(sampler=dict(shuffle=False))", "train_dataloader.sampler.shuffle", False),
        ("train_dataloader = dict(sampler=None)", "train_dataloader.sampler", False),
        ("train_dataloader = dict(dataset=dict(test_mode=True))", "train_dataloader.dataset", False),
        ("model = dict(test_cfg=dict(score_thr=1.0))", "model.test_cfg.score_thr", True),
        ("val_evaluator = dict(iou_thrs=[50, 75])", "val_evaluator.iou_thrs", True),
        ("model = dict(backbone=dict(init_cfg='resnet50'))", "model.backbone.init_cfg", True),
        ("model = dict(data_preprocessor=dict(bgr_to_rgb=True))", "model.data_preprocessor.mean", False),
        (f"model = dict({REGNET}, data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1, 1]))",
         "model.data_preprocessor.mean", False),  # of other weights
        (f"model = dict({REGNET}, data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, "
         "58.395]))", "", False),
        (f"model = dict({REGNET}, data_preprocessor=dict(mean=[90.5, 116.25, 123.0]))", "", False),
        ("model = dict(backbone=dict(init_cfg=dict(prefix=None)))", "model.backbone.init_cfg.prefix", False),
        ("model = dict(data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], "
         "bgr_to_rgb=True), backbone=dict(_delete_=True, type='SwinTransformer', convert_weights=False, "
         "init_cfg=dict(type='Pretrained', checkpoint='https://github.com/SwinTransformer/storage/releases/"
         "download/v1.0.0/swin_small_patch4_window7_224.pth')))", "model.backbone.convert_weights", False),
        ("model = dict(data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], "
         "bgr_to_rgb=True), backbone=dict(_delete_=True, type='ResNet', depth=18, style='caffe', "
         "init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')))",
         "model.backbone.style", False),
        ("model = dict(backbone=dict(norm_eval='flase'))", "model.backbone.norm_eval", True),
        ("model = dict(bbox_head=dict(loss_bbox=dict(loss_weight=0.0)))",
         "model.bbox_head.loss_bbox.loss_weight", False),
        ("model = dict(bbox_head=dict(loss_cls=dict(type='FocalLoss', alpha=1.0)))",
         "model.bbox_head.loss_cls.alpha", True),
        ("model = dict(bbox_head=dict(_delete_=True, type='FCOSHead', num_classes=80, in_channels=96, "
         "regress_ranges=((-1, 64), (128, 1e8))))", "model.bbox_head.regress_ranges", False),
        ("model = dict(bbox_head=dict(_delete_=True, type='FCOSHead', num_classes=80, in_channels=96, "
         "regress_ranges=(64, 128, 256)))", "", False),  # refused when it is built
        ("model = dict(bbox_head=dict(loss_bbox=dict(loss_weight=0)))",
         "model.bbox_head.loss_bbox.loss_weight", False),
        ("model = dict(train_cfg=dict(initial_epoch=0))", "", False),
        ("train_dataloader = dict(dataset=dict(pipeline=[dict(type='RandomChoiceResize', scales=[("
         "1333, 800), (1333, 80)])]))\ncustom_hooks = []", "train_dataloader.dataset.pipeline.0.scales",
         False),
        ("train_dataloader = dict(dataset=dict(pipeline=[dict(type='Pad', size=(640, 640), pad_val=dict("
         "image=114))]))\ncustom_hooks = []", "train_dataloader.dataset.pipeline.0.pad_val.image", False),
        ("tta_model = dict(type='DetTTAModels')", "tta_model.type", False),
        ("tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='soft_nms')))", "", False),
        ("model = dict(test_cfg=dict(nms_pre=20))", "model.test_cfg.nms_pre", False),
        ("model = dict(test_cfg=dict(nms_pre=40))", "", False),
        ("model = dict(test_cfg=dict(max_per_img=0))", "model.test_cfg.max_per_img", True),
        ("model = dict(test_cfg=dict(max_per_img=-1))", "", False),
        ("model = dict(test_cfg=dict(max_per_img=20))", "", False),
        ("optim_wrapper = dict(optimizer=dict(lr=0.5))", "optim_wrapper.optimizer.lr", False),
        ("optim_wrapper = dict(optimizer=dict(lr=0.0001))", "", False),
        ("test_cfg = dict(rcnn=dict(score_thr=0.5))", "test_cfg.rcnn", False),  # not the model's
        ("default_hooks = (1,)", "default_hooks", True),
    ],
)  # fmt: skip
def test_settings_without_effect(tmp_path, text, subject, stops):
    found = {each.subject: each.stops for each in findings(tmp_path, text) if "ann_file" not in each.subject}
    assert found == ({subject: stops} if subject else {})


class Late(Images):
    def __init__(self):
        super().__init__()
        self.layers.initial_epoch = 12  # as TOODHead, from train_cfg


SWITCH = dict(type="mmdet.PipelineSwitchHook", switch_pipeline=[])
LATE = [dict(type="mmdet.YOLOXModeSwitchHook", skip_type_keys=None, num_last_epochs=15)]  # the default
BY_ITERATIONS = dict(by_epoch=False, max_iters=9)
STEPS = dict(type="MultiStepLR", milestones=[8, 11])


def test_a_clone_of_published_configs(tmp_path):
    """Its files count as published ones, as long as they are unchanged."""
    (folder,) = (folder for folder in published_folders() if (folder / "ms_rcnn").exists())
    for name in ("_base_", "mask_rcnn", "ms_rcnn"):
        shutil.copytree(folder / name, tmp_path / "configs" / name)
    base = tmp_path / "configs/ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py"
    (tmp_path / "mine.py").write_text(f"_base_ = {str(base)!r}\n")

    def own():
        cfg = read_config_file(tmp_path / "mine.py")
        return [os.path.basename(file.path) for file in files(cfg.text) if not file.is_published]

    assert own() == ["mine.py"]
    base.write_text(base.read_text() + "max_epochs = 3\n")
    assert own() == [base.name, "mine.py"]
    (tmp_path / "mine.py").write_text(
        (folder / "vfnet/vfnet_r50_fpn_1x_coco.py").read_text().replace("../", "configs/")
    )
    subjects = {each.subject for each in unread(read_config_file(tmp_path / "mine.py"), "model", Asked())}
    assert "model.train_cfg.debug" not in subjects, "which published configs with this model have"
    assert "model.train_cfg.allowed_border" not in subjects and own() == ["mine.py"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ""),
        (dict(param_scheduler=[STEPS]), ""),
        (dict(param_scheduler=[dict(STEPS, milestones=[4, 13])]), "param_scheduler.0.milestones: "),
        (dict(param_scheduler=[dict(STEPS, milestones=[2, 3], by_epoch=False)]),
         "param_scheduler: expected a rate that falls later, got 0.001 from iteration 3 of 36"),
        (dict(param_scheduler=[dict(STEPS, milestones=[2, 4])]),
         "param_scheduler: expected a rate that falls later, got 0.001 from iteration 12 of 36"),
        (dict(param_scheduler=[dict(type="ExponentialLR", gamma=0.5, by_epoch=False)]),
         "param_scheduler: expected a rate that falls later"),
        (dict(param_scheduler=[dict(type="LinearLR", start_factor=0.001, end=12)]),
         "param_scheduler: expected 0.1 earlier, got at most 0.1, in iteration 33 of 36"),
        (dict(param_scheduler=[dict(type="ConstantLR", factor=0.1, end=12)]),
         "param_scheduler: expected 0.1 earlier"),
        (dict(param_scheduler=[dict(type="CosineAnnealingLR", T_max=5, by_epoch=False)]),
         "param_scheduler: expected a rate that falls once, got one that rises after iteration 3 of"),
        (dict(param_scheduler=[dict(type="LinearLR", end=20, by_epoch=False)]), ""),
        (dict(param_scheduler=[STEPS, dict(STEPS, gamma=1.0)]), "param_scheduler.1: does not change"),
        (dict(param_scheduler=[dict(STEPS, end=6)]), "param_scheduler.0: does not change"),
        (dict(param_scheduler=[STEPS, dict(type="CosineAnnealingLR", T_max=12)]),
         "param_scheduler.1: lowers the learning rate in the same iterations as param_scheduler.0"),
        (dict(param_scheduler=[dict(type="LinearLR", start_factor=0.001, end=6, by_epoch=False), STEPS,
                               dict(type="CosineAnnealingLR", T_max=12)]),
         "param_scheduler.2: lowers the learning rate in the same iterations as param_scheduler.1"),
        (dict(param_scheduler=[dict(type="LinearLR", end=6, by_epoch=False)] * 2),
         "param_scheduler.1: raises the learning rate in the same iterations as param_scheduler.0"),
        (dict(param_scheduler=[dict(type="CosineRestartLR", periods=[9, 9], restart_weights=[1, 1],
                                   eta_min=0)]),
         "param_scheduler.0.cumulative_periods: "),
        (dict(param_scheduler=[dict(type="CosineAnnealingLR", T_max=12, eta_min=0.5)]),
         "param_scheduler: expected a last rate below 0.1"),
        (dict(param_scheduler=[dict(type="LinearLR", start_factor=0.001, end=6, by_epoch=False)]), ""),
        (dict(param_scheduler=[STEPS, dict(type="LinearLR", end=6, by_epoch=False)], model=Images(),
              optim_wrapper=dict(
            optimizer=dict(type="SGD", lr=0.1),
            paramwise_cfg=dict(custom_keys=dict(weight=dict(lr_mult=0))))), ""),  # of the first group
        (dict(param_scheduler=[dict(type="LinearLR", end=40, by_epoch=False)]), "param_scheduler.0.end: "),
        (dict(param_scheduler=[dict(type="OneCycleLR", eta_max=0.5, total_steps=36, by_epoch=False)]), ""),
        (dict(train_cfg=dict(by_epoch=True, max_epochs=12, val_begin=13)), "EpochBasedTrainLoop.val_begin: "),
        (dict(train_cfg=dict(by_epoch=True, max_epochs=12, dynamic_intervals=[(12, 1)])),
         "EpochBasedTrainLoop.dynamic_milestones: "),
        (dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook", save_begin=13))),
         "CheckpointHook.save_begin: "),
        (dict(custom_hooks=[dict(SWITCH, switch_epoch=12)]), "PipelineSwitchHook.switch_epoch: "),
        (dict(custom_hooks=[dict(SWITCH, switch_epoch=11)]), ""),
        (dict(custom_hooks=[dict(type="EarlyStoppingHook", monitor="a", rule="less", patience=13)]),
         "EarlyStoppingHook.patience: "),
        (dict(optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1), accumulative_counts=37)),
         "OptimWrapper.accumulative_counts: "),
        (dict(custom_hooks=[dict(type="mmdet.CheckInvalidLossHook", interval=37)]),
         "CheckInvalidLossHook.interval: "),
        (dict(custom_hooks=[dict(type="mmdet.YOLOXModeSwitchHook", skip_type_keys=("Mosaik",),
                                 num_last_epochs=1)]), "YOLOXModeSwitchHook.skip_type_keys: "),
        (dict(custom_hooks=LATE, cfg=dict(custom_hooks=LATE)), "YOLOXModeSwitchHook.num_last_epochs: "),
        (dict(custom_hooks=[dict(type="EMAHook", interval=37)]), "EMAHook.interval: "),
        (dict(custom_hooks=[Hook()]), "Hook: expected methods of mmengine's Hook"),
        (dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=13))),
         "CheckpointHook.interval: "),
        (dict(custom_hooks=[dict(type="EarlyStoppingHook", monitor="a", rule="less")],
              val_dataloader=None, val_cfg=None, val_evaluator=None),
         "EarlyStoppingHook: expected a validation"),
        (dict(model=Late()), "model.layers.initial_epoch: "),
        (dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook", save_last=False))),
         "default_hooks.checkpoint: expected a checkpoint"),
        (dict(train_cfg=BY_ITERATIONS), "CheckpointHook.by_epoch: expected False"),
        (dict(train_cfg=BY_ITERATIONS, param_scheduler=[STEPS],
              default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False))),
         "param_scheduler.0.by_epoch: expected False"),
        (dict(custom_hooks=[dict(type="EMAHook"), dict(type="EMAHook", momentum=0.001)]),
         "custom_hooks: expected one EMAHook"),
        (dict(param_scheduler=[dict(type="MultiStepLR", milestones=[8, 11])],
              default_hooks=dict(param_scheduler=None)), "default_hooks: expected a ParamSchedulerHook"),
        (dict(default_hooks=dict(sampler_seed=None)), "default_hooks: expected a DistSamplerSeedHook"),
        (dict(default_hooks=dict(checkpoint=None)), "default_hooks.checkpoint: expected a checkpoint"),
        (dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1))),
         "CheckpointHook.interval: expected more than 1 iterations"),
        (dict(train_cfg=BY_ITERATIONS,
              custom_hooks=[dict(type="mmdet.YOLOXModeSwitchHook", num_last_epochs=2)],
              default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False))),
         "YOLOXModeSwitchHook.num_last_epochs: expected a training that counts epochs"),
    ],
)  # fmt: skip
def test_what_a_training_does_not_reach(tmp_path, settings, expected):
    """12 epochs of 3 iterations; milestones may lie beyond its end."""
    settings = dict(train_cfg=dict(by_epoch=True, max_epochs=12)) | settings
    runner = make_runner(tmp_path, "end", **settings)
    runner.train_loop.dataloader.dataset.pipeline_types = ["Mosaic"]
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert runner.train_loop.max_iters in (9, 36)
    if runner.param_schedulers:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    found = [*map(str, without_effect(runner))]
    assert [each[: len(expected)] for each in found] == ([expected] if expected else [])


def test_rates_with_a_warm_up_that_is_longer_than_the_training(tmp_path):
    """They are those of a training with more pictures."""
    settings = dict(train_cfg=dict(by_epoch=True, max_epochs=12))
    falls = dict(type="LinearLR", start_factor=1.0, end_factor=0.001, by_epoch=False, end=500)
    runner = make_runner(tmp_path, "long", param_scheduler=[falls], **settings)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    late, early = map(str, without_effect(runner))
    assert late.startswith("param_scheduler.0.end: expected at most 36 in this training, got 500")
    assert "expected a rate that falls later, got 0.0001 from iteration 499 of 5004" in early


@pytest.mark.parametrize(("pictures", "expected"), [(10, []), (11, ["train_cfg.val_interval"])])
def test_validations_that_take_longer_than_the_training(tmp_path, pictures, expected):
    loader = {"dataset": [*range(pictures)], "batch_size": 1, "sampler": {"type": "DefaultSampler"}}
    hooks = {"checkpoint": {"type": "CheckpointHook", "by_epoch": False}}
    settings = {"train_cfg": {**BY_ITERATIONS, "val_interval": 1}, "default_hooks": hooks}
    runner = make_runner(tmp_path, "often", val_dataloader=loader, **settings)
    assert runner.train_loop.max_iters == 9 and runner.val_loop
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert [each.subject for each in without_effect(runner)] == expected


@pytest.mark.parametrize(
    ("options", "settings", "expected"),
    [
        ({}, {}, ["optim_wrapper.optimizer.lr"]),
        ({"batch_size": 64}, {}, []),
        ({"lr": 0.0005}, {}, []),
        ({"lr": 0.004}, {"optim_wrapper.optimizer.type": "SGD"}, ["optim_wrapper.optimizer.lr"]),
        ({"lr": 0.1}, {"optim_wrapper.optimizer.type": "SGD"}, []),
        ({"auto_scale_lr": True}, {}, ["optim_wrapper.optimizer.lr"]),  # MMDetection's base is 16
        ({"auto_scale_lr": True}, {"auto_scale_lr.base_batch_size": 256}, []),
        ({"auto_scale_lr": True}, {"auto_scale_lr.base_batch_size": 2048}, ["auto_scale_lr.base_batch_size"]),
        (
            {"auto_scale_lr": True, "lr": 0.004 * 63 / 256},
            {"auto_scale_lr.base_batch_size": 256},
            ["optim_wrapper.optimizer.lr"],
        ),  # which was scaled by hand
    ],
)
def test_a_published_rate_is_for_the_batches_in_its_name(tmp_path, options, settings, expected):
    (tmp_path / "mine.py").write_text(f"_base_ = {RTMDET!r}\ntrain_dataloader = dict(batch_size=63)\n")
    recipe = Recipe.read(tmp_path / "mine.py", settings)
    cfg = recipe.with_options(TrainOptions(work_dir=tmp_path, **options)).cfg
    loader = SimpleNamespace(**cfg.train_dataloader)
    runner = SimpleNamespace(cfg=cfg, optim_wrapper=None, train_dataloader=loader)
    assert [each.subject for each in unusual_rate(runner)] == expected


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
    runner.register_hook(EffectHook())
    with pytest.raises(UserError, match=r"^train_dataloader: .*2 pictures with batch_size=4 and drop_"):
        runner.train()
    assert not [*tmp_path.rglob("*.pth")]
    loader = {"dataset": [1, 2], "batch_size": 1, "sampler": {"type": "InfiniteSampler"}}
    runner = make_runner(tmp_path, "endless", Convolution(), train_dataloader=loader)
    runner.register_hook(EffectHook())
    with pytest.raises(UserError, match=r"^train_dataloader.sampler: .* got InfiniteSampler"):
        runner.train()


def test_a_variable_on_which_no_setting_depends(tmp_path):
    """Also ``data_preprocessor``, which mmengine reads only if the model has none."""
    base = (
        f"_base_ = {RTMDET!r}\nsize = 3\n_half = size // 2\ndata_preprocessor = dict(std=[1.0, 2.0, 3.0])\n"
    )
    (tmp_path / "base.py").write_text(f"{base}model = dict(data_preprocessor=data_preprocessor)\n")
    for text, expected in (
        ("size = 3", {}),
        ("size = 4", {"size": False}),
        ("size = 4\n_half = size", {"_half": False}),
        ("data_preprocessor = dict(std=[4.0, 4.0, 4.0])", {"model.data_preprocessor.std": True}),
    ):
        found = findings(tmp_path, text, "base.py")
        assert {each.subject: each.stops for each in found if "ann_file" not in each.subject} == expected


@pytest.mark.parametrize(
    ("text", "path", "stops"),
    [
        ("max_epochs = 20", "train_cfg.max_epochs", True),
        ("base_lr = 0.001", "optim_wrapper.optimizer.lr", True),
        (
            "base_lr = 0.001\noptim_wrapper = dict(optimizer=dict(lr=base_lr))",
            "param_scheduler.1.eta_min",
            False,
        ),
        ("interval = 3", "train_cfg.val_interval", True),
    ],
)
def test_a_variable_of_a_base(tmp_path, text, path, stops):
    """The base has copied its value before."""
    problems = findings(tmp_path, text)
    assert any(path in str(problem) and problem.stops == stops for problem in problems)
    assert any(problem.stops for problem in problems) == stops


C4 = """norm_cfg = dict(type='BN', requires_grad=True)
model = dict(backbone=dict(norm_cfg=norm_cfg), roi_head=dict(shared_head=dict(norm_cfg=norm_cfg)))
"""


def test_a_variable_that_the_settings_use_in_another_scope(tmp_path):
    assert findings(tmp_path, C4, "mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py") == []


OWN_BASE = """
def size(scale):
    edge = scale * 8
    return (edge, edge)

edge = 3
epochs = 12
model = dict(type="RetinaNet", test_cfg=dict(max_per_img=edge))
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs)
sizes = size(2)
"""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_epochs = 300",  # the same value
        "max_epochs = 9\ntrain_cfg = dict(max_epochs=9, dynamic_intervals=[(280, 1)])\nparam_scheduler = []",
        "name_of_mine = 3",
        "train_pipeline = []\ntrain_dataloader = dict(dataset=dict(pipeline=train_pipeline))",
        "img_scales = []",  # only of tests
    ],
)
def test_a_variable_that_is_used_or_new(tmp_path, text):
    assert not [problem for problem in findings(tmp_path, text) if problem.stops]


def test_variables_of_functions_and_of_own_bases(tmp_path):
    (tmp_path / "own.py").write_text(OWN_BASE)
    for text, expected in (("epochs = 5", ["train_cfg.max_epochs"]), ("sizes = 4", []), ("edge = 3", [])):
        (tmp_path / "child.py").write_text(f"_base_ = 'own.py'\n{text}\n")
        problems = find_problems(read_config_file(tmp_path / "child.py"))
        assert [problem.subject for problem in problems if problem.stops] == expected
    child = "from mmengine.config import read_base\nwith read_base():\n    from .own import *\nepochs = 5\n"
    (tmp_path / "child.py").write_text(child)
    problems = find_problems(read_config_file(tmp_path / "child.py"))
    assert [problem.subject for problem in problems if problem.stops] == ["train_cfg.max_epochs"]


def test_variables_in_the_config_of_a_work_directory(tmp_path):
    """A training with --epochs writes another train_cfg beside the variable; the user's change is named."""
    text = "max_epochs = 8\ntrain_cfg = dict(max_epochs=2)\n"
    file = tmp_path / "run.py"
    for content, subjects in (
        (config_of("run.py", text), []),
        (config_of("run.py", text).replace("= 8", "= 9"), ["max_epochs"]),
    ):
        file.write_text(content)
        assert [problem.subject for problem in wrong_top_level_keys(read_config_file(file))] == subjects


@pytest.mark.parametrize("name", ["lr", "epochs", "amp", "num_classes", "checkpoint", "device"])
def test_a_variable_that_looks_like_a_setting(tmp_path, name):
    (problem,) = findings(tmp_path, f"{name} = 'cuda'", "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    assert problem.subject == name and not problem.stops


def test_a_key_of_version_2_in_a_base_is_a_warning(tmp_path):
    (tmp_path / "own.py").write_text(f"_base_ = {PLAIN!r}\ncheckpoint_config = dict(interval=1)\n")
    (problem,) = findings(tmp_path, "", str(tmp_path / "own.py"))
    assert problem.subject == "checkpoint_config" and not problem.stops


VALID = {
    "an infinite norm": "optim_wrapper = dict(clip_grad=dict(max_norm=float('inf')))",
    "a text of several lines with a path": 'note = """\n/data/mine.py\n"""',
    "a milestone as a float": "param_scheduler = [dict(type='CosineAnnealingLR', T_max=12.0)]",
}


@pytest.mark.parametrize("text", VALID.values(), ids=VALID)
def test_valid_settings(tmp_path, text):
    assert not [problem for problem in findings(tmp_path, text) if problem.stops]
    TrainOptions(epochs=3, work_dir=tmp_path).apply(read_config_file(tmp_path / "mine.py"))


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


def test_an_option_that_is_given_twice():
    message = error_of("train", PLAIN, "--cfg-options", "resume=True", "resume=False", status=2)
    assert "resume: expected one value" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            "default_hooks = dict(checkpoint=dict(file_client_args=dict(backend='disk')))",
            "checkpoint.file_client_args",
        ),
        (
            "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', "
            "checkpoint='open-mmlab://resnet5O')))",
            "model.backbone.init_cfg.checkpoint: open-mmlab://resnet5O: expected the name of published",
        ),
        (
            "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', "
            "checkpoint='hf://timm/resnet18')))",
            "model.backbone.init_cfg.checkpoint: hf://timm/resnet18: expected one of torchvision://, ",
        ),
        ("custom_hooks = [dict(type='EMAHook', priority=5000)]", "custom_hooks.0.priority: "),
        ("custom_hooks = [dict(type='EMAHook', momentun=0.1)]", "custom_hooks.0.momentun"),
        ("custom_hooks = [dict(type='EMAHook', momentum=1.5)]", "custom_hooks.0.momentum: "),
        ("load_from = 'other.pth'", "other.pth: expected the weights of this model"),
        ("load_from = 'own.pth'\ncustom_hooks = [dict(type='EMAHook')]", ""),
    ],
)
def test_dry_run_of_a_config(tmp_path, monkeypatch, text, key):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"layer.weight": torch.zeros(1)}}, "other.pth")
    torch.save(build(Recipe.read(PLAIN)).state_dict(), "own.pth")
    (tmp_path / "mine.py").write_text(f"_base_ = {PLAIN!r}\n{text}\n")
    command = ("train", tmp_path / "mine.py", "--work-dir", tmp_path / "work", "--dry-run")
    assert key in error_of(*command) if key else run(*command)
    assert not (tmp_path / "work").exists()


def test_a_dry_run_shows_the_warnings_of_the_parts(tmp_path):
    """A training shows them when it builds the parts."""
    hook = "custom_hooks = [dict(type='EMAHook', momentum=0.999)]"
    (tmp_path / "mine.py").write_text(f"_base_ = {PLAIN!r}\n{hook}\n")
    output = run("train", tmp_path / "mine.py", "--work-dir", tmp_path / "work", "--dry-run")
    assert "momentum but got 0.999" in output
