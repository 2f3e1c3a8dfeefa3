"""The first batch of a training runs through its own pipelines and a model that is thrown away."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.openmmlab.config.packages import base_path
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs.batches import _WINDOW, _sizes, first_batch
from dcnzoo.openmmlab.runs.execute import build_runner
from dcnzoo.openmmlab.runs.reads import _unlike_published, require_read, unread_of_model
from dcnzoo.openmmlab.runs.recipe import Recipe, read_config_file
from dcnzoo.openmmlab.runs.rehearse import load_data, require_parts
from dcnzoo.openmmlab.runs.schedules import EffectHook
from dcnzoo.openmmlab.runs.separate_run import separate_run, trial
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.utils.errors import UserError

from ..commands import error_of, run
from ..demo import PLAIN

LOAD = "dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask={masks})"
PIPELINE = "[" + LOAD + ", {step} dict(type='PackDetInputs')]"
RESIZED = PIPELINE.format(masks=True, step="dict(type='Resize', scale=({size}), keep_ratio={ratio}),")
MOSAIC = "dict(type='{type}', img_scale=(64, 64)),"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder / "data", ShapesSpec(train=8, val=2))
    content = json.loads((folder / "data/annotations/val.json").read_text())
    (folder / "data/annotations/empty.json").write_text(json.dumps({**content, "annotations": []}))
    content["categories"] = [{**each, "id": 4 - each["id"]} for each in content["categories"]]
    (folder / "data/annotations/other_ids.json").write_text(json.dumps(content))
    return folder / "data"


def make_runner(folder, shapes, data="", text="", **settings):
    own = f"data_root='{shapes}/', shapes=None"
    lines = [f"_base_ = {PLAIN!r}", f"train_dataloader = dict(dataset=dict({own}, {data}))"]
    lines += [f"val_dataloader = dict(dataset=dict({own}))"]
    lines += [f"val_evaluator = dict(ann_file='{shapes}/annotations/val.json')", text]
    (folder / "mine.py").write_text("\n".join(lines))
    cfg = read_config_file(folder / "mine.py", settings)
    return build_runner(Recipe(cfg).with_options(TrainOptions(work_dir=folder / "work", seed=1)).cfg, Start())


def check(runner, only_checks=False):
    with config_errors(runner.cfg):
        load_data(runner, only_checks)
        require_read(runner)


@pytest.mark.parametrize(
    ("data", "text", "key"),
    [
        ("pipeline=" + PIPELINE.format(masks=False, step=""), "",
         r"train_dataloader\.dataset\.pipeline: .*masks, which model\.roi_head\.mask_head"),
        ("pipeline=" + PIPELINE.format(masks=True, step=MOSAIC.format(type="Mosaic")), "",
         r"train_dataloader\.dataset\.pipeline\.2: .*Mosaic: .*mix_results"),
        ("pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), "
         "dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]", "",
         r"train_dataloader\.dataset\.pipeline\.2: .*expected before"),
        # in some pictures only
        (f"pipeline=[{LOAD.format(masks=True)}, dict(type='PackDetInputs'), dict(type='RandomFlip', "
         "prob=0.5)]", "", r"train_dataloader\.dataset\.pipeline\.3: .*img"),
        ("data_prefix=dict(_delete_=True)", "", r"train_dataloader\.dataset\.data_prefix: .*img"),
        ("", "val_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
         "dict(type='PackDetInputs', meta_keys=('img_id',))]))", r"model\.rpn_head: .*val_dataloader"),
        ("", "val_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict("
         "type='Resize', scale=(64, 64)), dict(type='PackDetInputs', meta_keys=('img_shape', 'ori_shape', "
         "'scale_factor'))]))",
         r"val_evaluator: .*img_id"),
        ("", "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='pretrained', "
         "checkpoint='https://here.org/x.pth')))",
         r"model\.backbone\.init_cfg\.type: expected Pretrained, got pretrained"),
        ("", "val_evaluator.update(metric_items=['AP'])", r"val_evaluator: .*AP"),
        ("", "default_hooks = dict(checkpoint=dict(save_best=['coco/bbox_mAP', 'coco/segm_map']))",
         r"default_hooks\.checkpoint\.save_best: expected one of coco/bbox_mAP, .*, got 'coco/segm_map'"),
        ("", "custom_hooks = [dict(type='EarlyStoppingHook', monitor='bbox_mAP')]",
         r"custom_hooks\.0\.monitor: .*'bbox_mAP'"),
        ("", "param_scheduler = [dict(type='ReduceOnPlateauLR')]", r"param_scheduler\.0\.monitor: .*'loss'"),
        ("", "model = dict(neck=dict(num_outs=3))",
         r"model\.rpn_head\.anchor_generator\.strides: expected .* 16, 8, 4 wide for 128 pixels, got 8, 16"),
        # the error names neither the assigner nor its type
        ("", "model = dict(train_cfg=dict(rpn=dict(assigner=dict(_delete_=True, type='SimOTAAssigner'))))",
         r"model\.rpn_head: .*may be its cause: model\.train_cfg\.rpn\.assigner\.type, "),
        # in the last epochs only
        ("", "custom_hooks = [dict(type='mmdet.PipelineSwitchHook', switch_epoch=6, switch_pipeline="
         + PIPELINE.format(masks=True, step="dict(type='RandomShift'), dict(type='Mosaic'),") + ")]",
         r"train_dataloader\.dataset\.pipeline\.3: .*mix_results.*in the last epoch"),
        ("", "custom_hooks = [dict(type='mmdet.PipelineSwitchHook', switch_epoch=6, switch_pipeline="
         + PIPELINE.format(masks=False, step="") + ")]",
         r"train_dataloader\.dataset\.pipeline: .*masks, which model\.roi_head\.mask_head"),
        # acts every ten iterations
        ("", "model = dict(data_preprocessor=dict(batch_augments=[dict(type='BatchSyncRandomResize', "
         "random_size_range=(128, 64))]))", r"model\.data_preprocessor\.batch_augments\.0\b.*: .*empty"),
    ],
)  # fmt: skip
def test_mistakes_that_the_first_iteration_would_meet(tmp_path, shapes, data, text, key):
    with separate_run(), pytest.raises(UserError, match=rf"mine\.py: {key}"):
        runner = make_runner(tmp_path, shapes, data, text)
        check(runner)


def test_a_hook_of_the_users_own_may_prepare_the_model(tmp_path, shapes, package):
    text = """from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class PreparingHook(Hook):
    pass
