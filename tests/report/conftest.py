import json

import pytest
import torch
from mmengine.config import Config

from dcnzoo.data.shapes import ShapesSpec, make_shapes
from tests.helpers.demo import DEFORMABLE, build


def write_log(folder, *starts):
    """One log for each start. An entry is (iteration, epoch, loss) or (epoch, box AP)."""
    for number, entries in enumerate(starts):
        data = folder / f"2026_{number}" / "vis_data"
        data.mkdir(parents=True)
        lines = []
        for entry in entries:
            if isinstance(entry, dict):
                lines.append(entry)
            elif len(entry) == 3:
                step, epoch, loss = entry
                lines.append(
                    {"loss": loss, "lr": 0.1, "time": 0.25, "epoch": epoch, "iter": step, "step": step}
                )
            else:
                metrics = {"coco/bbox_mAP": entry[1], "coco/bbox_mAP_l": -1.0, "time": 9.0}
                lines.append({**metrics, "step": entry[0]})
        (data / "scalars.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"loss": 1')


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, ShapesSpec(train=2, val=6))
    return folder


@pytest.fixture
def make_run(tmp_path, data):
    """A work directory as after training, with random weights."""

    def make(name="run", logs=(((2, 1, 5.0), (4, 1, 4.0), (1, 0.125), (6, 2, 3.0), (2, 0.25)),), **settings):
        folder = tmp_path / name
        folder.mkdir()
        cfg = Config.fromfile(DEFORMABLE)
        cfg.merge_from_dict({"val_dataloader.dataset.data_root": f"{data}/", **settings})
        cfg.val_dataloader.dataset.shapes = None
        cfg.dump(folder / "config.py")
        write_log(folder, *logs)
        torch.manual_seed(0)
        model = build(cfg.model)
        for module in model.modules():
            if hasattr(module, "conv_offset"):
                torch.nn.init.normal_(module.conv_offset.weight, std=0.05)
        torch.save({"state_dict": model.state_dict(), "meta": {}}, folder / "epoch_2.pth")
        (folder / "last_checkpoint").write_text(f"/moved/since/{name}/epoch_2.pth")
        return folder

    return make
