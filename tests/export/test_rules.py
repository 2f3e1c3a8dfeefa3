"""Functions of fixed size that replace MMDetection's, compared with those."""

import importlib
import inspect
import operator
import sys
import types
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from mmcv.ops import DeformRoIPoolPack, RoIAlign, batched_nms
from mmdet.models.dense_heads import RetinaHead, TOODHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.models.layers import multiclass_nms
from mmdet.models.layers.transformer import inverse_sigmoid
from mmdet.models.roi_heads import FCNMaskHead, TridentRoIHead
from mmdet.models.roi_heads.bbox_heads import bbox_head
from mmdet.models.utils import filter_scores_and_topk
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch import nn

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.compat.patches import Changes
from dcnzoo.export.onnx import export_onnx
from dcnzoo.openmmlab.calls import call_settings
from dcnzoo.openmmlab.export import rules
from dcnzoo.openmmlab.export.functions import replace_everywhere, traced_batched_nms, traced_inverse_sigmoid
from dcnzoo.openmmlab.export.mixins import boxes, layers, roi
from dcnzoo.openmmlab.export.nms import of_class
from dcnzoo.openmmlab.export.predict import Predictor
from dcnzoo.openmmlab.export.verify import compare
from dcnzoo.utils.errors import UserError
from tests.helpers.detectors import (
    CONFIGS,
    WIDTH,
    assert_agreement,
    build,
    config,
    decoded,
    loaded,
    predict_batch,
    size,
)
from tests.helpers.graphs import run
from tests.helpers.modules import module_of


def test_functions_are_replaced_also_where_a_patch_wraps_them():
    users = [vars(module) for name, module in sys.modules.items() if name.startswith("mmdet.")
             and vars(module).get("multiclass_nms") is multiclass_nms]  # fmt: skip
    with Changes() as changes:
        changes.wrap(bbox_head, "multiclass_nms", lambda function, *args: function(*args))
        replace_everywhere(changes, multiclass_nms, len)
        assert len(users) > 3 and all(user["multiclass_nms"] is len for user in users)
    assert all(user["multiclass_nms"] is multiclass_nms for user in users)


def boxes_of(count, most=60.0):
    corner = torch.rand(count, 2) * most
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * 20], 1)


def assert_first(results, expected, total):
    """Check that the first rows are those of MMDetection, and that the others are unused."""
    count = len(expected[0])
    assert 10 < count < total == len(results[0])
    for actual, value in zip(results, expected, strict=True):
        torch.testing.assert_close(actual[:count], value)


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_nms(class_agnostic):
    args = boxes_of(80), torch.rand(80), torch.arange(80) % 2, dict(type="nms", iou_threshold=0.3)
    expected, results = batched_nms(*args, class_agnostic), traced_batched_nms(*args, class_agnostic)
    assert_first(results, expected, 80)
    assert (results[0][len(expected[0]) :, 4] < 0).all()


def test_two_inverse_sigmoids_of_one_tensor(tmp_path):
    """Decoders of several layers make such calls. A replacement is not needed if mmdet's own passes."""

    def of(inverse):
        return module_of(lambda x: inverse(x) + inverse(x, eps=1e-3))

    x, path = torch.linspace(0, 1, 9), tmp_path / "model.onnx"
    export_onnx(of(traced_inverse_sigmoid), (x,), path)
    torch.testing.assert_close(run(path, x)[0], of(inverse_sigmoid)(x), rtol=0, atol=1e-4)
    export_onnx(of(inverse_sigmoid), (x,), path)
    with pytest.raises(Exception, match="is not a graph input"):
        run(path, x)


def test_values_of_a_class():
    values, labels = torch.arange(24.0).view(4, 3, 2), torch.tensor([[2, 0], [-1, 1]])
    expected = torch.stack([values[0, 2], values[1, 0], values[2, 0], values[3, 1]])[:, None]
    assert torch.equal(of_class(values, labels), expected)
    assert torch.equal(of_class(values[:, :1], labels), values[:, :1])  # a class-agnostic head