"""
    __import__(package("preparing_hook", text))
    data = "pipeline=" + PIPELINE.format(masks=False, step="")
    with separate_run():
        check(make_runner(tmp_path, shapes, data, "custom_hooks = [dict(type='PreparingHook')]"))


VALID = {
    "as it is": ("", ""),
    "no schedule": ("", "param_scheduler = None"),
    "annotations of the file's size": ("", "val_dataloader['dataset'].update(pipeline=[dict("
                                       "type='LoadImageFromFile'), dict(type='Resize', scale=(160, 160), "
                                       "keep_ratio=True), dict(type='LoadAnnotations', with_bbox=True, "
                                       "with_mask=True), dict(type='PackDetInputs')])"),
    "a number of batches": ("", "train_dataloader.update(num_batch_per_epoch=1)"),
    "metrics of each class": ("", "val_evaluator.update(classwise=True, prefix='mine')\ndefault_hooks = dict("
                              "checkpoint=dict(save_best=['mine/segm_mAP_50', 'mine/oval_precision']))"),
    "a wrapper": ("", "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, "
                  "dataset=dict(type='ShapesDataset', data_root='{root}', ann_file='annotations/train.json', "
                  "data_prefix=dict(img='train/'), pipeline=" + PIPELINE.format(masks=True, step="") + ")))"),
    "sizes from the message hub": ("", "model = dict(data_preprocessor=dict(batch_augments=[dict("
                                   "type='BatchSyncRandomResize', random_size_range=(64, 128))]))"),
    "settings that are read later": ("", "model = dict(roi_head=dict(type='DynamicRoIHead', bbox_head=dict("
                                     "loss_bbox=dict(type='SmoothL1Loss'))), train_cfg=dict(rcnn=dict("
                                     "dynamic_rcnn=dict(iou_topk=75, beta_topk=10, update_iter_interval=100, "
                                     "initial_iou=0.4, initial_beta=1.0))))"),
}  # fmt: skip


@pytest.fixture
def lines(monkeypatch):
    """The warnings about a config that are shown: none while logging is disabled."""
    shown = []

    def log(line, *args, **kwargs):
        if logging.root.manager.disable < logging.WARNING:
            shown.append(line)

    monkeypatch.setattr("dcnzoo.openmmlab.config.errors.print_log", log)
    return shown


@pytest.mark.parametrize(("data", "text"), VALID.values(), ids=VALID)
def test_valid_settings_give_no_warning(tmp_path, shapes, lines, data, text):
    with separate_run():
        runner = make_runner(tmp_path, shapes, data, text.replace("{root}", str(shapes)))
        check(runner, only_checks=True)
    assert lines == []


EXTRACTOR = "model = dict(roi_head=dict(bbox_roi_extractor=dict(featmap_strides={})))"
STRIDES = "model.roi_head.bbox_roi_extractor.featmap_strides: expected "
WARNINGS = {
    "too few strides": (EXTRACTOR.format([4, 8]), [STRIDES]),
    "other strides": (EXTRACTOR.format([4, 8, 16, 32]), [STRIDES]),
    "large anchors": (
        "model = dict(rpn_head=dict(anchor_generator=dict(scales=[100])), "
        "train_cfg=dict(rpn=dict(allowed_border=-1)))",
        ["model.rpn_head.anchor_generator: expected anchors of the objects' sizes"],
    ),
    "a random validation": (
        "val_dataloader['dataset'].update(pipeline="
        + PIPELINE.format(
            masks=True,
            step="dict(type='Resize', scale=(64, 64), keep_ratio=True), dict(type='RandomFlip', prob=0.5),",
        )
        + ")",
        ["val_dataloader.dataset.pipeline: expected the same picture each time"],
    ),
    "a validation without a metric": (
        "val_evaluator.update(format_only=True, outfile_prefix='boxes')",
        ["val_evaluator: expected a metric"],
    ),
    "pixels that are normalised twice": (  # in pictures of several sizes, which are padded
        "train_dataloader['dataset'].update(pipeline="
        + PIPELINE.format(
            masks=True,
            step="dict(type='RandomResize', scale=[(128, 32), (128, 128)], keep_ratio=True), "
            "dict(type='Normalize', mean=[124, 116, 104], std=[58, 57, 57]),",
        )
        + ")",
        ["model.data_preprocessor.std: expected normalised pixels"],
    ),
    "anchors for pictures of another size": (
        "model = dict(neck=dict(num_outs=3), rpn_head=dict(anchor_generator=dict(_delete_=True, "
        "type='SSDAnchorGenerator', strides=[8, 16, 32], ratios=[[2], [2], [2]], "
        "basesize_ratio_range=(0.2, 0.9), input_size=300)))",
        ["model.rpn_head.anchor_generator.input_size: expected 128"],
    ),
    "boxes of a detector that has none": (
        "import mmengine.config as _config\n"
        f"model = _config.Config.fromfile({base_path('mmdet::solov2/solov2_r50_fpn_1x_coco.py', '')[0]!r})."
        "model.to_dict()\nmodel.update(_delete_=True)\nmodel['mask_head'].update(num_classes=3)\n"
        "model['backbone'].update(depth=18, init_cfg=None, frozen_stages=-1, norm_eval=False)\n"
        "model['neck'].update(in_channels=[64, 128, 256, 512])\n"
        "val_evaluator.update(metric='bbox')",
        ["val_evaluator.metric: expected one of masks"],
    ),
    "statistics of a batch of one picture": (
        "train_dataloader.update(batch_size=1)\nmodel = dict(backbone=dict(norm_eval=False))",
        ["train_dataloader.batch_size: expected at least 2, as model.backbone.bn1 normalises"],
    ),
    "a score that is to be small": (
        "default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP', rule='less'))",
        ["default_hooks.checkpoint.save_best: expected rule='greater'"],
    ),
    "a score that is to be small by default": (
        "param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='coco/bbox_mAP')]",
        ["param_scheduler.0.monitor: expected rule='greater'"],
    ),
    "a gain of more than an AP": (
        "custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', min_delta=1)]",
        ["custom_hooks.0.min_delta: expected less than 1"],
    ),
    "no anchor is an object's": (
        "model = dict(train_cfg=dict(rpn=dict(assigner=dict(pos_iou_thr=1.0, min_pos_iou=1.0))))",
        ["model.rpn_head: expected a loss for the boxes of two pictures, got 0"],
    ),
    "a loss that is logged": (
        "log_processor = dict(custom_cfg=[dict(data_src='loss_boxes', method_name='mean', window_size=9)])",
        ["log_processor.custom_cfg.0.data_src: expected a loss of the model, loss_rpn_cls, "],
    ),
    "overlaps of encoded boxes": (
        "model = dict(roi_head=dict(bbox_head=dict(loss_bbox=dict(_delete_=True, type='GIoULoss'))))",
        ["model.roi_head.bbox_head.reg_decoded_bbox: expected True with GIoULoss"],
    ),
    "larger pictures in a validation": (
        "val_dataloader['dataset'].update(pipeline=" + RESIZED.format(size="512, 512", ratio=True) + ")",
        ["val_dataloader.dataset.pipeline: expected pictures of about 128 pixels"],
    ),
    "another shape in a validation": (
        "val_dataloader['dataset'].update(pipeline=" + RESIZED.format(size="128, 64", ratio=False) + ")",
        ["val_dataloader.dataset.pipeline: expected keep_ratio=True"],
    ),
    "a loss that is not finite": (
        "model = dict(roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.0, 0.0, 0.2, 0.2]))))",
        ["model: expected a finite loss_bbox"],
    ),
    "a mean in other units": (
        "model = dict(data_preprocessor=dict(mean=[0.485, 0.456, 0.406]))",
        ["model.data_preprocessor.mean: expected one of pixels from 0 to "],
    ),
    "pictures that are not predicted": (
        "val_dataloader.update(batch_size=3, drop_last=True)",
        ["val_dataloader: expected all 2 pictures in a validation, got 0"],
    ),
    "weights of another depth": (
        "import mmdet.models as _models, torch as _torch\n"
        "_torch.save(_models.ResNet(depth=50).state_dict(), 'other.pth')\n"
        "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', "
        "checkpoint='other.pth')))",
        ["model.backbone.init_cfg.checkpoint: expected values for "],
    ),
    "a validation without objects": (
        "val_dataloader['dataset'].update(ann_file='annotations/empty.json')",
        ["val_dataloader: expected objects to evaluate, got none"],
    ),
    "annotations that are resized": (
        "val_dataloader['dataset'].update(pipeline=" + RESIZED.format(size="224, 224", ratio=True) + ")\n"
        "val_evaluator = dict(_delete_=True, type='VOCMetric')",
        ["val_evaluator: expected pascal_voc/mAP of about 1 for the annotations of val_dataloader"],
    ),
    "other classes in the file of a metric": (
        "val_evaluator['ann_file'] = val_evaluator['ann_file'].replace('val.json', 'other_ids.json')",
        ["val_evaluator: expected coco/bbox_mAP of about 1 for the annotations of val_dataloader"],
    ),
    "pictures that are mirrored": (
        "val_dataloader['dataset'].update(pipeline="
        + RESIZED.format(size="128, 128", ratio=True).replace(
            "dict(type='P", "dict(type='RandomFlip', prob=1.0), dict(type='P"
        )
        + ")",
        [
            "val_dataloader.dataset.pipeline: expected pictures that are not mirrored",
            "val_evaluator: expected coco/bbox_mAP of about 1 for the annotations of val_dataloader",
        ],
    ),
    "steps that change nothing": (
        "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, eps=1e8))",
        ["optim_wrapper.optimizer: expected a step of about -0.0001 for a gradient of 1, got -1e-12"],
    ),
    "pictures that are all mirrored": (
        "train_dataloader['dataset'].update(pipeline="
        + PIPELINE.format(masks=True, step="dict(type='RandomFlip', prob=1.0),")
        + ")",
        ["train_dataloader.dataset.pipeline: expected pictures that are not mirrored"],
    ),
    "a validation of some pictures": (
        "val_dataloader['dataset'].update(indices=1)",
        ["val_evaluator: expected the 1 picture of val_dataloader, got a file of 2"],
    ),
    "pictures without their objects": (
        "train_dataloader['dataset'].update(pipeline="
        + PIPELINE.format(
            masks=True, step="dict(type='FilterAnnotations', min_gt_bbox_wh=(500, 500), keep_empty=False),"
        )
        + ")",
        ["train_dataloader.dataset.pipeline: expected objects in some pictures, got none"],
    ),
    "norms that are never trained": (
        "model = dict(backbone=dict(frozen_stages=-1), "
        "neck=dict(norm_cfg=dict(type='BN', requires_grad=False)))",
        ["model.neck.lateral_convs.0.bn: expected init_cfg or load_from"],
    ),
    "no positive proposal": (
        "model = dict(train_cfg=dict(rcnn=dict(sampler=dict(pos_fraction=0.0))))",
        ["model.roi_head.bbox_head: expected a loss for the boxes of two pictures, got 0"],
    ),
    "no detection": (
        "model = dict(test_cfg=dict(rpn=dict(min_bbox_size=1000)))",
        ["model.test_cfg: expected detections of any score before the training, got none"],
    ),
    "pictures of another size than in their annotations": (
        "import cv2 as _cv2, pathlib as _pathlib\n"
        "_from = val_dataloader['dataset']['data_root'] + 'val/'\n"
        "_pathlib.Path('smaller').mkdir()\n"
        "for _each in _pathlib.Path(_from).iterdir():\n"
        "    _cv2.imwrite(f'smaller/{_each.name}', _cv2.imread(str(_each))[::2, ::2])\n"
        "val_dataloader['dataset'].update(data_prefix=dict(img=str(_pathlib.Path('smaller').resolve())))",
        ["png: expected 128 × 128 pixels, as its annotations, got 64 × 64"],
    ),
    "a loss of boxes in pixels": (
        "model = dict(roi_head=dict(bbox_head=dict(reg_decoded_bbox=True)))",
        ["model.roi_head.bbox_head.reg_decoded_bbox: expected False with L1Loss"],
    ),
    "pictures that are not packed": (
        f"train_dataloader['dataset'].update(pipeline=[{LOAD.format(masks=True)}])",
        ["train_dataloader.dataset.pipeline: expected inputs and data_samples, as of PackDetInputs, got "],
    ),
    "tiny pictures": (
        "train_dataloader['dataset'].update(pipeline="
        + PIPELINE.format(masks=True, step="dict(type='Resize', scale_factor=0.1),")
        + ")",
        [
            "train_dataloader.dataset.pipeline: expected pictures of at least 32",
            "val_dataloader.dataset.pipeline: expected pictures of about 13 pixels",
            "model.rpn_head.anchor_gen",
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), WARNINGS.values(), ids=WARNINGS)
def test_settings_with_another_effect(tmp_path, shapes, monkeypatch, lines, text, expected):
    monkeypatch.chdir(tmp_path)
    with separate_run():
        runner = make_runner(tmp_path, shapes, text=text)
        require_parts(runner, only_checks=False)
        check(runner)
    assert not [*tmp_path.glob("boxes*")]
    assert all(each in line for each, line in zip(expected, lines, strict=True)), lines


def test_overlaps_of_encoded_boxes():
    """GFL's and DDOD's heads decode the boxes by themselves. SOLO's resizes its maps."""
    files = {
        "gfl/gfl_r50_fpn_1x_coco.py": 0,
        "ddod/ddod_r50_fpn_1x_coco.py": 0,
        "solov2/solov2-light_r18_fpn_ms-3x_coco.py": 0,
    }
    files |= {"retinanet/retinanet_r18_fpn_1x_coco.py": 1, "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py": 1}
    for name, number in files.items():
        cfg = Config.fromfile(base_path(f"mmdet::{name}", "")[0])
        cfg.model.backbone.init_cfg = None
        part = "roi_head.bbox_head" if "roi_head" in cfg.model else "bbox_head"
        if number:
            cfg.merge_from_dict({f"model.{part}.loss_bbox": dict(_delete_=True, type="GIoULoss")})
        with trial(cfg):
            problems = unread_of_model(cfg, torch.nn.Linear(1, 1))
        names = [problem.subject for problem in problems if "compares boxes" in problem.text]
        assert names == [f"model.{part}.reg_decoded_bbox"] * number
        assert not [problem for problem in problems if "strides" in problem.subject]


