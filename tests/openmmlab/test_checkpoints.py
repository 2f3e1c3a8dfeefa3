"""Checkpoints are data: no way of loading them in mmengine runs their code. Also weights by name."""

import hashlib
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as loading
from torch import nn

import dcnzoo.models  # noqa: F401  applies the patches
from dcnzoo.openmmlab.checkpoints import CheckpointError, class_names, load_file
from dcnzoo.openmmlab.hooks import AtomicLocalBackend
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.fetch import checksum_in_name
from dcnzoo.utils.folders import mim_folder
from tests.helpers.checkpoints import Harmful
from tests.helpers.server import Served, serving
from tests.zoo.conftest import undisturbed  # noqa: F401  a fixture


def test_classes_are_texts():
    for classes in (["1", "2"], (1, 2), np.array(["1", "2"]), {0: "1", 1: "2"}, {"1": 0, "2": 1}):
        assert class_names({"dataset_meta": {"classes": classes}}) == {"classes": ("1", "2")}


@pytest.mark.skipif(sys.platform != "linux", reason="posix.mkdir has another name elsewhere")
def test_a_harmful_file_is_refused(harmful, tmp_path, folder, monkeypatch):
    for path in (harmful, f"~/{os.path.relpath(harmful, Path.home())}"):
        with pytest.raises(CheckpointError, match=REFUSED):
            load_checkpoint(nn.Linear(2, 1), str(path))
    load_file(harmful, unsafe_load=True)
    folder.rmdir()  # which it created
    # many users set this for one file and leave it set
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match=REFUSED):
        CheckpointLoader.load_checkpoint(str(harmful), logger="silent")
    torch.save(Harmful(folder), harmful, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=REFUSED):
        CheckpointLoader.load_checkpoint(str(harmful), logger="silent")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_checkpoint(nn.Linear(2, 1), str(tmp_path / "none.pth"))
    for content in (b"", b"<!DOCTYPE html>", b"PK\x03\x04 cut off"):
        harmful.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(f"{harmful}: expected a checkpoint")):
            load_checkpoint(nn.Linear(2, 1), str(harmful))


@pytest.mark.skipif(sys.platform != "linux", reason="posix.mkdir has another name elsewhere")
@pytest.mark.parametrize("way", ["http://", "torchvision://"])
def test_a_harmful_download_is_refused(harmful, way, tmp_path, monkeypatch):
    """mmengine loads URLs with torch.hub, which loads any content."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with serving(Served({"/harmful.pth": harmful.read_bytes()})) as server:
        address = f"{server.url}/harmful.pth"
        monkeypatch.setattr(loading, "get_torchvision_models", lambda: {"net": address})
        with pytest.raises(CheckpointError, match=REFUSED):
            CheckpointLoader.load_checkpoint(address if way == "http://" else f"{way}net", logger="silent")
    assert len(server.requests) == 1


@pytest.fixture
def folder(tmp_path):
    """A folder that must not be created."""
    folder = tmp_path / "made by a checkpoint"
    yield folder
    assert not folder.exists()


@pytest.fixture
def harmful(tmp_path, folder):
    path = tmp_path / "harmful.pth"
    torch.save({"state_dict": {"weight": torch.ones(1, 2)}, "meta": {"x": Harmful(folder)}}, path)
    return path


REFUSED = r"harmful[.\w]*\.pth: contains posix\.mkdir.*unsafe_load=True"


def test_download_with_a_checksum(tmp_path, monkeypatch):
    """The checksum is in the file name, as in OpenMMLab's and torch's files; other content is rejected."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    layer = nn.Linear(2, 1)
    with serving(Served({f"/net-{digits}.pth": content, "/net-01234567.pth": content})) as server:
        load_checkpoint(layer, f"{server.url}/net-{digits}.pth", logger="silent")
        assert torch.equal(layer.weight, torch.ones(1, 2))
        with pytest.raises(Exception, match=f"01234567.*{digits}"):
            load_checkpoint(layer, f"{server.url}/net-01234567.pth", logger="silent")


def test_a_config_in_it_is_not_run(tmp_path, folder):
    """mmengine executes the config to count the GPUs. MMDetection 2.x stores it in 'meta'."""
    code = f"import os\nos.mkdir({str(folder)!r})\ngpu_ids = [0, 1]"
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {}, "meta": {"config": code, "epoch": 3}}, path)
    assert CheckpointLoader.load_checkpoint(str(path), logger="silent")["meta"] == {"epoch": 3}