def test_pooling_of_scaled_rois():
    register_all_modules()
    layer = dict(type="RoIAlign", output_size=3, sampling_ratio=0)
    extractor = MODELS.build(
        dict(type="SingleRoIExtractor", roi_layer=layer, out_channels=2, featmap_strides=[4, 8, 16])
    )
    levels = [torch.randn(2, 2, 64 // s, 96 // s) for s in (1, 2, 4)]
    bboxes = torch.cat([boxes_of(20, 200.0), boxes_of(20, 40.0) * torch.tensor([1, 1, 4, 4])])
    rois = torch.cat([torch.arange(40.0)[:, None] % 2, bboxes], 1)
    pool = roi.SingleRoIExtractor.forward
    for factor in (None, 1.3):
        torch.testing.assert_close(pool(extractor, levels, rois, factor), extractor(levels, rois, factor))
    torch.testing.assert_close(pool(extractor, levels[:1], rois, 1.3), extractor(levels[:1], rois, 1.3))


def test_samples_of_a_shifted_map():
    feature, offset = torch.randn(1, 6, 7, 9), 3 * torch.randn(1, 12, 7, 9)
    expected = TOODHead.deform_sampling(None, feature, offset)
    torch.testing.assert_close(boxes.TOODHead.deform_sampling(None, feature, offset), expected)


@pytest.mark.parametrize("affine", [True, False])
def test_group_normalisation(affine):
    layer = nn.GroupNorm(3, 6, affine=affine)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    for shape in ((2, 6, 5, 7), (4, 6, 3)):
        x = 3 + torch.randn(shape)
        torch.testing.assert_close(layers.GroupNorm.forward(layer, x), layer(x))


def test_heads_are_accepted_by_what_they_override():
    class OwnLoss(RetinaHead):
        def loss_by_feat(self, *args, **kwargs):
            raise NotImplementedError

    class OwnPrediction(RetinaHead):
        def predict_by_feat(self, *args, **kwargs):
            raise NotImplementedError

    class RetinaLike(nn.Module):
        """A head with the name of a known class."""

    RetinaLike.__name__ = "RetinaHead"
    detector = build("RetinaNet")
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = Predictor(detector)(images)
        detector.bbox_head.__class__ = OwnLoss
        torch.testing.assert_close(Predictor(detector)(images), expected)
    detector.bbox_head.__class__ = OwnPrediction
    with pytest.raises(ValueError, match=r"OwnPrediction overrides BaseDenseHead\.predict_by_feat"):
        Predictor(detector)
    detector.bbox_head = RetinaLike()
    with pytest.raises(ValueError, match=r"RetinaHead has no rule"):
        Predictor(detector)
    with pytest.raises(ValueError, match=r"detector: .*Sequential has no head"):
        Predictor(nn.Sequential())


def test_a_rule_relies_on_the_methods_that_its_mixins_replace():
    """Otherwise, the method of a user's subclass would be replaced, too."""
    for rule in rules.RULES:
        bases = [base for base in getattr(rule.mixin, "__mro__", ()) if base.__module__.startswith("dcnzoo.")]
        methods = [each for base in bases for each in vars(base).values() if inspect.isfunction(each)]
        own = {
            each.__name__ for each in methods if "__class__" not in each.__code__.co_freevars
        }  # no super()
        assert {name for name in own if hasattr(rule.kind, name)} <= {*rule.relies_on}, rule.kind


def test_each_rule_with_a_mixin_is_of_a_part_of_a_small_detector():
    """A row without one would have no fast test of its results."""
    register_all_modules()
    detectors = [MODELS.build(config(family)) for family in CONFIGS]
    tested = {rules.rule_for(type(part)) for detector in detectors for part in detector.modules()}
    missing = {rule.kind for rule in rules.RULES if rule.mixin is not None and rule not in tested}
    # test_branches_of_tridentnet; the mixin of a base class, which those of its subclasses have
    assert missing == {TridentRoIHead, DetectionTransformer}


def test_a_detector_is_copied_with_its_own_settings():
    detector = build("RetinaNet", score_thr=0.05).train()
    with ThreadPoolExecutor(1) as pool:
        with call_settings(detector, threshold=0.9):
            copied = pool.submit(Predictor, detector)
            wait([copied], timeout=1)
        traced = copied.result().detector
    assert traced.bbox_head.test_cfg.score_thr == 0.05 and not traced.bbox_head.training
    assert detector.bbox_head.training


def test_a_layer_with_a_method_of_its_own():
    class OwnNorm(nn.GroupNorm):
        def forward(self, x):
            return super().forward(x) + 1

    detector = build("FCOS")
    convolutions = detector.bbox_head.cls_convs
    convolutions[0].gn.__class__ = OwnNorm
    traced = Predictor(detector).detector.bbox_head.cls_convs[0].gn
    assert type(traced) is OwnNorm and type(convolutions[0].gn) is OwnNorm
    assert traced.weight is convolutions[0].gn.weight
    assert_agreement(detector, torch.randn(1, 3, *size("FCOS")))


def test_a_head_with_its_own_decoding(family="DINO"):
    """Its decoding was once ignored: the file had that of the parent."""
    detector = build(family)

    class Halved(type(detector.bbox_head)):
        def _predict_by_feat_single(self, cls_score, bbox_pred, img_meta, rescale=True):
            return super()._predict_by_feat_single(cls_score - 1, bbox_pred / 2, img_meta, rescale)

    detector.bbox_head.__class__ = Halved
    images = torch.randn(1, 3, *size(family))
    assert_agreement(detector, images)


@pytest.mark.parametrize("count", [1, 3])
def test_a_head_that_passes_arguments_by_position(count):
    """The export read ``rescale`` as ``with_nms``, so the file had no NMS."""

    class ByPosition(RetinaHead):
        def _predict_by_feat_single(self, *levels, img_meta, cfg, rescale=False, with_nms=True, **named):
            results = super()._predict_by_feat_single(
                *levels, img_meta=img_meta, cfg=cfg, with_nms=False, **named
            )
            options = dict(rescale=rescale, with_nms=with_nms, img_meta=img_meta)
            by_position, by_name = [*options.values()][:count], dict([*options.items()][count:])
            return self._bbox_post_process(results, self.test_cfg, *by_position, **by_name)

    detector = build("RetinaNet")
    detector.bbox_head.__class__ = ByPosition
    assert_agreement(detector, torch.randn(1, 3, *size("RetinaNet")))


@pytest.mark.parametrize("add", [torch.Tensor.add_, lambda x, y: operator.iadd(x.flatten(1), y)])
def test_a_head_that_adds_in_place(add):
    """The sum was once lost, unless the head used what ``+=`` returns."""

    class Moved(RetinaHead):
        def _predict_by_feat_single(self, cls_score_list, bbox_pred_list, *args, **kwargs):
            moved = [deltas.clone() for deltas in bbox_pred_list]
            for deltas in moved:
                add(deltas, 0.3)
            return super()._predict_by_feat_single(cls_score_list, moved, *args, **kwargs)

    detector = build("RetinaNet")
    detector.bbox_head.__class__ = Moved
    assert_agreement(detector, torch.randn(1, 3, *size("RetinaNet")))


def test_a_filter_is_named_with_its_line():
    detector = build("RetinaNet")

    class Filtering(RetinaHead):
        def _predict_by_feat_single(self, cls_score_list, *args, **kwargs):
            scores = cls_score_list[0]
            return scores[scores > 0]

    detector.bbox_head.__class__ = Filtering
    line = inspect.getsourcelines(Filtering)[1] + 3
    with pytest.raises(ValueError, match=rf"depend on the data, got .*{Path(__file__).name}:{line}: "):
        Predictor(detector)(torch.randn(1, 3, 96, 96))


def module_with(folder, name, *parts):
    """Import a user's module, which contains copies of MMDetection's code."""
    imports = "import copy, torch\nfrom mmdet.models.dense_heads import RetinaHead\n"
    imports += "from mmdet.models.dense_heads.base_dense_head import *\n"
    (folder / f"{name}.py").write_text("\n\n".join([imports, *parts]))
    return importlib.import_module(name)


COPIED = f"class Copied(RetinaHead):\n{inspect.getsource(BaseDenseHead._predict_by_feat_single)}"
FUNCTIONS = (
    "from mmdet.models.utils import filter_scores_and_topk\nfrom mmdet.structures.bbox import cat_boxes\n"
)
FUNCTIONS += "from mmengine.structures import InstanceData\nfrom typing import List\nfrom torch import Tensor"


def test_a_head_that_copies_decoding_into_its_own_module(tmp_path, monkeypatch):
    """Functions are also replaced in such a module, not only in MMDetection's."""
    monkeypatch.syspath_prepend(tmp_path)
    detector = build("RetinaNet")
    detector.bbox_head.__class__ = module_with(tmp_path, "own_head", FUNCTIONS, COPIED).Copied
    assert_agreement(detector, torch.randn(1, 3, *size("RetinaNet")))


def test_a_copied_function_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    detector = build("RetinaNet")
    function = inspect.getsource(filter_scores_and_topk)
    detector.bbox_head.__class__ = module_with(tmp_path, "own_function", FUNCTIONS, function, COPIED).Copied
    with pytest.raises(ValueError, match=r"depend on the data, got .*own_function\.py:\d+: "):
        Predictor(detector)(torch.randn(1, 3, 96, 96))


def test_a_new_head_needs_one_rule(monkeypatch):
    class NewHead(RetinaHead):
        def predict_by_feat(self, *args, **kwargs):
            return super().predict_by_feat(*args, **kwargs)

    detector = build("RetinaNet")
    detector.bbox_head.__class__ = NewHead
    monkeypatch.setitem(rules.BY_KIND, NewHead, rules.Rule(NewHead, rules.DENSE, boxes.DenseHead))
    assert_agreement(detector, torch.randn(1, 3, *size("RetinaNet")))


def test_regions_that_are_pooled_in_other_ways_are_refused():
    """The layer of faster-rcnn_r50_fpn_dpool_1x_coco has no ``pool_mode``: an AttributeError."""
    detector = build("Faster R-CNN")
    extractor, like = detector.roi_head.bbox_roi_extractor, detector.roi_head.bbox_roi_extractor.roi_layers[0]
    pools = (DeformRoIPoolPack((7, 7), WIDTH, deform_fc_channels=8), RoIAlign(7, pool_mode="max"))
    for pool in pools:
        extractor.roi_layers[0] = pool
        with pytest.raises(ValueError, match=f"SingleRoIExtractor pools by {type(pool).__name__}"):
            Predictor(detector)
    extractor.roi_layers[0] = like
    Predictor(detector)


def test_a_nested_head_with_a_method_of_its_own_is_refused():
    """Its parent's rule was once left out, and the mask of each class was stored."""

    class OwnMasks(FCNMaskHead):
        def _predict_by_feat_single(self, *args, **kwargs):
            raise NotImplementedError

    detector = build("Mask R-CNN")
    detector.roi_head.mask_head.__class__ = OwnMasks
    with pytest.raises(ValueError, match=r"OwnMasks overrides FCNMaskHead\._predict_by_feat_single"):
        Predictor(detector)


def test_the_attributes_of_a_head_stay():
    detector = build("RetinaNet")
    detector.bbox_head.name, detector.bbox_head.inputs = "mine", 7
    traced = Predictor(detector)
    traced(torch.randn(1, 3, 96, 96))
    assert (traced.detector.bbox_head.name, traced.detector.bbox_head.inputs) == ("mine", 7)


def test_a_wrong_number_of_channels_is_no_matter_of_the_data():
    with pytest.raises(
        ValueError, match=r"expected code that runs for the example inputs, got RuntimeError .*channels"
    ):
        Predictor(build("RetinaNet"))(torch.randn(1, 4, 96, 96))


def test_branches_of_tridentnet():
    detector = build("Faster R-CNN")
    head = detector.roi_head
    head.__class__, head.num_branch, head.test_branch_idx = TridentRoIHead, 3, 1
    assert_agreement(detector, torch.randn(1, 3, *size("Faster R-CNN")))
    head.test_branch_idx = -1
    with pytest.raises(ValueError, match=r"detector: .*test_branch_idx"):
        Predictor(detector)


def test_fast_rcnn_is_refused():
    """Its proposals are an input of ``predict``."""
    detector = build("Double-Head")
    assert rules.reason_to_refuse_detector(detector) == ""
    del detector.rpn_head
    with pytest.raises(ValueError, match=r"detector: .*proposals of FasterRCNN"):
        Predictor(detector)


NMS = dict(type="nms", iou_threshold=0.1)


def outputs_of(detector, **settings):
    detector.roi_head.test_cfg.update(settings)
    with torch.no_grad():
        return Predictor(detector)(torch.randn(1, 3, 160, 192, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("nms", (NMS, dict(NMS, max_num=7))),
        ("nms", (NMS, dict(NMS, class_agnostic=True))),
        ("nms", (NMS, dict(type="soft_nms", min_score=0.2))),
        ("score_thr", (0.05, 0.5)),
    ],
)
def test_settings_change_the_results_as_in_pytorch(setting, values):
    detector = build("Faster R-CNN")
    results = []
    for value in values:
        dets, labels = outputs_of(detector, **{setting: value})
        (reference,) = predict_batch(
            detector, torch.randn(1, 3, 160, 192, generator=torch.Generator().manual_seed(1))
        )
        outputs = dict(dets=dets.numpy(), labels=labels.numpy())
        (result,) = decoded(outputs, [(160, 192)])
        assert compare(result, reference).holds
        results.append(dets)
    assert not torch.equal(*results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(nms=dict(type="nms", iou_threshold=0.5, offset=1)), "offset: expected 0 .* got 1"),
        (dict(nms=dict(type="nms", iou_threshold=0.5, score_threshold=0.1)), "got score_threshold"),
        (dict(nms=dict(type="nms_match", iou_thr=0.5)), "'nms_match'"),
    ],
)
def test_settings_that_cannot_be_exported_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        outputs_of(build("Faster R-CNN"), **settings)


