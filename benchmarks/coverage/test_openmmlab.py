"""A config of most families of OpenMMLab's other packages builds, predicts and trains.

A trial is the same as in ``test_mmdet.py``: the complete architecture, a prediction, then a training step
with the config's own optimizer, on small random data, without pretrained weights.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import mmengine.dataset
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from torch import nn

from benchmarks.coverage.trial import apart, families, predict, prepare, read, train
from dcnzoo.utils.folders import mim_folder

Batches = Callable[[nn.Module, Config], tuple[dict | None, dict | None]]


@dataclass(frozen=True)
class Package:
    """How to try the families of a package.

    Attributes:
        batches: returns the data to predict and to train on, for a model and its config; None: the config has
            no such data.
        adapt: changes a config for smaller images.
        depth: number of nested folders that name a family.
        families: a regular expression; others need data of their own.
        representatives: configs of families for which ``representative`` would choose badly.
    """

    batches: Batches
    adapt: Callable[[Config], None] = lambda cfg: None
    depth: int = 1
    families: str = ""
    representatives: dict[str, str] = field(default_factory=dict)


# mmsegmentation


SEG_SIZE = 128  # pixels, instead of 1024 and more


def seg_adapt(cfg: Config) -> None:
    preprocessor = cfg.model.data_preprocessor
    if preprocessor.get("size"):
        preprocessor.size = (SEG_SIZE, SEG_SIZE)
    if preprocessor.get("size_divisor"):
        preprocessor.size_divisor = 32
    if cfg.model.get("backbone", {}).get("type") in ("BEiT", "MAE"):  # its position biases are for one size
        cfg.model.backbone.img_size = (SEG_SIZE, SEG_SIZE)


def seg_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict]:
    from mmseg.structures import SegDataSample

    head = model.decode_head
    classes = (head[-1] if isinstance(head, nn.ModuleList) else head).num_classes
    shape = (SEG_SIZE, SEG_SIZE)

    def batch(number: int) -> dict:
        samples = []
        for _ in range(number):
            sample = SegDataSample(metainfo=dict(ori_shape=shape, img_shape=shape, pad_shape=shape))
            sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, *shape)))
            sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *shape)))  # PIDNet's
            samples.append(sample)
        images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for _ in samples]
        return dict(inputs=images, data_samples=samples)

    return batch(1), batch(2)


# Packages whose samples come from the config's own pipeline

LOADERS = ("LoadImage", "LoadImageFromFile")  # skipped: the images are generated


def dataset_of(dataloader: Config | None) -> Config | None:
    """Return the innermost dataset of a dataloader's config, without its wrappers."""
    dataset = dataloader and dataloader.dataset
    while dataset and "pipeline" not in dataset:
        dataset = dataset.dataset
    return dataset


def through(pipeline: list, samples: list[dict], collate: str = "pseudo_collate") -> dict:
    """Make a batch of samples with a config's pipeline."""
    steps = Compose([step for step in pipeline if step["type"].rpartition(".")[2] not in LOADERS])
    return getattr(mmengine.dataset, collate)([steps(sample) for sample in samples])


def shrink(node: object, size: int) -> object:
    """Limit the numbers in a pipeline."""
    if isinstance(node, dict):
        for key, value in node.items():
            node[key] = shrink(value, size)
    elif isinstance(node, list | tuple):
        return type(node)(shrink(value, size) for value in node)
    return min(node, size) if isinstance(node, int) and not isinstance(node, bool) else node


# mmpose


def pose_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict | None]:
    train, val = dataset_of(cfg.train_dataloader), dataset_of(cfg.val_dataloader)
    last = cfg.get("train_pipeline_stage2", train.pipeline)  # stage 1 mixes images of the data set
    trained = through(last, [pose_sample(train, i) for i in (0, 1)]) if last else None  # none: cannot train
    return through(val.pipeline, [pose_sample(val, 0)]), trained


