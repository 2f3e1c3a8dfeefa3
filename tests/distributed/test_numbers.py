"""Several processes compute the same as one process with the joined batch."""

import json
import re

import pytest
import torch
from torch import nn

from .launching import ROOT, torchrun

CASES = ("layer_gradients", "detector_gradients", "sync_batch_norm", "sharding")


def errors(processes, folder):
    torchrun(processes, "-m", "tests.distributed.worker", folder / "results.json", *CASES)
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return errors(2, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes(two, case):
    assert max(two[case].values()) <= 1e-5, two[case]


def test_every_layer_is_compared(two):
    from dcnzoo import layers

    packed = {name for name in layers.__all__ if name.startswith("Packed") or name.endswith("Pack")}
    compared = {name.partition(",")[0] for name in two["layer_gradients"]}
    assert packed | {"DCN", "DCNv2", "DCNv3", "DCNv4", "MultiScaleDeformableAttention"} == compared


@pytest.mark.slow
def test_four_processes(tmp_path):
    for case, found in errors(4, tmp_path).items():
        assert max(found.values()) <= 1e-5, (case, found)


# Sharded parameters


def test_a_class_that_is_not_there(tmp_path):
    from dcnzoo.openmmlab.sharding import FullyShardStrategy

    strategy = FullyShardStrategy(shard=["Linear", "Nope"], work_dir=str(tmp_path))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"shard: .*'Nope'.*Linear, ReLU, Sequential"):
            strategy._wrap_model(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    finally:
        torch.distributed.destroy_process_group()


def test_as_a_further_base(tmp_path):
    import dcnzoo.models  # noqa: F401

    # isort: split
    from mmengine.config import Config
    from mmengine.registry import MODELS, STRATEGIES

    text = re.search(r"^_base_ = .*fully_sharded.*$", (ROOT / "docs/scale.md").read_text(), re.MULTILINE)[0]
    (tmp_path / "config.py").write_text(
        text.replace("'./", f"'{ROOT}/configs/internimage/").replace("'../", f"'{ROOT}/configs/")
    )
    cfg = Config.fromfile(tmp_path / "config.py")
    assert cfg.runner_type == "FlexibleRunner" and cfg.model.backbone.type == "InternImage"
    strategy = STRATEGIES.build(dict(cfg.strategy, work_dir=str(tmp_path)))
    for name in ("InternImage", "FlashInternImage"):
        backbone = MODELS.build(dict(type=name, channels=16, depths=[1], groups=[1], out_indices=(0,)))
        assert set(strategy.shard) <= {type(module).__name__ for module in backbone.modules()}