def test_fewer_queries_than_detections():
    """The key is the setting that the line that failed has, not the module that runs."""
    cfg = Config.fromfile(base_path("mmdet::detr/detr_r50_8xb2-150e_coco.py", "")[0])
    cfg.merge_from_dict({"model.backbone.init_cfg": None, "model.num_queries": 50})
    with trial(cfg):
        (problem,) = unread_of_model(cfg, torch.nn.Linear(1, 1))
    assert "out of range" in problem.text and problem.subject == "model.test_cfg.max_per_img"


@pytest.mark.parametrize(
    ("name", "settings", "subject"),
    [
        ("yolo/yolov3_d53_8xb8-320-273e_coco.py", {"anchor_generator.base_sizes": [[(0.3, 0.2)]] * 3},
         "model.bbox_head.anchor_generator.scales"),
        ("retinanet/retinanet_r50_fpn_1x_coco.py", {"anchor_generator.octave_base_scale": 32},
         "model.bbox_head.anchor_generator.scales"),
        ("detr/detr_r50_8xb2-150e_coco.py", {"loss_cls.use_sigmoid": True}, "model.bbox_head.loss_cls"),
        ("retinanet/retinanet_r50_fpn_1x_coco.py", {"anchor_generator.strides": [8, 16, 32, 64]},
         "model.bbox_head.anchor_generator.strides"),
        ("retinanet/retinanet_r18_fpn_1x_coco.py", {"anchor_generator.strides": [8, 32, 16, 64, 128]},
         "model.bbox_head.anchor_generator.strides"),
        ("yolo/yolov3_d53_8xb8-320-273e_coco.py", {"anchor_generator.base_sizes": [
            [(9, 9)] * 3, [(50, 50)] * 3, [(99, 99)] * 3]}, "model.bbox_head.anchor_generator"),
        ("gfl/gfl_r50_fpn_1x_coco.py", {"loss_cls.activated": True}, "model.bbox_head.loss_cls.activated"),
        ("retinanet/retinanet_r18_fpn_1x_coco.py", {"train_cfg": {"sampler": dict(
            type="RandomSampler", num=256, pos_fraction=0.5)}}, "model.bbox_head"),
        ("detr/detr_r50_8xb2-150e_coco.py", {"encoder.layer_cfg.ffn_cfg.ffn_drop": 1.0},
         "model.encoder.layers.0.ffn.layers.0.2"),
    ],
)  # fmt: skip
def test_parts_of_a_head_that_contradict_each_other(name, settings, subject):
    cfg = Config.fromfile(base_path(f"mmdet::{name}", "")[0])
    part = "" if {"encoder.layer_cfg.ffn_cfg.ffn_drop", "train_cfg"} & settings.keys() else "bbox_head."
    cfg.merge_from_dict({f"model.{part}{key}": value for key, value in settings.items()})
    cfg.model.backbone.init_cfg = None
    with trial(cfg):
        assert subject in {problem.subject for problem in unread_of_model(cfg, torch.nn.Linear(1, 1))}


