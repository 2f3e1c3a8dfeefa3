"""The recipe for Ultralytics YOLO in docs/migration.md, from training to export: ``nox -s others``."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.layers import PackedDeformConv2d
from tests.helpers.formats import write_yolo
from tests.helpers.processes import ROOT

pytest.importorskip("ultralytics", exc_type=ImportError)

SECTION = (ROOT / "docs/migration.md").read_text().split("## Ultralytics YOLO")[1].split("\n## ")[0]
TRAINING, EXPORT = re.findall(r"^```python\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
OPTIONS = dict(
    **dict(imgsz=96, batch=8, nbs=8, device="cpu", workers=0, plots=False, verbose=False),
    **dict(optimizer="AdamW", lr0=0.002, warmup_epochs=0, seed=0, exist_ok=True, name="shapes"),
)


def draw_shapes(folder: Path) -> None:
    """Write images, their boxes in YOLO's format, and data.yaml."""
    make_shapes(folder / "coco", ShapesSpec(train=32, val=8, seed=0))
    parts = {}
    for split in ("train", "val"):
        parts[split] = json.loads((folder / "coco/annotations" / f"{split}.json").read_text())
        for image in parts[split]["images"]:
            image["path"] = folder / "coco" / split / image["file_name"]
    write_yolo(folder, parts)
    data = (folder / "data.yaml").read_text()
    Path("data.yaml").write_text(f"path: {folder.resolve()}\n{data}")


def packs(model: torch.nn.Module) -> dict[str, PackedDeformConv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, PackedDeformConv2d)}


def test_recipe(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    from ultralytics import YOLO

    monkeypatch.chdir(tmp_path)
    draw_shapes(tmp_path / "shapes")
    torch.save({"model": YOLO("yolo11n.yaml").model, "train_args": {}}, "yolo11n.pt")
    # a trainer's module must be importable: Ultralytics starts the processes of several GPUs from its name
    recipe = {"options": OPTIONS, "project": str(tmp_path / "runs"), "__name__": "recipe"}
    training = TRAINING.replace("epochs=100)", "epochs=2, project=project, **options)")
    assert training != TRAINING
    exec(training, recipe)
    checkpoint = Path(recipe["yolo"].trainer.best)
    best = YOLO(checkpoint).model.float().eval()
    learnt = packs(best)
    assert len(learnt) == 4
    assert all(pack.conv_offset.weight.abs().max() > 0 for pack in learnt.values())
    assert "trainer=" in str(dcnzoo.to_deformable(YOLO("yolo11n.yaml").model, recipe["Trainer"].where))

    # the next training starts from these weights, including those of the offsets
    again = recipe["Trainer"](overrides=dict(model="yolo11n.yaml", data="data.yaml", **OPTIONS))
    continued = packs(again.get_model("yolo11n.yaml", best, verbose=False))
    assert continued.keys() == learnt.keys()
    for name, pack in learnt.items():
        torch.testing.assert_close(continued[name].conv_offset.weight, pack.conv_offset.weight)

    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected = best(image)[0]
        fused = best.fuse(verbose=False)(image)[0]
    assert len(packs(best)) == 4
    torch.testing.assert_close(fused, expected, atol=1e-3, rtol=1e-3)

    picture = np.asarray(Image.open(next((tmp_path / "shapes/images/val").iterdir())).convert("RGB"))
    assert YOLO(checkpoint).predict(picture, conf=0, verbose=False)[0].boxes is not None

    exec(EXPORT.replace("opset=20", "opset=20, imgsz=96"), recipe)
    (output,) = onnxruntime.InferenceSession(checkpoint.with_suffix(".onnx")).run(
        None, {"images": image.numpy()}
    )
    np.testing.assert_allclose(output, expected.numpy(), atol=1e-2, rtol=1e-3)


def test_where_is_required():
    from dcnzoo.ultralytics import DeformableTrainer

    with pytest.raises(ValueError, match="DeformableTrainer: where: expected a pattern"):
        DeformableTrainer.get_model(object.__new__(DeformableTrainer))