def test_published_files_load(tmp_path):
    """Checkpoints of MMDetection 2 and 3 have mmengine's log, numpy 1 and 2 scalars, and configs as text."""
    meta = {
        "config": "model = dict(type='FasterRCNN')",
        "hook_msgs": {"best_score": np.float64(0.41), "last_ckpt": "epoch_12.pth"},
        "iter": np.int64(7),
        "palette": np.arange(6, dtype=np.uint8).reshape(2, 3),
    }
    hub = {"log_scalars": {"loss": HistoryBuffer([1.0, 3.0], [1, 1])}}
    path = tmp_path / "x.pth"
    torch.save({"meta": meta, "message_hub": hub}, path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    assert b"numpy._core.multiarray" in written
    # in pickle protocol 2, a newline ends a module's name
    path.write_bytes(written.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    for reader in (load_file, lambda path: CheckpointLoader.load_checkpoint(str(path), logger="silent")):
        found = reader(path)
        assert found["meta"]["hook_msgs"]["best_score"] == 0.41 and found["meta"]["iter"] == 7
        np.testing.assert_array_equal(found["meta"]["palette"], meta["palette"])
        assert found["message_hub"]["log_scalars"]["loss"].mean() == 2.0


# Files that are damaged, or cannot be written


def test_damage_is_noticed(tmp_path):
    """Loading detects every changed bit that changes the content, and every truncated archive."""
    path, file, legacy = tmp_path / "x.pth", io.BytesIO(), io.BytesIO()
    weight = torch.arange(300.0)
    state = {"weight": weight, "meta": {"epoch": 3}}
    torch.save(state, file)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)  # the format of torch 1.5
    plain, legacy = file.getvalue(), legacy.getvalue()

    def is_accepted(content, **options):
        path.write_bytes(content)
        try:
            found = load_file(path, **options)
        except CheckpointError:
            return False
        assert found["meta"] == {"epoch": 3} and (
            found["weight"].is_meta or torch.equal(found["weight"], weight)
        )
        return True

    assert is_accepted(plain) and is_accepted(legacy)
    changed = bytearray(plain)
    changed[plain.index(weight[100].numpy().tobytes())] ^= 4
    assert not is_accepted(changed) and not is_accepted(changed, map_location="meta")
    unnoticed = 0
    for position in [*range(0, len(plain) - 200, 41), *range(len(plain) - 200, len(plain), 3)]:
        assert not is_accepted(plain[:position]), position
        changed = bytearray(plain)
        changed[position] ^= 1 << position % 8
        unnoticed += is_accepted(changed)  # padding, dates and the like
    assert unnoticed < 60
    assert not is_accepted(bytes(len(plain)))  # zeros, as some file systems leave after a power loss


def test_a_full_disk_is_one_line(tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path / "x.pth").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"^{tmp_path}/x.pth .*File too large.*resume=True$"):
            AtomicLocalBackend().put(bytes(5000), tmp_path / "x.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.pth", b"old")]


# Backbone weights by name, without torchvision and without network


def test_names(asked):
    """Every name in MMDetection's configs."""
    base = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    for name in ("torchvision://resnet50", "modelzoo://resnet50", "torchvision://resnet50.imagenet1k_v1"):
        CheckpointLoader.load_checkpoint(name, logger="silent")
        assert asked.pop() == base
    names = set()
    for config in mim_folder("mmdet").glob("configs/**/*.py"):
        names |= set(re.findall(r"(?:torchvision|open-mmlab)://[\w./-]+", config.read_text(encoding="utf-8")))
    for name in (names := {name for name in names if not name.endswith("xxx")}):
        CheckpointLoader.load_checkpoint(name, logger="silent")
    assert len(asked) == len(names) > 30 and all(map(checksum_in_name, asked))
    with pytest.raises(UserError, match=r"^torchvision://resnet5O: expected"):
        CheckpointLoader.load_checkpoint("torchvision://resnet5O", logger="silent")


@pytest.fixture
def asked(monkeypatch):
    """The requested URLs. Nothing is downloaded."""
    found = []
    monkeypatch.setattr(loading, "load_url", lambda url, **kwargs: found.append(url) or {"url": url})
    monkeypatch.setitem(sys.modules, "torchvision", None)
    return found
