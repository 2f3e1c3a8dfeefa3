"""A config of each family of OpenMMLab's other packages builds, predicts and trains.

A trial is the same as in ``test_mmdet.py``: the complete architecture, a prediction, then a training step
with the config's own optimizer, on small random data, without pretrained weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import dcnzoo.models  # noqa: F401  before the packages, which need mmcv.ops

# isort: split
import mmengine.dataset
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from torch import Tensor, nn

from benchmarks.coverage.trial import (
    ROOT,
    apart,
    expect,
    families,
    finite,
    forget_weights,
    images,
    is_ok,
    prepare,
    read,
    tensors,
)
from dcnzoo.openmmlab.packages import mim_folder
from dcnzoo.utils.files import write_text

FILES = ROOT / "work_dirs" / "openmmlab_files"  # generated
Batches = Callable[[nn.Module, Config], tuple[dict | None, dict | None]]


@dataclass(frozen=True)
class Package:
    """How to try the families of a package.

    Attributes:
        batches: returns the data to predict and to train on, for a model and its config.
        adapt: changes a config: smaller images, and generated files instead of downloads. Returns a note
            for the table if it also takes something away from the family.
        depth: number of nested folders that name a family.
        only: the families to try (default: all).
        representatives: configs of families for which ``representative`` would choose badly.
        reasons: reasons why families do not work, in words.
    """

    batches: Batches
    adapt: Callable[[Config], str | None] = lambda cfg: None
    depth: int = 1
    only: tuple[str, ...] = ()
    representatives: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


# mmsegmentation


def seg_adapt(cfg: Config) -> None:
    """Pad images to 128 pixels, or the smallest size that works, instead of 1024 pixels and more."""
    preprocessor = cfg.model.data_preprocessor
    size = seg_size(cfg)
    if preprocessor.get("size"):
        preprocessor.size = (size, size)
    if preprocessor.get("size_divisor"):
        preprocessor.size_divisor = 32
    if cfg.model.get("backbone", {}).get("type") in ("BEiT", "MAE"):  # its position biases are for one size
        cfg.model.backbone.img_size = (size, size)


def seg_size(cfg: Config) -> int:
    """Return the image size; the head of MobileNetV3 pools over 49×49 positions."""
    return 512 if cfg.model.get("backbone", {}).get("type", "").endswith("MobileNetV3") else 128


def seg_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict]:
    from mmseg.structures import SegDataSample

    size = seg_size(cfg)
    head = model.decode_head
    classes = (head[-1] if isinstance(head, nn.ModuleList) else head).num_classes

    def batch(number: int) -> dict:
        samples = []
        for _ in range(number):
            shape = (size, size)
            sample = SegDataSample(metainfo=dict(ori_shape=shape, img_shape=shape, pad_shape=shape))
            sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, size, size)))
            sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, size, size)))  # PIDNet's
            samples.append(sample)
        images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in samples]
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


def pose_adapt(cfg: Config) -> None:
    """Forget the weights of a teacher and of its student, whose configs are files."""
    for role in {"teacher_cfg", "student_cfg"} & set(cfg.model):
        file = FILES / f"{role}.py"
        own = Config.fromfile(cfg.model[role])
        forget_weights(own.model)
        file.parent.mkdir(parents=True, exist_ok=True)
        own.dump(file)
        cfg.model[role] = str(file)


def pose_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict | None]:
    train, val = dataset_of(cfg.train_dataloader), dataset_of(cfg.val_dataloader)
    last = cfg.get("train_pipeline_stage2", train.pipeline)  # stage 1 mixes images of the data set
    trained = through(last, [pose_sample(train, i) for i in (0, 1)]) if last else None  # none: cannot train
    return through(val.pipeline, [pose_sample(val, 0)]), trained


def pose_sample(dataset: Config, index: int) -> dict:
    """Return a sample in mmpose's format: an image with persons, or key points of a video in 2D and 3D."""
    from mmpose.datasets.datasets.utils import parse_pose_metainfo
    from mmpose.registry import DATASETS

    kind = DATASETS.get(dataset.type)
    if "subset" in dataset:  # DeepFashion: a part of the body
        kind._check_subset_and_metainfo(dataset.subset)
    info = dataset.get("metainfo") or kind.METAINFO
    info = parse_pose_metainfo(dict(info))
    points = info["num_keypoints"]
    random = np.random.default_rng(index)
    height, width = 256, 320
    persons = 2 if dataset.get("data_mode") == "bottomup" else 1
    sample = dict(
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
        **{
            key: info[key]
            for key in (
                "upper_body_ids",
                "lower_body_ids",
                "flip_pairs",
                "flip_indices",
                "dataset_keypoint_weights",
            )
        },
        skeleton_links=info["skeleton_links"],
    )
    if "seq_len" in dataset or "multiple_target" in dataset:  # key points of a video, to lift to 3D
        frames = dataset.get("multiple_target") or dataset.get("seq_len", 1)
        targets = frames if dataset.get("multiple_target") else 1
        del sample["img"]
        return dict(
            sample,
            keypoints=random.uniform(20, 200, (frames, points, 2)).astype(np.float32),
            keypoints_visible=np.ones((frames, points), np.float32),
            lifting_target=random.normal(size=(targets, points, 3)).astype(np.float32),
            lifting_target_visible=np.ones((targets, points), np.float32),
            factor=np.ones(frames, np.float32),
            target_img_path=["0.png"] * targets,
            camera_param=dict(
                R=np.eye(3),
                T=np.zeros((3, 1)),
                f=np.full((2, 1), 1145.0),
                c=np.full((2, 1), 500.0),
                w=1000,
                h=1002,
            ),
        )
    keypoints = random.uniform((40, 40), (width - 40, height - 40), (persons, points, 2)).astype(np.float32)
    if dataset.type == "InterHand3DDataset":
        depth = random.uniform(-100, 100, (persons, points, 1)).astype(np.float32)
        keypoints = np.concatenate([keypoints, depth], axis=2)
        sample.update(
            rotation=0,
            hand_type=np.array([[1, 1]], np.float32),
            hand_type_valid=np.ones(1, np.float32),
            rel_root_depth=np.array([10.0], np.float32),
            rel_root_valid=1,
            abs_depth=[1000.0, 1010.0],
            focal=np.array([1200.0, 1200.0], np.float32),
            principal_pt=np.array([160.0, 128.0], np.float32),
        )
    corners = [keypoints[..., :2].min(1), keypoints[..., :2].max(1)]
    sample.update(
        keypoints=keypoints,
        keypoints_visible=np.ones((persons, points), np.float32),
        bbox=np.concatenate(corners, axis=1),
        bbox_score=np.ones(persons, np.float32),
        area=np.prod(corners[1] - corners[0], axis=1),
    )
    return sample