def states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def test_the_training_starts_as_without_the_batch(tmp_path, shapes):
    """The batch is that of the sampler, which is not advanced; caches of pipelines stay empty."""
    step = MOSAIC.format(type="CachedMosaic")
    data = "pipeline=" + PIPELINE.format(masks=True, step=step)
    text = "train_dataloader.update(sampler=dict(type='InfiniteSampler'), batch_size=3)"
    with separate_run():
        runner = make_runner(tmp_path, shapes, data, text)
        load_data(runner, only_checks=False)
        loader, before = runner._train_loop.dataloader, states()
        require_read(runner)
        with trial(runner.cfg):
            batch = first_batch(runner, "train", [])
        assert states() == before
        assert not loader.dataset.pipeline.transforms[2].results_cache
        own = [loader.dataset.get_data_info(index)["img_path"] for index in next(iter(loader.batch_sampler))]
        assert [sample.img_path for sample in batch.whole()["data_samples"]] == own


def test_windows_of_large_pictures(tmp_path, shapes):
    """A window contains the first object at its size. The whole batch is not cropped.

    Its sides have the same remainders, divided by 32, as those of the picture.
    """
    lines, columns = _WINDOW - 16, _WINDOW - 8
    data = "pipeline=" + RESIZED.format(size="440, 400", ratio=False)
    with separate_run():
        runner = make_runner(tmp_path, shapes, data)
        load_data(runner, only_checks=False)
        with trial(runner.cfg):
            batch = first_batch(runner, "train", [])
    whole = batch.whole()
    for n in range(2):
        image, part = whole["inputs"][n], batch.few["inputs"][n]
        objects, seen = (each["data_samples"][n].gt_instances for each in (whole, batch.few))
        assert image.shape[1:] == (400, 440)
        assert part.shape[1:] == batch.few["data_samples"][n].img_shape == (lines, columns)
        across, down = (objects.bboxes.tensor[0] - seen.bboxes.tensor[0])[:2].int().tolist()
        assert seen.bboxes.areas[0] == pytest.approx(objects.bboxes.areas[0])
        assert torch.equal(part, image[:, down : down + lines, across : across + columns])
        assert seen.masks.masks[0].sum() == objects.masks.masks[0].sum()