@pytest.mark.parametrize("most", [0, -1])
def test_no_boxes_or_all_but_the_last(most):
    """MMDetection's ``results[:max_per_img]`` allows both, but a graph has at least one row."""
    with pytest.raises(ValueError, match=f"RetinaHead: max_per_img: .* got {most}"):
        Predictor(build("RetinaNet", max_per_img=most))(torch.randn(1, 3, 96, 96))


def test_sizes_that_a_head_does_not_support():
    """CondInst and others assert that one size is a multiple of another."""

    def forward(self, x):
        assert x[0].shape[2] % 64 == 0
        return type(self).forward(self, x)

    detector = build("FCOS")
    detector.bbox_head.forward = types.MethodType(forward, detector.bbox_head)
    with pytest.raises(ValueError, match=r"AssertionError in .*test_rules\.py:\d+"):
        Predictor(detector)(torch.randn(1, 3, 96, 96))


def test_several_inputs_of_a_picture_are_refused_when_a_detector_is_loaded():
    steps = [dict(type="mmdet.TestTimeAug", transforms=[[dict(type="PackDetInputs")]])]
    with pytest.raises(UserError, match=r"TestTimeAug.*tta_pipeline"):
        loaded(build("FCOS"), *steps)


def test_settings_of_boxes_and_masks():
    detector = build("Faster R-CNN")
    clipped, _ = outputs_of(detector)
    detector.roi_head.bbox_head.bbox_coder.clip_border = False
    free, _ = outputs_of(detector)
    assert clipped[..., :4].min() >= 0 > free[..., :4].min()
    retina = build("RetinaNet", min_bbox_size=20)
    dets, labels = Predictor(retina)(torch.randn(1, 3, 96, 96))
    extent = (dets[..., 2:4] - dets[..., :2])[labels >= 0]
    assert len(extent) > 0 and extent.min() > 20
    masks = build("Mask R-CNN", mask_thr_binary=0.3)
    assert Predictor(masks).mask_threshold == 0.3
    masks.roi_head.test_cfg.mask_thr_binary = -1
    with pytest.raises(ValueError, match=r"mask_thr_binary: .*-1"):
        Predictor(masks)


def test_boxes_of_negative_width(monkeypatch):
    """Without ``min_bbox_size``, MMDetection keeps them; the mixin dropped them."""
    detector = build("RTMDet-Ins", min_bbox_size=-1)
    coder = type(detector.bbox_head.bbox_coder)
    decode = coder.decode
    monkeypatch.setattr(
        coder, "decode", lambda self, points, sides, *a, **k: decode(self, points, sides - 20, *a, **k)
    )
    assert_agreement(detector, torch.randn(1, 3, *size("RTMDet-Ins")))