# mmpretrain


# A vocabulary of letters, for tokenizers that would download theirs
LETTERS = [chr(i) for i in range(ord("!"), ord("~") + 1)]
WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]


def pretrain_adapt(cfg: Config) -> str | None:
    model, note = cfg.model, None
    if model.type == "MaskFeat":
        del cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale
        return "without mixed precision: on a CPU, autocast does not compute norms in float32"
    head = model.get("head") or {}
    if head.get("type") in ("LeViTClsHead", "EfficientFormerClsHead"):
        head.distillation = False
        return "without the second head for distillation, with which the package cannot train"
    if model.get("backbone", {}).get("type") == "RepLKNet":  # takes minutes with 384 pixels
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            shrink(loader.dataset.pipeline, 128)
    if model.type == "ImageToImageRetriever":
        model.prototype.dataset.data_root = str(write_gallery())
        model.prototype.update(num_workers=0, persistent_workers=False)
    if model.type == "ChineseCLIP":
        model.text_prototype = ["猫", "狗"]
        note = "with two classes, and an initial projection of the text: the package does not initialise it"
    if "tokenizer" in model:
        tokenizer = model.tokenizer
        key = "vocab_file" if "vocab_file" in tokenizer else "name_or_path"
        tokenizer[key] = str(write_tokenizer() / ("vocab.txt" if key == "vocab_file" else ""))
    return note


def write_tokenizer() -> Path:
    """Write the files of tokenizers with one token per letter (BERT's) or per byte (BART's)."""
    from transformers.models.bart.tokenization_bart import bytes_to_unicode

    folder = FILES / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vocab.txt", "\n".join(WORD_PIECES))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *bytes_to_unicode().values()]
    write_text(folder / "vocab.json", json.dumps({piece: i for i, piece in enumerate(pieces)}))
    write_text(folder / "merges.txt", "#version: 0.2\n")
    return folder


def write_gallery() -> Path:
    """Write a data set for image retrieval, with two images."""
    (FILES / "inshop" / "Img").mkdir(parents=True, exist_ok=True)
    (FILES / "inshop" / "Eval").mkdir(exist_ok=True)
    lines = ["2", "image_name item_id evaluation_status"]
    for i in range(2):
        image = np.random.default_rng(i).integers(0, 256, (240, 256, 3), dtype=np.uint8)
        cv2.imwrite(str(FILES / "inshop" / "Img" / f"{i}.png"), image)
        lines.append(f"{i}.png id_{i} gallery")
    write_text(FILES / "inshop" / "Eval" / "list_eval_partition.txt", "\n".join(lines))
    return FILES / "inshop"