def test_windows_of_mosaics(tmp_path, shapes):
    """Their data set counts its steps."""
    steps = MOSAIC.format(type="Mosaic") + "dict(type='Resize', scale=(500, 500)),"
    inner = PIPELINE.format(masks=False, step="").replace("dict(type='PackDetInputs')", "")
    text = (
        "train_dataloader = dict(dataset=dict(_delete_=True, type='MultiImageMixDataset', pipeline=["
        f"{steps} dict(type='PackDetInputs')], dataset=dict(type='CocoDataset', data_root='{shapes}/', "
        f"ann_file='annotations/train.json', data_prefix=dict(img='train/'), pipeline={inner}, "
        "metainfo=dict(classes=('oval', 'trefoil', 'cross')))))"
    )
    with separate_run():
        runner = make_runner(tmp_path, shapes, text=text)
        load_data(runner, only_checks=False)
        with trial(runner.cfg):
            batch = first_batch(runner, "train", findings := [])
    size = (_WINDOW - 12, _WINDOW - 12)  # 500 is 12 less than a multiple of 32
    assert not findings and {image.shape[1:] for image in batch.few["inputs"]} == {size}


@pytest.mark.watched
def test_a_dry_run_without_data(tmp_path, shapes, monkeypatch):
    """It says so, and generates none; with data, it counts the iterations."""
    monkeypatch.chdir(tmp_path)
    output = run("train", PLAIN, "--dry-run")
    assert "train_dataloader: the data were not tried: data/demo/ does not exist" in output
    assert not [*tmp_path.iterdir()]
    schedule = "param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=9)]"
    test = "test_dataloader = dict(dataset=dict(data_root='nowhere/'))"
    make_runner(tmp_path, shapes, text=f"{schedule}\n{test}")
    monkeypatch.setattr(Runner, "train", None)
    output = run("train", "mine.py", "--dry-run")
    assert "param_scheduler.0.end: expected at most 8 in this training" in output
    assert "test_dataloader: a test needs nowhere/, which does not exist" in output
    (tmp_path / "file").touch()
    out_dir = f"default_hooks.checkpoint.out_dir={tmp_path / 'file/inside'}"
    assert "file/inside" in error_of("train", "mine.py", "--dry-run", "--cfg-options", out_dir)


