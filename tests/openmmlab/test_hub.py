"""Detectors on the Hugging Face Hub, with a local copy of its cache in place of the network."""

import shutil

import numpy as np
import pytest
from mmengine.config import Config

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.utils.errors import UserError

hub = pytest.importorskip("huggingface_hub")
MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
        (folder / "refs/main").write_text(COMMIT)

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, name, **options: created.append(name))
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    return snapshot


def test_a_detector_comes_back_from_the_hub(repository):
    detector = dcnzoo.load(MODEL, device="cpu")
    name = detector.push_to_hub("owner/name", metrics={"box AP": 0.711}, data="generated shapes")
    names = sorted(path.name for path in repository.iterdir())
    assert names == ["README.md", "config.py", "model.safetensors"]
    card = (repository / "README.md").read_text()
    assert "| box AP | 0.711 |" in card and 'dcnzoo.load("hf://owner/name")' in card
    picture = draw_image(ShapesSpec(), "val", 0)[0]
    expected = detector(picture)
    for each in (name, f"{name}@main", f"{name}@{COMMIT}"):
        result = dcnzoo.load(each, device="cpu")(picture)
        assert len(result) > 1 and result.names == expected.names
        assert np.array_equal(result.boxes, expected.boxes) and np.array_equal(result.masks, expected.masks)


@pytest.mark.parametrize(
    "change",
    [
        {"custom_imports": {"imports": ["os"], "allow_failed_imports": False}},
        {"model.backbone": {"type": "os.system", "command": "true"}},
        {"model.backbone": {"type": "antigravity.ResNet"}},  # the name of a class, in a module
        {"model.neck.type": "mmengine.load"},
        "import os",
        "model['neck'] = None",
        "size = __import__('os').getpid()",
        "_base_ = ['/tmp/other.py']",
        {"model.test_cfg.rcnn.nms.type": "exit"},
        {"test_dataloader.dataset.pipeline": [{"type": "subprocess.run", "args": "true"}]},
    ],
)
def test_a_config_with_code_is_refused(repository, change):
    detector = dcnzoo.load(MODEL, device="cpu")
    name = detector.push_to_hub("owner/name")
    config = repository / "config.py"
    if isinstance(change, str):
        config.write_text(f"{config.read_text()}\n{change}\n")
    else:
        cfg = Config.fromfile(config)
        cfg.merge_from_dict(change)
        config.write_text("\n".join(f"{name} = {value!r}" for name, value in cfg.to_dict().items()))
    with pytest.raises(UserError, match=r"expected classes of OpenMMLab and dcnzoo only.*trust_config=True"):
        dcnzoo.load(name, device="cpu")


@pytest.mark.parametrize("name", ["hf://owner", "hf://owner/name/x", "hf://", "hf://owner/name@"])
def test_names(name):
    with pytest.raises(UserError, match="expected hf://OWNER/NAME"):
        dcnzoo.load(name)


def test_a_repository_that_does_not_exist(repository):
    with pytest.raises(UserError, match=r"config\.py"):
        dcnzoo.load("hf://owner/other")
