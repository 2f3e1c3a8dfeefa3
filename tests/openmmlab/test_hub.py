"""Detectors on the Hugging Face Hub, with a local copy of its cache in place of the network."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS, TRANSFORMS
from mmengine.config import Config

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.openmmlab.config import json_config
from dcnzoo.openmmlab.config.tree import registered
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.openmmlab.runs.build import build_model
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.folders import mim_folder
from tests.helpers import detectors
from tests.helpers.demo import DEFORMABLE
from tests.helpers.processes import ROOT

hub = pytest.importorskip("huggingface_hub")
MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
NAME = "hf://owner/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIPELINE = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(192, 160)), dict(type="PackDetInputs")]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The folder of owner/name; uploads go there, and downloads come from there."""
    folder = tmp_path / "models--owner--name"
    snapshot = folder / "snapshots" / COMMIT
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    created = []

    def upload_folder(self, *, repo_id, folder_path, **options):
        assert created == [repo_id] == ["owner/name"]
        shutil.copytree(folder_path, snapshot)
        (folder / "refs").mkdir()
        (folder / "refs" / (options["revision"] or "main")).write_text(COMMIT)

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, name, **options: created.append(name))
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    return snapshot


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_detector_comes_back_from_the_hub(repository, tmp_path):
    detector = dcnzoo.load(MODEL, device="cpu")
    name = detector.push_to_hub("owner/name", metrics={"box AP": 0.711}, data="generated shapes")
    assert names_in(repository) == ["README.md", "config.json", "model.safetensors"]
    card = (repository / "README.md").read_text()
    assert "| box AP | 0.711 |" in card and f'dcnzoo.load("{NAME}")' in card
    picture = draw_image(ShapesSpec(), "val", 0)[0]
    expected = detector(picture)
    copy = shutil.copytree(repository, tmp_path / "copy")
    (copy / "config.py").write_text("raise SystemExit('executed')")
    for each in (name, f"{name}@main", f"{name}@{COMMIT}", copy, copy / "model.safetensors"):
        loaded = dcnzoo.load(each, device="cpu")
        result = loaded(picture)
        assert len(result) > 1 and result.names == expected.names and loaded.classes == detector.classes
        assert np.array_equal(result.boxes, expected.boxes) and np.array_equal(result.masks, expected.masks)


@pytest.mark.parametrize("family", ["RTMDet-Ins", "Deformable DETR", "DINO"])
def test_detectors_whose_weights_share_memory(repository, family):
    settings = detectors.config(family)
    settings.update({"with_box_refine": False} if family == "Deformable DETR" else {})
    dataset = dict(pipeline=PIPELINE)
    model = build_model(Recipe(Config(dict(model=settings, test_dataloader=dict(dataset=dataset)))))
    if hasattr(model, "level_embed"):
        torch.nn.init.ones_(model.level_embed)  # else uninitialised memory
    before = {name: value.clone() for name, value in model.state_dict().items()}
    addresses = [value.data_ptr() for value in model.state_dict().values()]
    assert family == "DINO" or len(set(addresses)) < len(addresses)  # DINO changes its head's settings
    model.dataset_meta = dict(classes=tuple("abcde"), palette="random")
    TorchDetector(model).push_to_hub("owner/name")
    after = dcnzoo.load(NAME, device="cpu", channels_last=False).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def valid_configs():
    """Return configs of MMDetection's families and some of dcnzoo's own."""
    own = sorted(path for path in (ROOT / "configs").rglob("*.py") if "_base_" not in path.parts)[::8]
    files = {family.file for family in detectors.CONFIGS.values()}
    return [*(mim_folder("mmdet") / "configs" / name for name in sorted(files)), *own]


def test_published_configs_are_data(tmp_path):
    """The same settings come back, except those that name files: a detector with weights uses none."""
    for path in valid_configs():
        cfg = Config.fromfile(path)
        (tmp_path / "config.json").write_text(json_config.write(cfg))
        json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)  # no Infinity
        read = json_config.read(tmp_path / "config.json")
        assert repr(read.model.to_dict()) == repr(without_sources(cfg.model.to_dict())), path
        assert read.test_dataloader.dataset.pipeline[-1].type == "PackDetInputs"


def without_sources(node):
    if isinstance(node, dict):
        sources = ("init_cfg", "pretrained", "teacher_ckpt")
        return {key: without_sources(value) for key, value in node.items() if key not in sources}
    return type(node)(map(without_sources, node)) if isinstance(node, list | tuple) else node


def types_of_mmdet():
    """MMDetection's types that a config.json may name, by the part of the config."""
    kinds = {**registered(MODELS), **registered(TASK_UTILS), **registered(TRANSFORMS)}
    return {
        part: {name for name in names if getattr(kinds.get(name), "__module__", "").startswith("mmdet.")}
        for part, names in json_config._types().items()
    }


def test_the_allowed_types_are_those_of_the_pinned_mmdet():
    """A new class may open files: read it before you add it to json_types.txt."""
    text = Path(__file__).with_name("json_types.txt").read_text(encoding="utf-8")
    parts = (part.partition(":") for part in text.split("\n\n"))
    assert types_of_mmdet() == {part: {*names.split()} for part, _, names in parts}


