"""The flops, speed and logs commands, compared with values computed by hand."""

import hashlib
import json
import re
import statistics
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo.ops.flops  # noqa: F401
from dcnzoo.layers import DCNv3, DCNv4, DeformConv2d
from dcnzoo.openmmlab.hooks.offset_statistics import COLUMNS, read_statistics
from dcnzoo.openmmlab.weights import read_checkpoint
from dcnzoo.report.history import curve
from dcnzoo.report.plots import OFFSET_FIGURES, plot_offset_statistics
from dcnzoo.zoo import verify

from .commands import error_of, run

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"
PLAIN = ROOT / "configs/demo/mask-rcnn_r14_fpn_8e_shapes.py"


# Operations


@pytest.mark.parametrize("with_offset", [True, False])
def test_flops_of_a_deformable_convolution(with_offset):
    """Worked out by hand: batch 2, 6 → 8 channels in 2 groups, 3×2 taps, 9×7 → 5×8 positions."""
    layer = DeformConv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 1), groups=2, bias=False)
    x, offset = torch.rand(2, 6, 9, 7), torch.zeros(2, 12, 5, 8)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        assert layer(x, offset).shape == (2, 8, 5, 8)
    positions = 2 * 5 * 8
    products = positions * 8 * 3 * 6  # 8 outputs, each from 3 channels at 6 taps
    samples = positions * 6 * 6 * 4  # 6 channels at 6 taps, each from 4 pixels
    assert counter.get_total_flops() == 2 * (products + samples)


@pytest.mark.parametrize(("layer", "predicted"), [(DCNv3, 27 * 2), (DCNv4, 56)])
def test_flops_of_deform_attn(layer, predicted):
    """By hand: 4 pixels and the mask per channel and tap; the rest are linear and depthwise layers."""
    layer = layer(32, group=2)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        layer(torch.rand(2, 7, 5, 32))
    depthwise = 9 * 32 if isinstance(layer, DCNv3) else 0
    products = 32 * 32 + 32 * predicted + 32 * 9 * (4 + 1) + 32 * 32 + depthwise
    assert counter.get_total_flops() == 2 * (2 * 7 * 5) * products


def flops(text):
    return {
        name: float(value) for name, value in re.findall(r"^ *([\w.]+): ([\d.]+) [GM]$", text, re.MULTILINE)
    }


def test_flops():
    """The figures by operator add up to the total; only the deformable model has deform_conv."""
    shape = ("--shape", "128", "--by-operator")
    plain = flops(run("flops", PLAIN, *shape))
    deformable = flops(run("flops", DEMO, *shape))
    assert "dcnzoo.deform_conv" in deformable and "dcnzoo.deform_conv" not in plain
    assert deformable["Params"] == pytest.approx(585_806 / 1e6, abs=0.005)
    assert plain["Params"] == pytest.approx(558_509 / 1e6, abs=0.005)
    parts = sum(value for name, value in plain.items() if name.startswith("aten"))
    assert plain["Flops"] == pytest.approx(parts, abs=0.01)


def test_flops_take_the_size_of_the_test_pipeline():
    """Without --shape, the test pipeline's size applies, padded to a multiple of 32."""
    text = run("flops", PLAIN, "--cfg-options", "test_dataloader.dataset.pipeline.1.scale=(150,90)")
    assert "Input shape: (96, 160)" in text


def test_flops_of_cascade_masks():
    """Three mask heads cost three times the one of Mask R-CNN, for 100 proposals each."""
    # without suppression, so that each detector has the same number of proposals
    size = ["--shape", 64, 96, "--cfg-options", "model.test_cfg.rpn.nms.iou_threshold=1"]
    counted = {
        name: flops(run("flops", f"configs/dcn/{name}_r50-dconv-c3-c5_fpn_1x_coco.py", *size))
        for name in ("faster-rcnn", "mask-rcnn", "cascade-rcnn", "cascade-mask-rcnn")
    }
    faster, mask, cascade, cascade_mask = (each["Flops"] for each in counted.values())
    assert mask - faster > 10
    assert cascade_mask - cascade == pytest.approx(3 * (mask - faster), abs=0.05)


# Images per second


