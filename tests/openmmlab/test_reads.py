"""Parts of a training are rehearsed, and the reads of its model's settings are watched."""

import logging
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.openmmlab.config.packages import base_path
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs.execute import build_runner
from dcnzoo.openmmlab.runs.reads import _not_initialised, unread_of_model
from dcnzoo.openmmlab.runs.recipe import Recipe, read_config_file
from dcnzoo.openmmlab.runs.rehearse import _frozen_at_random, _try, rehearse
from dcnzoo.openmmlab.runs.separate_run import separate_run, trial
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.utils.errors import UserError

from ..commands import error_of, run
from ..demo import PLAIN
from ..products import in_turn

SMALL = nn.Linear(1, 1)


def unread(cfg, model=SMALL):
    with trial(cfg):
        return unread_of_model(cfg, model)


def findings(folder, text, base=PLAIN):
    (folder / "mine.py").write_text(f"_base_ = {base!r}\n{text}\n")
    problems = unread(read_config_file(folder / "mine.py"))
    return {problem.subject: problem.stops for problem in problems}


def test_published_settings_that_nobody_reads(tmp_path):
    """``debug`` and ``pos_weight`` are in each published config of this family."""
    assert findings(tmp_path, "") == {}
    Config.fromfile(PLAIN).dump(tmp_path / "dump.py")
    cfg = read_config_file(tmp_path / "dump.py")
    cfg.model.backbone.pop("stage_with_dcn")  # has no effect without dcn
    assert unread(cfg) == []
    cfg.model.rpn_head.test_cfg = dict(nms_pre=5)  # published with this detector, which replaces it
    assert [each.subject for each in unread(cfg)] == ["model.rpn_head.test_cfg.nms_pre"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train_cfg=dict(rpn=dict(samplr=dict(num=3)))", {"model.train_cfg.rpn.samplr": True}),
        ("test_cfg=dict(score_thr=0.3)", {"model.test_cfg.score_thr": False}),  # of one stage
        ("test_cfg=dict(rcnn=dict(max_per_imgs=3))", {"model.test_cfg.rcnn.max_per_imgs": True}),
        ("test_cfg=dict(rpn=dict(nms=dict(class_agnostic=True)))", {}),
        ("test_cfg=dict(rcnn=dict(score_thr=0.99))", {}),  # thresholds are lowered
        (
            "test_cfg=dict(rpn=dict(nms=dict(iou_treshold=0.5)))",
            {"model.test_cfg.rpn.nms.iou_treshold": True},
        ),
        (
            "train_cfg=dict(assigner=dict(pos_iou_thr=0.6))",
            {"model.train_cfg.assigner": False},
        ),  # of one stage
        ("neck=dict(stage_with_dcn=(True,))", {"model.neck.stage_with_dcn": False}),  # without dcn
        ("roi_head=dict(bbox_head=dict(loss_cls=dict(reduction='none')))", {"model": False}),
        (
            "roi_head=dict(bbox_head=dict(loss_cls=dict(use_sigmoid=True)))",  # it has the background
            {"model.roi_head.bbox_head.loss_cls.use_sigmoid": False},
        ),
        ("rpn_head=dict(loss_cls=dict(use_sigmoid=False))", {}),  # then it computes scores of the background
        ("data_preprocessor=dict(std=[0.2, 0.2, 0.2])", {"model.data_preprocessor.std": False}),
        ("train_cfg=dict(rcnn=dict(anything=dict(a=1)))", {"model.train_cfg.rcnn.anything": False}),
        ("neck=dict(init_cfg=dict(type='Xavier', layer='Conv2D'))", {"model.neck.init_cfg": False}),
        ("neck=dict(init_cfg=dict(type='Xavier', layer=['Linear', 'Conv2d']))", {}),
        ("rpn_head=dict(init_cfg=dict(type='Normal', layer='Conv2d', override=dict(name='rpn_cls')))", {}),
        # the detector gives its head model.test_cfg.rpn
        ("rpn_head=dict(test_cfg=dict(nms_pre=5))", {"model.rpn_head.test_cfg.nms_pre": False}),
    ],
)
def test_settings_beside_those_that_are_read(tmp_path, text, expected):
    assert findings(tmp_path, f"model = dict({text})") == expected


def test_a_class_that_initialises_itself():
    """PVT's published configs have a checkpoint without a type."""
    cfg = read_config_file(base_path("mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py", "")[0])
    assert "type" not in cfg.model.backbone.init_cfg
    with DefaultScope.overwrite_default_scope("mmdet"):
        backbone = MODELS.build({**cfg.model.backbone, "init_cfg": None})
    assert not [*_not_initialised(cfg, nn.ModuleDict({"backbone": backbone}))]


def test_settings_of_initial_weights_that_fail(tmp_path):
    """A training initialises the weights after it has read the data."""
    init = "init_cfg=dict(type='Normal', layer='Conv2d', override=dict(name='rpn_clss'))"
    found = findings(tmp_path, f"model = dict(rpn_head=dict({init}), neck=dict({init}))")
    assert found == {"model.rpn_head.init_cfg": False, "model.neck.init_cfg": True}  # the head has a method
    with pytest.raises(UserError, match=r"model\.neck\.init_cfg\.checkpoint: .*no/such\.pth"):
        findings(
            tmp_path, "model = dict(neck=dict(init_cfg=dict(type='Pretrained', checkpoint='no/such.pth')))"
        )