def pretrain_batches(model: nn.Module, cfg: Config) -> tuple[dict | None, dict | None]:
    """Return None for missing data: self-supervised models lack test data, some others training data."""
    if cfg.model.type == "ChineseCLIP":
        nn.init.normal_(model.text_projection)
    batches = []
    tested = 2 if is_lenet(cfg) else 1  # LeNet5 drops the batch dimension of a single image
    for loader, number in ((cfg.get("test_dataloader"), tested), (cfg.get("train_dataloader"), 2)):
        dataset = dataset_of(loader)
        collate = (loader.get("collate_fn") or {}).get("type", "default_collate") if dataset else ""
        samples = [pretrain_sample(cfg, i) for i in range(number)]
        batches.append(through(dataset.pipeline, samples, collate) if dataset else None)
    return tuple(batches)


def pretrain_sample(cfg: Config, index: int) -> dict:
    size = (240, 256)
    shape = size if is_lenet(cfg) else (*size, 3)
    image = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
    multiple = "MultiLabel" in str((cfg.model.get("head") or {}).get("type")) or "csra" in str(cfg.filename)
    return dict(
        img=image,
        gt_label=[index] if multiple else index,
        img_shape=size,
        ori_shape=size,
        img_path=f"{index}.png",
        sample_idx=index,
        image_id=index,
        gt_caption="a picture",
    )


def is_lenet(cfg: Config) -> bool:
    return cfg.model.get("backbone", {}).get("type") == "LeNet5"


# mmocr


def ocr_adapt(cfg: Config) -> str | None:
    """Limit the sizes in the pipelines to 320 pixels, instead of 1333."""
    untrained = {
        "DRRG": "prediction on 64 pixels: before training, it finds text everywhere and joins all pixels",
        "TextSnake": "prediction with radii of 10 pixels: before training, they are 0, and it does not end",
    }
    shrink(dataset_of(cfg.test_dataloader).pipeline, 64 if cfg.model.type == "DRRG" else 320)
    shrink(dataset_of(cfg.train_dataloader).pipeline, 320)
    return untrained.get(cfg.model.type)


def ocr_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict]:
    train, test = dataset_of(cfg.train_dataloader), dataset_of(cfg.test_dataloader)
    if cfg.model.type == "TextSnake":  # it walks in steps of 3% of the radius
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
    path = f"{index}.png"
    return dict(img=image, img_path=path, img_shape=size, ori_shape=size, instances=words)


# mmyolo and mmrotate, which use MMDetection's data samples


def yolo_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict]:
    from mmyolo.datasets.utils import yolov5_collate

    trained = images(2, 256, alike=True, use_box_type=True)
    for sample in trained["data_samples"]:
        sample.gt_instances.labels.zero_()  # a class that every detector has
        del sample.gt_instances.masks
    collate = cfg.train_dataloader.get("collate_fn", {})
    if collate.get("type") == "yolov5_collate":
        pairs = zip(trained["inputs"], trained["data_samples"], strict=True)
        samples = [dict(inputs=image, data_samples=sample) for image, sample in pairs]
        trained = yolov5_collate(samples, collate.get("use_ms_training", False))
    return images(1, 256), trained


def rotate_batches(model: nn.Module, cfg: Config) -> tuple[dict, dict]:
    from mmrotate.testing import demo_mm_inputs

    steps = dataset_of(cfg.train_dataloader).pipeline
    size = 384 if "SASAssigner" in str(cfg.model) else 128  # it selects 9 points on each level
    turned = any(step.get("box_type_mapping", {}).get("gt_bboxes") == "rbox" for step in steps)

    def batch(number: int) -> dict:
        shapes = [[3, size, size]] * number
        made = demo_mm_inputs(number, shapes, [2] * number, 3, use_box_type=True, use_qbox=not turned)
        for sample in made["data_samples"]:
            sample.gt_instances.labels.zero_()  # a class that every detector has
        return made

    return batch(1), batch(2)


# mmagic