def pose_sample(dataset: Config, index: int) -> dict:
    """Return a sample in mmpose's format: an image with persons."""
    from mmpose.datasets.datasets.utils import parse_pose_metainfo
    from mmpose.registry import DATASETS

    kind = DATASETS.get(dataset.type)
    if "subset" in dataset:  # DeepFashion: a part of the body
        kind._check_subset_and_metainfo(dataset.subset)
    info = parse_pose_metainfo(dict(dataset.get("metainfo") or kind.METAINFO))
    names = ("upper_body_ids", "lower_body_ids", "flip_pairs", "flip_indices", "dataset_keypoint_weights")
    random = np.random.default_rng(index)
    height, width = 256, 320
    persons = 2 if dataset.get("data_mode") == "bottomup" else 1
    shape = (persons, info["num_keypoints"], 2)
    keypoints = random.uniform((40, 40), (width - 40, height - 40), shape).astype(np.float32)
    corners = [keypoints.min(1), keypoints.max(1)]
    return dict(
        img=random.integers(0, 256, (height, width, 3), dtype=np.uint8),
        img_path=f"{index}.png",
        img_shape=(height, width),
        ori_shape=(height, width),
        id=index,
        img_id=index,
        category_id=np.ones(persons, int),
        invalid_segs=[],
        raw_ann_info=[],
        dataset_name=info["dataset_name"],
        skeleton_links=info["skeleton_links"],
        **{name: info[name] for name in names},
        keypoints=keypoints,
        keypoints_visible=np.ones(shape[:2], np.float32),
        bbox=np.concatenate(corners, axis=1),
        bbox_score=np.ones(persons, np.float32),
        area=np.prod(corners[1] - corners[0], axis=1),
    )


# mmpretrain

# Most of them need a tokenizer, a language model or weights, which they download.
PRETRAIN_OTHERS = "arcface|blip|chinese_clip|dinov2|efficientformer|flamingo|glip|lenet|levit|llava|maskfeat"
PRETRAIN_OTHERS += "|milan|minigpt4|ofa|otter|replknet|sam"


def pretrain_batches(model: nn.Module, cfg: Config) -> tuple[dict | None, dict | None]:
    """Return None for missing data: self-supervised models lack test data, some others training data."""
    batches = []
    for loader, number in ((cfg.get("test_dataloader"), 1), (cfg.get("train_dataloader"), 2)):
        dataset = dataset_of(loader)
        collate = (loader.get("collate_fn") or {}).get("type", "default_collate") if dataset else ""
        samples = [pretrain_sample(cfg, i) for i in range(number)]
        batches.append(through(dataset.pipeline, samples, collate) if dataset else None)
    return tuple(batches)


def pretrain_sample(cfg: Config, index: int) -> dict:
    size = (240, 256)
    image = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
    multiple = "MultiLabel" in str((cfg.model.get("head") or {}).get("type")) or "csra" in str(cfg.filename)
    label = [index] if multiple else index
    names = dict(img_path=f"{index}.png", sample_idx=index, image_id=index)
    return dict(img=image, gt_label=label, img_shape=size, ori_shape=size, **names)


# mmocr


def ocr_adapt(cfg: Config) -> None:
    """Limit the sizes in the pipelines to 320 pixels, instead of 1333.

    Before training, DRRG finds text everywhere and joins all pixels.
    """
    shrink(dataset_of(cfg.test_dataloader).pipeline, 64 if cfg.model.type == "DRRG" else 320)
    shrink(dataset_of(cfg.train_dataloader).pipeline, 320)


def ocr_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict]:
    train, test = dataset_of(cfg.train_dataloader), dataset_of(cfg.test_dataloader)
    if cfg.model.type == "TextSnake":  # it walks in steps of 3% of the radius, which is 0 before training
        nn.init.constant_(model.det_head.out_conv.bias[4], 10.0)
    return tuple(
        through(dataset.pipeline, [ocr_sample(dataset.pipeline, i) for i in range(number)])
        for dataset, number in ((test, 1), (train, 2))
    )


def ocr_sample(pipeline: list, index: int) -> dict:
    """Return a line of text, or a page with four words."""
    line = "PackTextRecogInputs" in str(pipeline)
    gray = any(step.get("color_type") == "grayscale" for step in pipeline)
    size = (32, 100) if line else (320, 320)
    shape = size if gray else (*size, 3)
    image = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
    words = []
    for i, (x, y) in enumerate([(40, 60), (180, 60), (40, 200), (180, 200)]):
        box = [x, y, x + 100, y + 40]
        corners = [x, y, x + 100, y, x + 100, y + 40, x, y + 40]
        word = dict(text="word", bbox=box, polygon=corners, bbox_label=0, ignore=False, edge_label=i % 2)
        words.append(word)
    words = [dict(text="word")] if line else words
    return dict(img=image, img_path=f"{index}.png", img_shape=size, ori_shape=size, instances=words)


# mmrotate