def test_a_misspelt_setting_in_place_of_one_that_is_read():
    """The code has asked for the right name, which the config does not have."""
    cfg = read_config_file(PLAIN)
    cfg.model.test_cfg.rpn.min_bbox_sizes = cfg.model.test_cfg.rpn.pop("min_bbox_size")
    (finding,) = unread(cfg)
    assert finding.subject == "model.test_cfg.rpn.min_bbox_sizes" and finding.stops
    cfg = read_config_file(PLAIN)
    cfg.model.train_cfg.rcnn.mask_sizes = cfg.model.train_cfg.rcnn.pop("mask_size")
    # it is required: the run has failed
    (finding,) = unread(cfg)
    assert finding.subject == "model.train_cfg.rcnn.mask_sizes" and finding.stops


def test_a_users_own_reads(tmp_path, package):
    """By ``get``, ``in``, ``**``, a copy; a setting that nobody reads is a warning."""
    text = """import copy
from mmdet.models import FCNMaskHead
from mmdet.registry import MODELS

@MODELS.register_module(force=True)
class ReadingHead(FCNMaskHead):
    def __init__(self, own, **kwargs):
        super().__init__(**kwargs)
        dict(**own.all)
        copy.deepcopy(own).a
        "b" in own.copy()
        own.get("c")
        own.pop("d", None)
"""
    __import__(package("reading_head", text))
    cfg = read_config_file(PLAIN)
    own = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "all": {"x": 1, "y": 2}}
    cfg.model.roi_head.mask_head.update(type="ReadingHead", own=own)
    assert [str(each.subject) for each in unread(cfg)] == ["model.roi_head.mask_head.own.e"]


def test_nothing_changes_for_the_training(tmp_path):
    """Random generators, message hub, scope and the runner are as before."""
    recipe = Recipe(read_config_file(PLAIN)).with_options(TrainOptions(work_dir=tmp_path, seed=1))
    with separate_run():
        runner = build_runner(recipe.cfg, Start())
        hub, scope = MessageHub.get_current_instance(), DefaultScope.get_current_instance()
        before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())  # noqa: NPY002
        weights = {name: value.clone() for name, value in runner.model.state_dict().items()}
        parts = (runner._train_loop, runner.optim_wrapper, runner.param_schedulers, runner._val_loop)
        assert rehearse(runner) == ([], []) and unread(recipe.cfg, runner.model) == []
        after = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())  # noqa: NPY002
        assert before == after
        assert MessageHub.get_current_instance() is hub and DefaultScope.get_current_instance() is scope
        now = (runner._train_loop, runner.optim_wrapper, runner.param_schedulers, runner._val_loop)
        assert all(x is y for x, y in zip(parts, now, strict=True))
        assert all(torch.equal(value, weights[name]) for name, value in runner.model.state_dict().items())


def test_warnings_are_logged_again_after_a_rehearsal():
    with separate_run():
        logger = MMLogger.get_instance("rehearsed")
        with trial(Config()):
            logger.warning("not shown")
        assert logger.isEnabledFor(logging.WARNING)


def test_a_large_model_is_not_built_again():
    with torch.device("meta"):
        large = nn.Linear(15_000, 10_000)
    (finding,) = unread(read_config_file(PLAIN), large)
    assert "500 MB" in finding.text and not finding.stops


class Neck(nn.Module):
    def forward(self, maps, outs=3):
        assert outs < 2


def test_a_model_that_cannot_run_alone():
    """The warning names the module; an error of one, the setting that the failing line has."""
    cfg = read_config_file(PLAIN)
    cfg.model.backbone.out_indices = (0, 1)
    (finding,) = unread(cfg)
    assert finding.subject.startswith("model.neck") and not finding.stops
    cfg = Config({"model": {"neck": {"type": "Neck", "outs": 3}}}, filename=__file__)
    model = nn.ModuleDict({"neck": Neck()})
    model.forward = lambda maps, self=model: self["neck"](maps)
    with (
        pytest.raises(UserError, match=r"\.py: model\.neck\.outs: expected .* < 2"),
        config_errors(cfg),
    ):
        model([])


def test_several_parts_are_named_at_once(tmp_path):
    cfg = read_config_file(PLAIN)
    cfg.train_dataloader.dataset.pipeline[2]["keep_rato"] = cfg.optim_wrapper.optimizer["lrr"] = 1
    cfg.val_evaluator.classwize = True
    cfg = Recipe(cfg).with_options(TrainOptions(work_dir=tmp_path)).cfg
    with separate_run():
        lines, _ = rehearse(build_runner(cfg, Start()))
    keys = ["train_dataloader.dataset.pipeline.2", "optim_wrapper.optimizer", "val_evaluator"]
    assert len(lines) == 3 and all(key in line for key, line in zip(keys, lines, strict=True))


