"""Train small models of OpenMMLab's other packages on generated data, with and without DCN.

::

    .venv-openmmlab/bin/python tools/benchmark/openmmlab_training.py           # all tasks, without writing
    .venv-openmmlab/bin/python tools/benchmark/openmmlab_training.py --write   # docs/openmmlab.md, too

Each model is trained from scratch by mmengine's Runner with the package's own layers, losses, data sets and
metric, twice with the same seed: ``dcn=True`` on and off. Video super-resolution has no such switch: *off* is
the same network with offsets and masks that stay at their initial value. The rows are stored in
``work_dirs``, so that the packages can be run one by one.
"""

from __future__ import annotations

import json
import math
import multiprocessing.dummy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from sections import replace_section

import dcnzoo.models  # noqa: F401  before the packages, which need mmcv.ops
from dcnzoo.data.shapes import CLASSES, ShapesSpec, draw_image
from dcnzoo.utils.files import write_text

# isort: split
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import Dataset

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "openmmlab.md", ROOT / "work_dirs" / "openmmlab_training.json"
HEAD = ("package", "model", "figure", "without training", "DCN off", "DCN on", "CPU time off, on")
COUNTS = {"train": 640, "val": 128}
SCENES = ShapesSpec(min_radius=18.0, stretch=2.0)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
RESNET = dict(depth=18, base_channels=32, norm_cfg=dict(type="BN"), norm_eval=False, init_cfg=None)


@dataclass(frozen=True)
class Task:
    """A training of one package.

    Attributes:
        config: returns the model, the loaders and the metric, for a folder of data and dcn=True or not.
        figure: the metric's name in the table, and its key.
        baseline: a prediction without training, and a function that returns its figure from the data;
            None: the untrained network.
    """

    package: str
    name: str
    config: Callable[[Path, bool], dict]
    figure: tuple[str, str]
    baseline: tuple[str, Callable[[Path], float]] | None
    iterations: int = 400


# Data: scenes with bent shapes of three classes, in the formats of the packages


def write_scenes(folder: Path) -> None:
    """Write images, label maps, rotated boxes in DOTA's format, and extreme points as COCO key points."""
    for split, count in COUNTS.items():
        for kind in ("images", "masks", "boxes"):
            (folder / split / kind).mkdir(parents=True)
        coco = dict(images=[], annotations=[], categories=[dict(id=1, name="shape")])
        for index in range(count):
            image, instances = draw_image(SCENES, split, index)
            labels, boxes = np.zeros(image.shape[:2], np.uint8), ""
            for instance in instances:
                polygon, label = instance["polygon"].astype(np.float32), instance["label"]
                cv2.fillPoly(labels, [polygon.round().astype(np.int32)], label + 1)
                corners = cv2.boxPoints(cv2.minAreaRect(polygon)).ravel()
                boxes += " ".join(f"{value:.2f}" for value in corners) + f" {CLASSES[label]} 0\n"
                coco["annotations"].append(keypoints(polygon, index, len(coco["annotations"]) + 1))
            cv2.imwrite(str(folder / split / "images" / f"{index:04}.png"), image)
            cv2.imwrite(str(folder / split / "masks" / f"{index:04}.png"), labels)
            (folder / split / "boxes" / f"{index:04}.txt").write_text(boxes)
            height, width = labels.shape
            coco["images"].append(dict(id=index, file_name=f"{index:04}.png", height=height, width=width))
        (folder / f"{split}.json").write_text(json.dumps(coco))


def keypoints(polygon: np.ndarray, image: int, number: int) -> dict:
    """Return the leftmost, topmost, rightmost and bottommost point of a shape as a COCO annotation."""
    x, y = polygon.T
    points = polygon[[x.argmin(), y.argmin(), x.argmax(), y.argmax()]]
    width, height = np.ptp(x), np.ptp(y)
    return dict(
        id=number,
        image_id=image,
        category_id=1,
        iscrowd=0,
        num_keypoints=4,
        bbox=[float(x.min()), float(y.min()), float(width), float(height)],
        area=float(width * height),
        keypoints=[float(v) for point in points for v in (*point, 2)],
    )


def loaders(train: dict, val: dict, batch_size: int = 8) -> dict:
    """Return the loaders of two data sets."""

    def loader(dataset: dict, training: bool) -> dict:
        sampler = dict(type="InfiniteSampler" if training else "DefaultSampler", shuffle=training)
        return dict(batch_size=batch_size, num_workers=0, sampler=sampler, dataset=dataset)

    return dict(train_dataloader=loader(train, True), val_dataloader=loader(val, False))


# Segmentation (mmsegmentation)