def test_spellings(tmp_path):
    model = dict(type="ResNet", ranges=((-1, 64), (64, float("inf"))), weights={"a": [(2,)]},
                 none=None, least=-float("inf"), arch="regnetx_3.2gf", act_cfg=dict(type=torch.nn.ReLU),
                 to_deformable=dict(where="layer[34].*(conv1|conv2)", kind="v2"))  # fmt: skip
    cfg = Config(dict(model=model, test_dataloader=dict(dataset=dict(pipeline=PIPELINE))))
    (tmp_path / "config.json").write_text(json_config.write(cfg))
    read = json_config.read(tmp_path / "config.json")
    assert read.model.to_dict() == {**model, "act_cfg": dict(type="ReLU")}
    assert read.test_dataloader.dataset.pipeline[1].scale == (192, 160)
    for value in ({1, 2}, {0: 1}, print, torch.float32, torch.nn.ReLU, "https://host/x.pth", "a/b", "f(x)"):
        cfg.model.other = value
        with pytest.raises(ValueError, match=r"model\.other"):
            json_config.write(cfg)


# This code leaves a file if a repository can run code.
EVIL = "__import__('os').system('touch PWNED')"
# key → the change of a valid config.json
CHANGES = {
    "custom_imports": {"imports": ["evilmod"], "allow_failed_imports": False},
    "_base_": "evilmod.py",
    "load_from": "evilmod.pth",
    "test_dataloader": {"dataset": {"type": "evilmod.X", "metainfo": {"classes": "evilmod.txt"}}},
    "default_scope": "mmcv",
    "model._scope_": "evilmod",
    "model.type": "evilmod.X",
    "model.backbone.type": "evilmod",
    "model.rpn_head.type": ["evilmod", "X"],
    "model.rpn_head.loss_cls.type": EVIL,
    "model.rpn_head.anchor_generator.type": "mmdet.evilmod.X",
    "model.roi_head.type": "mmengine.load",
    "model.roi_head.bbox_roi_extractor.roi_layer.type": "evilmod.RoIAlign",
    "model.test_cfg.rcnn.nms.type": EVIL,
    "model.test_cfg.rcnn.mask_thr_binary": EVIL,
    "model.data_preprocessor.batch_augments": [{"type": "evilmod.X"}],
    "model.backbone.init_cfg": {"type": "Pretrained", "checkpoint": "evilmod.pth"},
    "model.backbone.pretrained": "evilmod.pth",
    "model.backbone.norm_cfg._scope_": "evilmod",
    "model.backbone.dcn": {"type": "evilmod.X"},
    "model.backbone.style": "../evilmod.py",
    "model.backbone.$tuple": [1],
    "model.backbone.$call": ["os.system", "touch PWNED"],
    "model.backbone.__class__": "evilmod",
    "model.teacher_config": "evilmod.py",
    "model.teacher_ckpt": "https://host/evilmod.pth",
    "model.language_model": {"type": "BertModel", "name": "evilmod"},
    "model.tracker": {"type": "CameraMotionCompensation", "warp_mode": EVIL},
    "model.neck": {"type": "ATSSVLFusionHead", "lang_model_name": "evilmod"},
    "test_pipeline.0.type": "evilmod.Load",
    "test_pipeline.0.backend_args": {"backend": "petrel"},
    "test_pipeline.1.type": "Albu",
    "test_pipeline.2": {"type": "RandomSamplingNegPos", "tokenizer_name": "evilmod", "label_map_file": "x"},
    "test_pipeline": [],
    "model": [{"type": "ResNet"}],
    "dcnzoo": EVIL,
    "model.backbone.deep": None,  # a dictionary in a dictionary, 5000 times
    "config.json": "[1, 2",
}  # fmt: skip


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Record the audit events that only executed code causes, and the modules imported meanwhile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evilmod.py").write_text(EVIL)
    events, active = [], True
    starts = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.connect", "pickle.")

    def hook(event, arguments):
        if active and (event.startswith(starts) or (event == "import" and "evil" in str(arguments[0]))):
            events.append((event, arguments))

    sys.addaudithook(hook)
    modules = {*sys.modules}
    yield events
    active = False
    assert not events
    roots = {name.partition(".")[0] for name in {*sys.modules} - modules} - {*sys.stdlib_module_names}
    assert roots <= {"mmdet", "mmengine", "mmcv", "dcnzoo", "torch", "huggingface_hub", "tqdm"}
    assert not (tmp_path / "PWNED").exists()


def change(content, key, value):
    *path, last = key.split(".")
    for each in path:
        content = content[int(each)] if isinstance(content, list) else content[each]
    content[int(last) if isinstance(content, list) else last] = value


def test_a_repository_executes_nothing(repository, watch):
    dcnzoo.load(MODEL, device="cpu").push_to_hub("owner/name")
    config, valid = repository / "config.json", json.loads((repository / "config.json").read_text())
    dcnzoo.load(NAME, device="cpu")
    for key, value in CHANGES.items():
        content = json.loads(json.dumps(valid))
        if key == "model.backbone.deep":  # json.dumps refuses it
            text = json.dumps(content).replace('"backbone": {', '"backbone": {' + '"deep": {' * 5000, 1)
            text = text.replace('"neck"', "}" * 5000 + ', "neck"', 1)
        elif key == "config.json":
            text = value
        else:
            change(content, key, value)
            text = json.dumps(content)
        config.write_text(text)
        with pytest.raises(UserError) as error:
            dcnzoo.load(NAME, device="cpu")
        named = "config.json" if key.endswith("deep") else key
        assert f"{NAME}: " in str(error.value) and f"{named}" in str(error.value), key
        with pytest.raises(UserError):  # the same repository as a folder of this computer
            dcnzoo.load(repository, device="cpu")
    config.unlink()
    (repository / "config.py").write_text(f"{Path(DEFORMABLE).read_text()}\nx = {EVIL}")
    with pytest.raises(UserError, match=r"expected the files config\.json .*got .*config\.py"):
        dcnzoo.load(NAME, device="cpu")
    for name in (repository, repository / "model.safetensors"):  # downloaded by another program
        with pytest.raises(UserError, match=r"the program config\.py"):
            dcnzoo.load(name, device="cpu")