@pytest.mark.parametrize(
    ("text", "key", "stops"),
    [
        ("optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'nothing': dict(lr_mult=0.1)}))",
         "optim_wrapper.paramwise_cfg.custom_keys.nothing.lr_mult", False),
        # published with Swin, which may have no such parameter
        ("optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'absolute_pos_embed': dict(decay_mult=0.0)}))",
         "", False),
        ("optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'neck': dict(lr_mul=0.1)}))",
         "optim_wrapper.paramwise_cfg.custom_keys.neck.lr_mul", True),
        ("optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'neck': dict(lr_mult=0.1)}))", "", False),
        ("optim_wrapper=dict(paramwise_cfg=dict(norm_decay_mult=0.0))", "", False),
        ("optim_wrapper=dict(paramwise_cfg=dict(neck=dict(lr_mult=0.1)))",
         "optim_wrapper.paramwise_cfg.neck", False),
        ("optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.0)}))",
         "optim_wrapper.paramwise_cfg", False),
        ("model=dict(backbone=dict(norm_eval=True))", "model.backbone.norm_eval", False),
        ("env_cfg=dict(cudnn_benchmak=True)", "env_cfg.cudnn_benchmak", True),
        ("env_cfg=dict(dist_cfg=dict(backends='gloo'))", "env_cfg.dist_cfg.backends", True),
        ("model=dict(backbone=dict(frozen_stages=1))", "model.backbone.frozen_stages", False),
        ("auto_scale_lr=dict(enabled=True)", "auto_scale_lr.enabled", True),
        ("train_dataloader=dict(dataset=dict(filter_cfg=dict(min_sise=1)))",
         "train_dataloader.dataset.filter_cfg.min_sise", True),
    ],
)  # fmt: skip
def test_settings_of_other_parts(tmp_path, text, key, stops):
    """They are read when the training is built."""
    (tmp_path / "mine.py").write_text(f"_base_ = {PLAIN!r}\n{text}\n")
    cfg = Recipe(read_config_file(tmp_path / "mine.py")).with_options(TrainOptions(work_dir=tmp_path)).cfg
    with separate_run():
        problems, found = rehearse(build_runner(cfg, Start()))
    assert problems == [] and [each.stops for each in found if each.subject == key] == [stops] * bool(key)
    assert key or not found


WRAPPERS = {
    "RepeatDataset": {"times": 2},
    "ClassBalancedDataset": {"oversample_thr": 0.1},
    "ConcatDataset": {"datasets": 2},
}


@in_turn("sampler, wrapper", ["DefaultSampler", "InfiniteSampler", "ClassAwareSampler"], list(WRAPPERS))
def test_data_sets_with_two_entries(tmp_path, wrapper, sampler):
    """Wrappers and samplers that use the entries are no mistake."""
    cfg = read_config_file(PLAIN)
    inner, settings = cfg.train_dataloader.dataset.to_dict(), dict(WRAPPERS[wrapper])
    data = {"datasets": [inner, inner]} if "datasets" in settings else {**settings, "dataset": inner}
    cfg.train_dataloader.dataset = {"type": wrapper, **data}
    cfg.train_dataloader.sampler = {"type": sampler}
    cfg = Recipe(cfg).with_options(TrainOptions(work_dir=tmp_path)).cfg
    with separate_run():
        assert rehearse(build_runner(cfg, Start())) == (
            [],
            [],
        )


@pytest.mark.watched
def test_a_training_warns_of_a_setting_that_nobody_reads(tmp_path, monkeypatch):
    config = tmp_path / "mine.py"
    text = "model = dict(test_cfg=dict(score_thr=0.3), neck=dict(in_channelz=1))"
    config.write_text(f"_base_ = {PLAIN!r}\n{text}\n")
    message = error_of("train", config, "--work-dir", tmp_path / "work")
    assert re.search(r"mine\.py: model\.neck\.in_channelz: expected in_channels", message)
    text = text.replace(", neck=dict(in_channelz=1)", "")
    config.write_text(f"_base_ = {PLAIN!r}\n{text}\n")
    monkeypatch.setattr("dcnzoo.openmmlab.runs.execute.load_data", lambda *args: None)
    monkeypatch.setattr(Runner, "train", lambda self: None)
    output = run("train", config, "--work-dir", tmp_path / "work", "--verbose")
    assert "model.test_cfg.score_thr: no code has read it" in output


def test_gradients_of_several_optimizers():
    optimizer = torch.optim.SGD(SMALL.parameters(), 0.1)
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=1, norm_typ=2))
    for each in (wrapper, OptimWrapperDict(a=wrapper)):
        with pytest.raises(TypeError, match="norm_typ"):
            [*_try(each)]
        runner = SimpleNamespace(model=SMALL, _load_from=None, _resume=False, optim_wrapper=each)
        assert [*_frozen_at_random(runner)] == []
    with pytest.raises(UserError, match=r"optim_wrapper: expected a learning rate above 0"):
        [*_try(OptimWrapper(torch.optim.SGD(SMALL.parameters(), 0)))]