def segmentation(folder: Path, dcn: bool) -> dict:
    def dataset(split: str) -> dict:
        flip = [dict(type="RandomFlip", prob=0.5)] if split == "train" else []
        load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
        return dict(
            type="BaseSegDataset",
            img_suffix=".png",
            data_prefix=dict(img_path=f"{folder}/{split}/images", seg_map_path=f"{folder}/{split}/masks"),
            metainfo=dict(classes=("background", *CLASSES)),
            pipeline=[*load, *flip, dict(type="PackSegInputs")],
        )

    return dict(
        model=dict(
            type="EncoderDecoder",
            data_preprocessor=dict(
                type="SegDataPreProcessor", mean=MEAN, std=STD, bgr_to_rgb=True, size=(128, 128)
            ),
            backbone=dict(
                type="ResNetV1c",
                num_stages=3,
                strides=(1, 2, 1),
                dilations=(1, 1, 2),
                out_indices=(0, 1, 2),
                dcn=dcn,
                **RESNET,
            ),
            decode_head=dict(
                type="FCNHead",
                in_channels=128,
                in_index=2,
                channels=64,
                num_convs=1,
                num_classes=4,
                norm_cfg=dict(type="BN"),
                align_corners=False,
            ),
            test_cfg=dict(mode="whole"),
        ),
        val_evaluator=dict(type="IoUMetric", iou_metrics=["mIoU"]),
        **loaders(dataset("train"), dataset("val")),
    )


def all_background(folder: Path) -> float:
    """Return the mIoU, in per cent, of a label map without shapes."""
    masks = [cv2.imread(str(path), 0) for path in sorted((folder / "val" / "masks").glob("*.png"))]
    return 100 * float(np.mean([mask == 0 for mask in masks])) / 4


# Key points (mmpose)

SIGMAS = [0.05] * 4


def pose(folder: Path, dcn: bool) -> dict:
    codec = dict(type="MSRAHeatmap", input_size=(96, 96), heatmap_size=(24, 24), sigma=1.5)
    names = ("left", "top", "right", "bottom")
    swap = {"left": "right", "right": "left"}
    info = {
        i: dict(name=name, id=i, color=[0, 0, 0], type="", swap=swap.get(name, ""))
        for i, name in enumerate(names)
    }

    def dataset(split: str) -> dict:
        turn = [dict(type="RandomFlip", direction="horizontal")] if split == "train" else []
        target = [dict(type="GenerateTarget", encoder=codec)] if split == "train" else []
        crop = dict(type="TopdownAffine", input_size=codec["input_size"])
        steps = [dict(type="LoadImage"), dict(type="GetBBoxCenterScale"), *turn, crop, *target]
        return dict(
            type="CocoDataset",
            data_mode="topdown",
            ann_file=f"{folder}/{split}.json",
            data_prefix=dict(img=f"{folder}/{split}/images/"),
            metainfo=dict(
                dataset_name="extremes",
                keypoint_info=info,
                skeleton_info={},
                joint_weights=[1.0] * 4,
                sigmas=SIGMAS,
            ),
            test_mode=split == "val",
            pipeline=[*steps, dict(type="PackPoseInputs")],
        )

    return dict(
        model=dict(
            type="TopdownPoseEstimator",
            data_preprocessor=dict(type="PoseDataPreprocessor", mean=MEAN, std=STD, bgr_to_rgb=True),
            backbone=dict(type="ResNet", strides=(1, 2, 2, 1), dcn=dcn, **RESNET),
            head=dict(
                type="HeatmapHead",
                in_channels=256,
                out_channels=4,
                deconv_out_channels=(64, 64),
                deconv_kernel_sizes=(4, 4),
                loss=dict(type="KeypointMSELoss", use_target_weight=True, loss_weight=100.0),
                decoder=codec,
            ),
            test_cfg=dict(flip_test=False),
        ),
        val_evaluator=dict(type="CocoMetric", ann_file=f"{folder}/val.json"),
        **loaders(dataset("train"), dataset("val")),
    )