def test_speed():
    options = ["--max-iter", 4, "--num-warmup", 1, "--log-interval", 2, "--repeat-num", 2, "--device", "cpu"]
    text = run("speed", DEMO, "--shape", 64, 96, "--fuse-conv-bn", *options)
    lines = text.splitlines()[-6:]
    said = [line.split(":")[0] for line in lines]
    assert said == ["2 of 4", "4 of 4", "run 1 of 2", "2 of 4", "4 of 4", "run 2 of 2"]
    assert re.search(r": \d+\.?\d* images/s, median [\d.]+ ms/image, 64×96, ", lines[-1])


# Logs


MASKS = {"v1": ",,", "v2": "0.5,0,0.1"}


@pytest.fixture
def work_dir(tmp_path):
    """Logs of two epochs of three iterations, interrupted and resumed in the second."""
    logs = [
        [(1, 1, 4.0, 9.0), (2, 1, 3.0, 0.2), (3, 1, 2.0, 0.4), ("val", 1, 0.1), (4, 2, 50.0, 8.0)],
        [(4, 2, 1.5, 7.0), (5, 2, 1.2, 0.5), (6, 2, 1.0, 0.7), ("val", 2, 0.25)],
    ]
    for number, log in enumerate(logs):
        folder = tmp_path / "run" / f"2026_{number}" / "vis_data"
        folder.mkdir(parents=True)
        lines = []
        for entry in log:
            if entry[0] == "val":
                lines.append({"coco/bbox_mAP": entry[2], "data_time": 0.1, "time": 5.0, "step": entry[1]})
            else:
                step, epoch, loss, time = entry
                lines.append({"loss": loss, "time": time, "epoch": epoch, "iter": step, "step": step})
        text = "\n".join(map(json.dumps, lines)) + '\n{"loss": 0.'
        (folder / "scalars.json").write_text(text)
    return tmp_path / "run"


def test_curves(work_dir):
    assert curve(work_dir, "loss") == ([1, 2, 3, 4, 5, 6], [4.0, 3.0, 2.0, 1.5, 1.2, 1.0])
    assert curve(work_dir, "bbox_mAP") == curve(work_dir, "coco/bbox_mAP") == ([1, 2], [0.1, 0.25])
    first = work_dir / "2026_0" / "vis_data" / "scalars.json"
    assert curve(first, "loss")[1][-1] == 50.0


def test_figures_of_offsets_replace_no_results(work_dir):
    """OffsetStatisticsHook counts iterations and validation may count epochs, so that steps can be equal."""
    log = work_dir / "2026_1" / "vis_data" / "scalars.json"
    offsets = {f"offsets/mean_abs/layer{i}": i / 2 for i in (1, 2)}
    log.write_text("\n".join([json.dumps({**offsets, "step": 2}), log.read_text()]))
    assert curve(work_dir, "bbox_mAP") == ([1, 2], [0.1, 0.25])
    assert curve(work_dir, "offsets/mean_abs/layer2") == ([2], [1.0])


def test_plot_offsets(tmp_path):
    out = tmp_path / "new" / "offsets.png"
    message = error_of("logs", "plot_offsets", tmp_path)
    assert "offset_statistics.csv: expected a file, found none" in message
    file = tmp_path / "offset_statistics.csv"
    file.write_text(",".join(COLUMNS) + "\n")
    assert "expected rows of OffsetStatisticsHook" in error_of("logs", "plot_offsets", tmp_path)
    lines = [f"{i},{layer},{i / 10},{i},0.25,{mask}" for i in (50, 100) for layer, mask in MASKS.items()]
    file.write_text("\n".join([",".join(COLUMNS), *lines, ""]))
    assert run("logs", "plot_offsets", tmp_path, "--out", out).strip() == str(out)
    assert cv2.imread(str(out)).shape[0] > 300
    figure = plot_offset_statistics(read_statistics(file))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == list(OFFSET_FIGURES.values())
    assert [line.get_xydata().tolist() for line in panels["mean |offset| [pixels]"].lines] == [
        [[50, 5], [100, 10]]
    ] * 2
    (line,) = [line for line in panels["mean modulation"].lines if len(line.get_xdata())]
    assert line.get_label() == "v2" and line.get_ydata().tolist() == [0.5, 0.5]
    file.write_text("\n".join([",".join(COLUMNS), *(line for line in lines if ",v1," in line), ""]))
    assert len(plot_offset_statistics(read_statistics(file)).axes) == 3  # no layer has a mask