def rotate_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict]:
    from mmrotate.testing import demo_mm_inputs

    steps = dataset_of(cfg.train_dataloader).pipeline
    turned = any(step.get("box_type_mapping", {}).get("gt_bboxes") == "rbox" for step in steps)

    def batch(number: int) -> dict:
        shapes = [[3, 128, 128]] * number
        made = demo_mm_inputs(number, shapes, [2] * number, 3, use_box_type=True, use_qbox=not turned)
        for sample in made["data_samples"]:
            sample.gt_instances.labels.zero_()  # a class that every detector has
        return made

    return batch(1), batch(2)


# mmagic

# families that restore images and videos; deblurganv2 always downloads weights
RESTORATION = "basicvsr|cain|ed[sv]r|flavr|iconvsr|nafnet|rdn|real_|esrgan|restormer|sr[cg]|swinir|tdan|tof"
MAX_FRAMES = 7


def edit_adapt(cfg: Config) -> None:
    """Remove the perceptual loss, which downloads a VGG."""
    cfg.model.pop("perceptual_loss", None)


def edit_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict | None]:
    """Return images or videos, and targets of the sizes of the network's output."""
    from mmagic.structures import DataSample

    dataset = dataset_of(cfg.get("train_dataloader")) or {}
    video = "Frames" in dataset.get("type", "")
    size = 64 if video else 128 // cfg.get("scale", 1)  # the discriminators of SRGAN are for 128 pixels
    named = dataset.get("load_frames_list", {}).get("img", [])  # for the interpolation of frames
    generator = cfg.model.generator
    frames = len(named) or min(
        dataset.get("num_input_frames") or generator.get("num_input_frames", 5), MAX_FRAMES
    )
    shape = (frames, 3, size, size) if video else (3, size, size)

    model.eval()
    with torch.no_grad():
        output = model.generator(torch.rand(1, *shape))
    output = output[0] if isinstance(output, tuple) else output

    def batch(number: int) -> dict:
        inputs = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(number)]
        targets = torch.randint(0, 256, (number, *output.shape[1:]), dtype=torch.uint8)
        names = ("gt_img", "gt_unsharp")  # the second one is Real-ESRGAN's
        samples = [DataSample(**{name: target.clone() for name in names}) for target in targets]
        return dict(inputs=inputs, data_samples=samples)

    return batch(1), batch(2) if dataset else None


PACKAGES = {
    "mmseg": Package(
        seg_batches,
        seg_adapt,
        families="^(?!mobilenet_v3)",  # its head pools over 49×49 positions
        representatives={"swin": "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"},
    ),
    "mmpose": Package(
        pose_batches,
        depth=2,
        families="_2d_keypoint/(?!dwpose)",
        representatives={
            "body_2d_keypoint/topdown_heatmap": "coco/td-hm_res50_8xb64-210e_coco-256x192.py",
        },
    ),
    "mmpretrain": Package(
        pretrain_batches,
        families=f"^(?!{PRETRAIN_OTHERS})",
        representatives={
            "clip": "vit-base-p16_pt-64xb64_in1k.py",
            "eva": "eva-l-p14_8xb16_in1k-196px.py",
        },
    ),
    "mmocr": Package(ocr_batches, ocr_adapt, depth=2),
    "mmrotate": Package(rotate_batches),
    "mmagic": Package(
        edit_batches,
        edit_adapt,
        families=f"^({RESTORATION})",
        representatives={
            "tof": "tof_spynet-chair-wobn_1xb1_vimeo90k-triplet.py",  # the other kind is only for prediction
        },
    ),
}


# Trials


def try_out(name: str) -> None:
    """Build the model, predict, and train for one step.

    Raises:
        Exception: something fails.
    """
    package = name.partition("::")[0]
    how = PACKAGES[package]
    os.chdir(mim_folder(package))  # some configs have paths that are relative to the repository
    cfg = read(name)
    how.adapt(cfg)
    with DefaultScope.overwrite_default_scope(package):
        model = prepare(cfg, package)
        predicted, trained = how.batches(model, cfg)
        if predicted is not None:
            predict(model, predicted)
        if trained is not None:
            train(model, cfg, trained)


FAMILIES = {
    f"{package}/{family}": name
    for package, how in PACKAGES.items()
    if find_spec(package)
    for family, name in families(package, how.representatives, how.families, how.depth)
}


def result_of(name: str) -> str:
    """Return ``ok``, or the error in one line."""
    folder = mim_folder(name.partition("::")[0]).parents[1]
    return apart(lambda: try_out(name)).replace(f"{folder}/", "")


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, record):
    record(family, FAMILIES[family], result_of(FAMILIES[family]))