def middles_of_sides(folder: Path) -> float:
    """Return the AP of the middles of the sides of the given boxes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(folder / "val.json"))
    found = []
    for annotation in truth.anns.values():
        x, y, width, height = annotation["bbox"]
        middle = x + width / 2, y + height / 2
        points = [(x, middle[1]), (middle[0], y), (x + width, middle[1]), (middle[0], y + height)]
        values = [value for point in points for value in (*point, 1)]
        found.append(
            dict(image_id=annotation["image_id"], category_id=1, keypoints=values, score=1 / annotation["id"])
        )
    evaluation = COCOeval(truth, truth.loadRes(found), "keypoints")
    evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    return evaluation.stats[0]


# Rotated boxes (mmrotate)


def rotated(folder: Path, dcn: bool) -> dict:
    # threads: each of the metric's processes would import the packages again
    import_module("mmrotate.evaluation.functional.mean_ap").get_context = lambda _: multiprocessing.dummy

    def dataset(split: str) -> dict:
        load = [
            dict(type="mmdet.LoadImageFromFile"),
            dict(type="mmdet.LoadAnnotations", with_bbox=True, box_type="qbox"),
            dict(type="ConvertBoxType", box_type_mapping=dict(gt_bboxes="rbox")),
        ]
        flip = dict(
            type="mmdet.RandomFlip", prob=[0.25] * 3, direction=["horizontal", "vertical", "diagonal"]
        )
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        last = [flip, dict(type="mmdet.PackDetInputs")]
        if split == "val":
            resize = dict(type="mmdet.Resize", scale=(128, 128), keep_ratio=True)
            last = [resize, dict(type="mmdet.PackDetInputs", meta_keys=keys)]
        return dict(
            type="DOTADataset",
            ann_file=f"{folder}/{split}/boxes/",
            data_prefix=dict(img_path=f"{folder}/{split}/images/"),
            img_shape=(128, 128),
            metainfo=dict(classes=CLASSES),
            filter_cfg=dict(filter_empty_gt=True),
            test_mode=split == "val",
            pipeline=[*load, *last],
        )

    return dict(
        model=dict(
            type="mmdet.FCOS",
            data_preprocessor=dict(
                type="mmdet.DetDataPreprocessor", mean=MEAN, std=STD, bgr_to_rgb=True, boxtype2tensor=False
            ),
            backbone=dict(
                type="mmdet.ResNet",
                num_stages=3,
                strides=(1, 2, 2),
                dilations=(1, 1, 1),
                out_indices=(1, 2),
                dcn=dcn,
                **RESNET,
            ),
            neck=dict(
                type="mmdet.FPN",
                in_channels=[64, 128],
                out_channels=64,
                add_extra_convs="on_output",
                num_outs=3,
                relu_before_extra_convs=True,
            ),
            bbox_head=dict(
                type="RotatedFCOSHead",
                num_classes=len(CLASSES),
                in_channels=64,
                feat_channels=64,
                stacked_convs=2,
                strides=[8, 16, 32],
                regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
                center_sampling=True,
                center_sample_radius=1.5,
                norm_on_bbox=True,
                centerness_on_reg=True,
                use_hbbox_loss=False,
                scale_angle=True,
                norm_cfg=dict(type="GN", num_groups=16, requires_grad=True),
                bbox_coder=dict(type="DistanceAnglePointCoder", angle_version="le90"),
                loss_bbox=dict(type="RotatedIoULoss", loss_weight=1.0),
                loss_angle=None,
            ),
            test_cfg=dict(
                nms_pre=500,
                min_bbox_size=0,
                score_thr=0.05,
                nms=dict(type="nms_rotated", iou_threshold=0.3),
                max_per_img=50,
            ),
        ),
        val_evaluator=dict(type="DOTAMetric", metric="mAP"),
        **loaders(dataset("train"), dataset("val")),
    )


# Video super-resolution (mmagic)

FRAMES, SCALE = 5, 4


class Clips(Dataset):
    """Clips of a moving texture at a quarter of the size, with the middle frame as target.

    The texture has details of about 6 pixels, so a single small frame does not determine it.
    """

    metainfo: dict = {}

    def __init__(self, split: str, count: int, size: int) -> None:
        from mmagic.structures import DataSample

        self.samples = []
        for index in range(count):
            frames = list(moving_texture(size, np.random.default_rng([split == "val", index])))
            low = [
                cv2.resize(f, None, fx=1 / SCALE, fy=1 / SCALE, interpolation=cv2.INTER_AREA) for f in frames
            ]
            target = DataSample(gt_img=chw(frames[FRAMES // 2]))
            self.samples.append((torch.stack([chw(frame) for frame in low]), target))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        inputs, target = self.samples[index]
        return dict(inputs=inputs, data_samples=target.clone())


def chw(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def moving_texture(size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the frames of a camera that moves by up to 4 pixels per frame over a texture."""
    margin = 4 * (FRAMES // 2) + 2
    texture = cv2.GaussianBlur(random.normal(size=(size + 2 * margin, size + 2 * margin, 3)), (0, 0), 1.5)
    texture = np.clip(128 + 50 * texture / texture.std(), 0, 255).astype(np.uint8)
    speed = random.uniform(-4, 4, 2)
    for time_step in range(-(FRAMES // 2), FRAMES // 2 + 1):
        x, y = speed * time_step - margin
        shift = np.array([[1, 0, x], [0, 1, y]])
        yield cv2.warpAffine(texture, shift, (size, size), flags=cv2.INTER_CUBIC)


def super_resolution(folder: Path, dcn: bool) -> dict:
    return dict(
        model=dict(
            type="EDVR",
            data_preprocessor=dict(type="DataPreprocessor", mean=[0.0] * 3, std=[255.0] * 3),
            generator=dict(
                type="EDVRNet",
                in_channels=3,
                out_channels=3,
                mid_channels=32,
                num_frames=FRAMES,
                deform_groups=4,
                num_blocks_extraction=1,
                num_blocks_reconstruction=2,
                with_tsa=False,
            ),
            pixel_loss=dict(type="CharbonnierLoss", reduction="mean"),
        ),
        val_cfg=dict(type="MultiValLoop"),
        val_evaluator=dict(type="Evaluator", metrics=[dict(type="PSNR", crop_border=4)]),
        **loaders(Clips("train", 400, 64), Clips("val", 24, 128), batch_size=4),
    )


def bicubic(folder: Path) -> float:
    """Return the PSNR, in dB, of the enlarged middle frames."""
    found = []
    for inputs, target in Clips("val", 24, 128).samples:
        low = inputs[FRAMES // 2].permute(1, 2, 0).numpy()
        large = cv2.resize(low, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC).astype(float)
        difference = (large - target.gt_img.permute(1, 2, 0).numpy())[4:-4, 4:-4]
        found.append(20 * math.log10(255 / math.sqrt((difference**2).mean())))
    return float(np.mean(found))


# Trainings

TASKS = (
    Task(
        "mmseg",
        "FCN, ResNetV1c-18",
        segmentation,
        ("mIoU", "mIoU"),
        ("background everywhere", all_background),
    ),
    Task(
        "mmpose",
        "heatmaps, ResNet-18",
        pose,
        ("key point AP", "coco/AP"),
        ("middles of sides", middles_of_sides),
    ),
    Task(
        "mmrotate",
        "rotated FCOS, ResNet-18",
        rotated,
        ("rotated-box AP50", "dota/mAP"),
        None,
    ),
    Task("mmagic", "EDVR", super_resolution, ("PSNR", "PSNR"), ("bicubic", bicubic), iterations=800),
)


class Result(Hook):
    """Keeps the metrics, which mmagic's loop does not return."""

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics


def train(task: Task, folder: Path, dcn: bool) -> tuple[float, float, float]:
    """Train a model; return its figure before and after, and the CPU time of the training in seconds."""
    torch.manual_seed(0)
    config = task.config(folder, dcn)
    model = MODELS.build(ConfigDict(config.pop("model")))
    model.init_weights()
    if task.package == "mmagic" and not dcn:
        for name, parameter in model.named_parameters():
            if "conv_offset" in name:
                parameter.requires_grad_(False)  # zero: the positions of a convolution
    runner = Runner(
        model=model,
        work_dir=str(folder / "work"),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=task.iterations, val_interval=10**9),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=10)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=30),
            dict(type="CosineAnnealingLR", by_epoch=False, T_max=task.iterations, eta_min=1e-6),
        ],
        default_hooks=dict(checkpoint=None, logger=None, timer=None),
        randomness=dict(seed=0),
        default_scope=task.package,
        log_level="ERROR",
        experiment_name=f"{task.package}-{dcn}-{time.time_ns()}",
        **{"val_cfg": {}, **config},
    )
    result = Result()
    runner.register_hook(result)

    def figure() -> float:
        runner.val()
        return result.metrics[task.figure[1]]

    before = figure() if task.baseline is None else math.nan
    started = time.process_time()
    runner.train()
    seconds = time.process_time() - started
    return before, figure(), seconds