def test_plot_curve(work_dir, tmp_path):
    out = tmp_path / "new" / "curves.png"
    printed = run("logs", "plot_curve", work_dir, "--keys", "loss", "bbox_mAP", "--out", out)
    assert printed.strip() == str(out)
    image = cv2.imread(str(out))
    assert image.shape[0] > 300 and len(np.unique(image.reshape(-1, 3), axis=0)) > 10


def test_cal_train_time(work_dir):
    text = run("logs", "cal_train_time", work_dir)
    # without each epoch's first entry: 0.2, 0.4 and 0.5, 0.7
    assert "slowest epoch 2: 0.6000" in text and "fastest epoch 1: 0.3000" in text
    assert f"mean over epochs: {statistics.mean([0.3, 0.6]):.4f}" in text
    assert "standard deviation over epochs: 0.1500" in text
    text = run("logs", "cal_train_time", work_dir, "--include-outliers")
    assert "slowest epoch 1: 3.2000" in text


# Publishing


def test_publish_model(tmp_path):
    weights = {"w": torch.arange(5.0)}
    content = {"state_dict": weights, "meta": {"epoch": 3}, "optimizer": {"lr": 1.0}, "message_hub": {}}
    torch.save(content, tmp_path / "epoch_3.pth")
    printed = run("zoo", "publish", tmp_path / "epoch_3.pth", tmp_path / "out" / "net.pth")
    said, path = printed.splitlines()
    assert said == "removed: message_hub, optimizer"
    digits = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert path == f"{tmp_path}/out/net-{digits[:8]}.pth" and verify(path) == f"sha256:{digits}"
    assert [p.name for p in (tmp_path / "out").iterdir()] == [Path(path).name]
    assert set(torch.load(path)) == {"meta", "state_dict"}
    found = read_checkpoint(path)
    assert torch.equal(found["state_dict"]["w"], weights["w"]) and found["meta"] == {"epoch": 3}
    kept = run(
        "zoo", "publish", tmp_path / "epoch_3.pth", tmp_path / "x", "--save-keys", "state_dict", "meta"
    )
    assert set(torch.load(kept.split()[-1])) == {"meta", "state_dict"}
    again = run("zoo", "publish", tmp_path / "epoch_3.pth", tmp_path / "other")
    assert Path(again.splitlines()[1]).name == f"other-{digits[:8]}.pth", "the name is not in the content"
    said, path = run("zoo", "publish", tmp_path / "epoch_3.pth", tmp_path / "net.safetensors").splitlines()
    assert said == "removed: message_hub, meta, optimizer" and path.endswith(".safetensors") and verify(path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], weights["w"])


MISTAKES = [
    (2, ["flops", DEMO, "--shape", 1, 2, 3], "--shape"),
    (2, ["flops", DEMO, "--shape", -1], "--shape"),
    (2, ["flops", DEMO, "--num-images", 0], "--num-images"),
    (1, ["flops", "nowhere.py"], "nowhere.py"),
    (2, ["speed", DEMO, "--max-iter", 0], "--max-iter"),
    (1, ["speed", DEMO, "--checkpoint", "nowhere.pth"], "checkpoint: .*nowhere.pth"),
    (1, ["logs", "plot_curve", "RUN", "--keys", "segm_mAP"], "--keys: .*coco/bbox_mAP"),
    (1, ["logs", "plot_curve", "RUN", "--keys", "loss", "--legend", "a", "b"], "--legend: .*got 2"),
    (1, ["logs", "cal_train_time", "nowhere.json"], "nowhere.json"),
    (1, ["logs", "cal_train_time", "EMPTY"], "no entries"),
    (1, ["zoo", "publish", "FILE", "out", "--save-keys", "meta"], "--save-keys"),
]


@pytest.mark.parametrize(("status", "arguments", "named"), MISTAKES)
def test_mistakes(work_dir, tmp_path, status, arguments, named):
    torch.save({"state_dict": {}, "meta": {}}, tmp_path / "in.pth")
    (tmp_path / "empty").mkdir()
    places = {"RUN": work_dir, "EMPTY": tmp_path / "empty", "FILE": tmp_path / "in.pth"}
    message = error_of(*(places.get(word, word) for word in arguments), status=status)
    assert re.search(named, message), message