def test_a_validation_without_an_end(tmp_path, shapes):
    text = "val_dataloader.update(sampler=dict(type='InfiniteSampler'))"
    runner = make_runner(tmp_path, shapes, text=text)
    load_data(runner, only_checks=False)
    with pytest.raises(UserError, match=r"val_dataloader\.sampler: expected one with an end"):
        EffectHook().before_run(runner)


def test_samples_of_other_kinds_have_no_size():
    assert [*_sizes({"inputs": [], "data_samples": [3, 0.5, {"img_shape": (4, 5)}]})] == []


CSPNEXT = "https://download.openmmlab.com/mmdetection/v3.0/rtmdet/cspnext_rsb_pretrain/cspnext-tiny_imagenet_600e.pth"


@pytest.mark.parametrize(
    ("file", "settings", "parts"),
    [
        ("torchvision://resnet18", dict(type="ResNet", depth=18), ""),
        ("torchvision://resnet18", dict(type="ResNet", depth=18, num_stages=3, out_indices=(2,),
                                        strides=(1, 2, 2), dilations=(1, 1, 1)), ""),
        ("torchvision://resnet18", dict(type="ResNet", depth=18, deep_stem=True), "stem"),
        ("torchvision://resnet18", dict(type="ResNet", depth=18, norm_cfg=dict(type="GN", num_groups=8)),
         "gn1"),
        ("torchvision://resnet50", dict(type="ResNet", depth=50, dcn=dict(type="DCNv2"),
                                        stage_with_dcn=[True] * 4), ""),
        ("torchvision://resnet18", dict(type="ResNet", depth=34), "layer1.2"),
        ("torchvision://resnet50", dict(type="ResNet", depth=50, avg_down=True), "layer1.0.downsample.1"),
        ("open-mmlab://resnext101_32x4d", dict(
            type="ResNeXt", depth=101, groups=32, base_width=4, plugins=[dict(
                cfg=dict(type="ContextBlock", ratio=0.25), stages=(False, True, True, True),
                position="after_conv3")]), ""),
        (CSPNEXT, dict(type="CSPNeXt", deepen_factor=0.167, widen_factor=0.375), ""),
        ("https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth",
         dict(type="PyramidVisionTransformer", num_layers=[3, 4, 6, 3]), "layers.0.1.3"),
        (CSPNEXT, dict(type="CSPNeXt", deepen_factor=0.33, widen_factor=0.375), "stage2.1.blocks.1"),
        ("mine.pth", dict(type="ResNet", depth=34), ""),
    ],
)  # fmt: skip
def test_backbones_unlike_those_of_published_configs(file, settings, parts):
    """Layers may lack, and deformable ones have layers of their own."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        text = _unlike_published(file, MODELS.build(settings))
    assert (f"others: {parts}" in text) if parts else not text