def stored() -> dict[str, list[str]]:
    """Return the rows of the table by package."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


@click.command(help=__doc__.partition("\n")[0])
@click.argument("packages", nargs=-1, type=click.Choice([task.package for task in TASKS]))
@click.option("--write", is_flag=True, help="Replace the table in docs/openmmlab.md.")
def main(packages: tuple[str, ...], write: bool) -> None:
    torch.set_num_threads(1)
    for task in TASKS:
        if packages and task.package not in packages:
            continue
        with tempfile.TemporaryDirectory() as name, DefaultScope.overwrite_default_scope(task.package):
            folder = Path(name)
            import_module(f"{task.package}.utils").register_all_modules(init_default_scope=False)
            write_scenes(folder)
            (before, off, time_off), (_, on, time_on) = (train(task, folder, dcn) for dcn in (False, True))
            described, baseline = task.baseline or ("untrained network", lambda folder, before=before: before)
            figures = f"{baseline(folder):.3g} ({described})", f"{off:.3g}", f"{on:.3g}"
            times = f"{time_off:.0f} s, {time_on:.0f} s"
            rows = stored() | {task.package: (task.package, task.name, task.figure[0], *figures, times)}
            write_text(RESULTS, json.dumps(rows))
    found = stored()
    rows = [found[task.package] for task in TASKS if task.package in found]
    replace_section("trainings", [HEAD, *rows], write, PAGE)


if __name__ == "__main__":
    main()