RESTORATION = ("basicvsr", "basicvsr_pp", "cain", "deblurganv2", "edsr", "edvr", "esrgan", "flavr", "iconvsr")
RESTORATION += ("nafnet", "rdn", "real_basicvsr", "real_esrgan", "restormer", "srcnn", "srgan_resnet")
RESTORATION += ("swinir", "tdan", "tof")
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
        representatives={"swin": "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"},
        reasons={
            "san": "upstream: its head cannot be initialised without CLIP's weights",
            "vpd": "upstream: needs `ldm`, the code of Stable Diffusion, which is not on a package index",
        },
    ),
    "mmpose": Package(
        pose_batches,
        pose_adapt,
        depth=2,
        representatives={
            "body_2d_keypoint/topdown_heatmap": "coco/td-hm_res50_8xb64-210e_coco-256x192.py",
        },
        reasons={
            "body_2d_keypoint/edpose": "upstream: the config imports mmpose.configs, which the wheel lacks",
        },
    ),
    "mmpretrain": Package(
        pretrain_batches,
        pretrain_adapt,
        representatives={
            "blip": "blip-base_8xb32_caption.py",
            "clip": "vit-base-p16_pt-64xb64_in1k.py",
            "eva": "eva-l-p14_8xb16_in1k-196px.py",
            "ofa": "ofa-base_finetuned_caption.py",
            "replknet": "replknet-31L_32xb64_in1k-384px.py",  # those of 31B do not inherit their base
        },
        reasons={
            "ofa": "upstream: does not predict with transformers 4.45",
            "blip2": "upstream: the config has an argument that its class lacks",
            "milan": "needs weights, which it downloads",
            **dict.fromkeys(("llava", "minigpt4"), "needs a language model, which it downloads"),
            **dict.fromkeys(("flamingo", "otter"), "needs sentencepiece and a tokenizer, which it downloads"),
        },
    ),
    "mmocr": Package(
        ocr_batches,
        ocr_adapt,
        depth=2,
    ),
    "mmyolo": Package(yolo_batches, reasons={"razor": "upstream: needs mmrazor"}),
    "mmrotate": Package(
        rotate_batches,
        reasons={
            "convnext": "upstream: needs mmcls, the former name of mmpretrain",
            "sasm_reppoints": "upstream: its loss calls `.cuda()`, so it trains only on a GPU",
        },
    ),
    "mmagic": Package(
        edit_batches,
        edit_adapt,
        only=RESTORATION,
        representatives={
            "tof": "tof_spynet-chair-wobn_1xb1_vimeo90k-triplet.py",  # the other kind is only for prediction
        },
        reasons={
            "deblurganv2": "upstream: always downloads weights",
            "real_basicvsr": "stopped on a busy machine",
        },
    ),
}


# Trials


def try_out(name: str) -> str:
    """Build the model, predict, and train for one step; return the result for the table.

    Raises:
        Exception: something fails.
    """
    package = name.partition("::")[0]
    how = PACKAGES[package]
    os.chdir(mim_folder(package))  # some configs have paths that are relative to the repository
    cfg = read(name)
    note = how.adapt(cfg)
    with DefaultScope.overwrite_default_scope(package):
        model = prepare(cfg, package)
        predicted, trained = how.batches(model, cfg)
        if predicted is None and trained is None:
            extract_features(model)
            return "ok, features only: its configs have no head"
        if predicted is not None:
            model.eval()
            with torch.no_grad():
                found = model.test_step(predicted)
            expect(len(found) > 0, "no predictions")
            expect(not any(values.isnan().any() for values in tensors(found)), "the predictions contain NaN")
        if trained is not None:
            model.train()
            losses = model.train_step(trained, build_optim_wrapper(model, cfg.optim_wrapper))
            losses = {key: value for key, value in losses.items() if isinstance(value, Tensor)}
            expect(len(losses) > 0, "no losses")
            for key, value in losses.items():
                expect(finite(value), f"{key} is {value}")
    return f"ok, {note}" if note else "ok"


def extract_features(model: nn.Module) -> None:
    """Run a backbone without a head, and its gradients.

    Raises:
        AssertionError: a feature or a gradient is missing or not finite.
    """
    images = [torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)]
    found = list(tensors(model.extract_feat(model.data_preprocessor(dict(inputs=images))["inputs"])))
    expect(len(found) > 0 and all(map(finite, found)), "no finite features")
    sum(values.square().mean() for values in found).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    expect(len(gradients) > 0 and all(map(finite, gradients)), "no finite gradients")


FAMILIES = {
    f"{package}/{family}": name
    for package, how in PACKAGES.items()
    if find_spec(package)
    for family, name in families(package, how.representatives, depth=how.depth)
    if not how.only or family in how.only
}


def result_of(name: str) -> str:
    """Return ``ok``, or the error in one line, with its reason in words if there is one."""
    package, _, path = name.partition("::")
    result = apart(lambda: try_out(name)).replace(f"{mim_folder(package).parents[1]}/", "")
    why = [why for family, why in PACKAGES[package].reasons.items() if path.startswith(f"{family}/")]
    return f"{why[0]} ({result})" if why and not is_ok(result) else result


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, record):
    record(family, FAMILIES[family], result_of(FAMILIES[family]))
