"""The report: what logs say, what is drawn, and a page that needs nothing beside it."""

import itertools
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch

import dcnzoo.openmmlab.hooks

# isort: split
import dcnzoo.models  # noqa: F401  before mmdet, which needs mmcv.ops

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.openmmlab.hooks.offset_statistics import COLUMNS
from dcnzoo.report import Instances, page, trace_sampling
from dcnzoo.report.detector import Detector
from dcnzoo.report.history import History
from dcnzoo.report.plots import plot_learning_curves
from dcnzoo.report.report import (
    TrainedRun,
    load_detectors,
    locations,
    metric_name,
    render_runs,
    summary,
)
from dcnzoo.report.write import write_report
from dcnzoo.utils.errors import UserError

from .commands import error_of

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"


def write_log(folder, *starts):
    """Logs of one start after another; an entry is (iteration, epoch, loss) or (epoch, box AP)."""
    for number, entries in enumerate(starts):
        data = folder / f"2026_{number}" / "vis_data"
        data.mkdir(parents=True)
        lines = []
        for entry in entries:
            if len(entry) == 3:
                step, epoch, loss = entry
                lines.append({"loss": loss, "time": 0.25, "epoch": epoch, "iter": step, "step": step})
            else:
                metrics = {"coco/bbox_mAP": entry[1], "coco/bbox_mAP_l": -1.0, "time": 9.0}
                lines.append({**metrics, "step": entry[0]})
        (data / "scalars.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"loss": 1')


def test_history_of_a_resumed_run(tmp_path):
    """Killed in the third epoch, resumed after the first: what was done again replaces, the rest goes."""
    write_log(
        tmp_path,
        [(2, 1, 5.0), (4, 1, 4.0), (1, 0.1), (6, 2, 3.0), (8, 2, 2.5), (2, 0.2), (10, 3, 2.0)],
        [(6, 2, 3.5)],
    )
    history = History.read(tmp_path)
    assert {step: entry["loss"] for step, entry in history.training.items()} == {2: 5.0, 4: 4.0, 6: 3.5}
    assert history.validation == {1: {"coco/bbox_mAP": 0.1, "coco/bbox_mAP_l": -1.0}}
    assert history.iteration == 6


def test_history_passes_over_offsets(tmp_path):
    write_log(tmp_path, [(2, 1, 5.0)])
    log = tmp_path / "2026_0" / "vis_data" / "scalars.json"
    log.write_text(log.read_text().rpartition("\n")[0] + '\n{"offsets/mean_abs/a": 0.5, "step": 2}\n')
    assert History.read(tmp_path) == History({2: {**History.read(tmp_path).training[2]}}, {})
    assert History.read(tmp_path / "nowhere") == History({}, {})


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("coco/bbox_mAP", "box AP"),
        ("coco/segm_mAP_75", "mask AP75"),
        ("coco/bbox_mAP_s", "box AP, small"),
        ("pascal_voc/mAP", "pascal_voc/mAP"),
    ],
)
def test_metric_names(key, name):
    assert metric_name(key) == name


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, ShapesSpec(train=2, val=6))
    return folder


@pytest.fixture
def make_run(tmp_path, data):
    """A work directory as training leaves it, with random weights."""

    def make(name="run", logs=(((2, 1, 5.0), (4, 1, 4.0), (1, 0.125), (6, 2, 3.0), (2, 0.25)),), **settings):
        folder = tmp_path / name
        folder.mkdir()
        cfg = Config.fromfile(CONFIG)
        cfg.merge_from_dict({"val_dataloader.dataset.data_root": f"{data}/", **settings})
        cfg.val_dataloader.dataset.shapes = None
        cfg.dump(folder / "config.py")
        write_log(folder, *logs)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope("mmdet"):
            model = MODELS.build(cfg.model)
        for module in model.modules():
            if hasattr(module, "conv_offset"):
                torch.nn.init.normal_(module.conv_offset.weight, std=0.05)
        torch.save({"state_dict": model.state_dict(), "meta": {}}, folder / "epoch_2.pth")
        (folder / "last_checkpoint").write_text(f"/moved/since/{name}/epoch_2.pth")
        return folder

    return make


def svgs(html):
    return [ET.fromstring(svg) for svg in re.findall(r"<svg\b.*?</svg>", html, re.DOTALL)]


def assert_self_contained(html):
    assert not re.findall(r'(?:src|href)="(?!data:|#)|url\((?!#)', html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "an id occurs once"
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^")]+)\)', html))
    assert {a or b for a, b in used} <= set(ids)


def test_report_of_a_run(make_run):
    folder = make_run()
    log = folder / "2026_0" / "2026_0.log"
    log.write_text("x\nSystem environment:\n    GCC: none <5>\n" + "-" * 60 + "\nConfig:\n")
    rows = ["2,backbone.a,0.5,1,0,0.5,0,0", "2,backbone.b,0.25,1,0,,,", "4,backbone.a,0.75,1,0,0.5,0,0"]
    cut = "4,backbone.b,0."
    (folder / "offset_statistics.csv").write_text("\n".join([",".join(COLUMNS), *rows, cut]))
    out = write_report([folder])
    assert out == folder / "report.html" and not list(folder.glob(".*partial"))
    html = out.read_text(encoding="utf-8")
    assert_self_contained(html)
    assert len(html) < 2_000_000 and "<title>run</title>" in html
    assert "<dt>box AP</dt><dd>0.250</dd>" in html and "<dt>s / iteration</dt><dd>0.250</dd>" in html
    assert "<dt>parameters</dt><dd>581,891</dd>" in html and "<dt>iterations</dt><dd>6</dd>" in html
    assert "GCC: none &lt;5&gt;" in html and "<td>0.125</td><td>–</td>" in html
    assert "dcn=True" in html and "backbone.a" in html and "backbone.b" in html
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "Learning curves", "Detections", "Where it samples", "Offsets over the training",
        "Every validation", "Configuration", "Environment",
    ]  # fmt: skip
    assert all(svg.tag for svg in svgs(html)), "each is well-formed"
    assert html.count("<image ") == 5 and html.count('class="point"') == 2 * 3 * 81 + 2 * 9


def test_the_layers_that_end_largest_are_drawn(make_run):
    folder = make_run()
    rows = [",".join(COLUMNS), *(f"{i},layer{n},{abs(n - 4) + i},9,0,,," for i in (2, 4) for n in range(9))]
    (folder / "offset_statistics.csv").write_text("\n".join(rows) + "\n6,layer4,99")
    html = render_runs([TrainedRun.read(folder)], {})
    assert "the 6 of 9 layers that end largest" in html and "epoch_2.pth" not in html.partition("<nav>")[0]
    mean, _ = [svg for svg in svgs(html) if "layer0" in ET.tostring(svg, "unicode")]
    words = [each.text for each in mean.iter() if each.tag.endswith("text")]
    drawn = [word for word in words if word.startswith("layer")]
    assert drawn == ["layer0", "layer1", "layer2", "layer6", "layer7", "layer8"]


def test_runs_beside_each_other(make_run):
    start = [(2, 1, 5.0), (4, 1, 4.0)]
    folders = [make_run(f"v2-{i}", [[*start, (1, ap)]]) for i, ap in enumerate((0.2, 0.4))]
    off = make_run("off", [[*start, (1, 0.1)]], **{"model.backbone.dcn": None})
    (off / "last_checkpoint").unlink()
    runs = [TrainedRun.read(off), *(TrainedRun.read(folder, "v2") for folder in folders)]
    detectors = load_detectors(runs)
    assert list(detectors) == ["v2"]
    head, first, second = summary(runs, detectors, "arm")
    assert head == ["arm", "box AP", "s / iteration", "parameters"]
    assert first == ["off", "0.100", "0.250", "–"]
    assert second == ["v2", "0.300 ± 0.141", "0.250", "581,891"]
    html = render_runs(runs, detectors, images=1)
    assert "<td>0.300 ± 0.141</td>" in html and "+        dcn=True," in html
    assert "<summary>v2, v2-1</summary>" in html and "<h2>Where it samples</h2>" in html


def test_a_run_without_validation_or_data(make_run, tmp_path):
    folder = make_run(logs=[[(2, 1, 5.0)]], **{"val_dataloader.dataset.data_prefix.img": "nowhere/"})
    runs = [TrainedRun.read(folder)]
    html = render_runs(runs, {})
    assert "<h2>Learning curves</h2>" in html and "<h2>Every validation</h2>" not in html
    assert summary(runs, {}) == [["run", "s / iteration", "parameters"], ["run", "0.250", "–"]]
    with pytest.raises(UserError, match=r"expected the images of .*, found none there"):
        load_detectors(runs)


def test_pictures_of_resized_and_padded_images(make_run, data):
    """What is drawn lies in the pixels of the file, whatever the model saw."""
    plain = Detector(Config.fromfile(make_run("plain") / "config.py"), make_run("again") / "epoch_2.pth")
    folder = make_run("large")
    cfg = Config.fromfile(folder / "config.py")
    resize = dict(type="Resize", scale=(192, 320), keep_ratio=False)  # ×1.5 wide, ×2.5 high
    cfg.val_dataloader.dataset.pipeline[1] = resize
    cfg.model.data_preprocessor.pad_size_divisor = 224
    detector = Detector(cfg, folder / "epoch_2.pth")
    small, large = plain.predict(1), detector.predict(1)
    assert small.image_size == (128, 128) and large.image_size == pytest.approx((448 / 2.5, 224 / 1.5))
    assert np.array_equal(small.image, large.image) and np.array_equal(small.truth.boxes, large.truth.boxes)
    assert small.truth.masks.shape == large.truth.masks.shape == (len(small.truth.labels), 128, 128)
    file = json.loads((data / "annotations" / "val.json").read_text())
    boxes = [a["bbox"] for a in file["annotations"] if a["image_id"] == file["images"][1]["id"]]
    assert small.truth.boxes[:, :2] == pytest.approx(np.array(boxes)[:, :2])
    assert large.detections.boxes.max() <= 128 and large.detections.masks.shape[1:] == (128, 128)
    assert list(large.statistics) == [field.name for field in large.fields]
    # without offsets the nine points of a layer lie around the place, a pixel of its map apart
    (field, *_) = large.fields
    points, _ = trace_sampling([field.without_offset()], (64.0, 32.0), large.image_size)
    apart = 448 / 2.5 / field.input_size[0], 224 / 1.5 / field.input_size[1]
    assert np.ptp(points[:, 0]) == pytest.approx(2 * apart[0]) and np.ptp(points[:, 1]) == pytest.approx(
        2 * apart[1]
    )
    assert (points.mean(0) - torch.tensor([64.0, 32.0])).abs().max() <= max(apart)


def test_places_of_boxes():
    boxes = np.array([[0.0, 0, 20, 10], [30, 12, 34, 16], [50, 0, 50, 9]])
    places = locations(Instances(boxes, np.array([1, 0, 0])), (20, 60), ("a", "b"))
    assert list(places) == ["b, the largest", "a, the smallest", "background"]
    y, x = places["b, the largest"]
    assert 4 <= y <= 5 and 4 <= x <= 15
    y, x = places["a, the smallest"]
    assert 12 < y < 16 and 30 < x < 34
    assert locations(Instances(np.zeros((0, 4)), np.zeros(0, int)), (5, 8), ()).keys() == {"background"}
    assert "background" not in locations(Instances(np.array([[0, 0, 8, 5]]), np.array([0])), (5, 8), ("a",))


def drawn(html):
    return {
        (one.find("{*}title") if one.find("{*}title") is not None else one.find("title")).text: one
        for svg in svgs(html)
        for one in svg.iter("g")
    }


def test_instances_are_drawn_where_they_are():
    picture = page.Picture(np.zeros((40, 60, 3), np.uint8))
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:15, 10:30] = True
    masks[0, 8:12, 15:20] = False  # a hole
    boxes = np.array([[10.0, 5, 30, 15], [53, 2, 59, 9]])
    found = Instances(boxes, np.array([0, 1]), masks, np.array([0.25, 0.75]))
    groups = drawn(page.instances(picture, found, ("a<", "b"), [(1, 2, 3), (4, 5, 6)]))
    assert list(groups) == ["a< 0.25", "b 0.75"] and groups["b 0.75"].get("data-score") == "0.7500"
    rect = groups["a< 0.25"].find("rect").attrib
    assert [float(rect[k]) for k in ("x", "y", "width", "height")] == [10, 5, 20, 10]
    assert groups["a< 0.25"].get("style") == "color: rgb(1, 2, 3)"
    paths = groups["a< 0.25"].find("path").get("d").split("Z")[:-1]
    corners = [np.array([p.split() for p in path[1:].split("L")], float) for path in paths]
    assert sorted((c.min(0).tolist(), c.max(0).tolist()) for c in corners) == [
        ([10.5, 5.5], [29.5, 14.5]),
        ([14.5, 7.5], [20.5, 12.5]),
    ]
    assert groups["b 0.75"].find("path") is None, "an empty mask has no outline"
    assert groups["b 0.75"].find("text").get("text-anchor") == "end", "there is no room to its right"


def test_points_are_drawn_where_they_are():
    picture = page.Picture(np.zeros((40, 60, 3), np.uint8))
    svg = page.sampling_points(picture, np.array([[3.0, 7.25], [-2, 70]]), np.array([0.5, -1.0]), (9, 20))
    circles = [c.attrib for c in ET.fromstring(svg.strip()).iter("circle")]
    assert [(c["cx"], c["cy"], c["fill-opacity"]) for c in circles] == [
        ("7.75", "3.50", "0.57"),
        ("70.50", "-1.50", "1.00"),
    ]


def test_large_images_are_made_smaller():
    noise = np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8)
    picture = page.Picture(noise)
    assert (picture.height, picture.width) == (900, 1600) and picture.uri.startswith("data:image/jpeg")
    assert len(picture.uri) < 500_000
    assert page.Picture(noise[:100, :100]).uri.startswith("data:image/png")


def test_charts_take_the_pages_colours():
    curves = {arm: (np.arange(3), np.random.default_rng(0).random((2, 3))) for arm in ("off", "v2 <b>")}
    html = page.charts([plot_learning_curves({"AP": curves}), plot_learning_curves({"loss": curves})])
    assert "var(--series-1)" in html and "var(--muted)" in html and "#0072b2" not in html.lower()
    assert_self_contained(html)
    for svg in svgs(html):
        assert "width" not in svg.attrib and "height" not in svg.attrib
        words = [text.text for text in svg.iter() if text.tag.endswith("text")]
        assert "v2 <b>" in words and "iteration" in words, "text is text"


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_browser_hides_what_scores_less(tmp_path):
    picture = page.Picture(np.zeros((40, 60, 3), np.uint8))
    boxes = np.tile([5.0, 5, 20, 20], (3, 1))
    found = Instances(boxes, np.zeros(3, int), None, np.array([0.49, 0.5, 0.9]))
    truth = Instances(boxes[:1], np.zeros(1, int))
    parts = [page.slider(0.5), page.image(picture)]
    parts += [page.instances(picture, each, ["a"], [(255, 0, 0)]) for each in (truth, found)]
    file = tmp_path / "report.html"
    file.write_text(page.render_report("title", "lead", [page.Section("one", "", parts)]), encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=1000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    groups = re.findall(r'<g class="instance"([^>]*)>', done.stdout)
    shown = [re.findall(r'visibility="(\w+)"', group) for group in groups]
    assert shown == [[], ["hidden"], ["visible"], ["visible"]], done.stderr[-500:]
    assert "<output>0.50</output>" in done.stdout


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_names_have_one_size_and_do_not_cover_each_other(tmp_path):
    """On the screen, in images of unlike sizes and shapes; both columns together fill the window."""
    parts, cells = [page.slider(0.5)], []
    for height, width in ((480, 640), (700, 300), (64, 64)):
        picture = page.Picture(np.zeros((height, width, 3), np.uint8))
        boxes = np.tile([0.2, 0.2, 0.9, 0.6], (5, 1)) * [width, height, width, height]
        found = Instances(boxes, np.zeros(5, int), None, np.linspace(0.6, 0.9, 5))
        parts.append(page.image(picture))
        cells += [("", page.instances(picture, found, ["name"], [(255, 0, 0)]))] * 2
    parts.append(page.grid(2, cells))
    html = page.render_report("title", "lead", [page.Section("one", "", parts)])
    script = """<script>
      const rows = [...document.querySelectorAll("svg.instances")].map(svg => {
        const r = svg.getBoundingClientRect();
        return [r.left, r.right, [...svg.querySelectorAll("text")].map(text => {
          const t = text.getBoundingClientRect(); return [t.left, t.top, t.right, t.bottom]; })]; });
      document.body.append(Object.assign(document.createElement("pre"),
        {id: "measured", textContent: JSON.stringify(rows)}));
    </script></body>"""
    file = tmp_path / "report.html"
    file.write_text(html.replace("</body>", script), encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1280,2000", "--virtual-time-budget=1000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    rows = json.loads(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout)[1])
    assert max(right for _, right, _ in rows) - min(left for left, _, _ in rows) > 0.9 * 1280
    heights = [bottom - top for _, _, names in rows for _, top, _, bottom in names]
    assert len(heights) == 30 and min(heights) > 8 and max(heights) < 1.1 * min(heights)
    for _, _, names in rows:
        for a, b in itertools.combinations(names, 2):
            across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            assert across <= 1 or down <= 0.3 * heights[0], "glyphs are lower than their line"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "work directory: expected a folder, found none at nowhere"),
        (["."], "work directory: expected one of tools/train.py, found no config in ."),
    ],
)
def test_mistakes_get_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of("report", *arguments) == f"error: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([".", "--num-images", "-1"], "'--num-images': -1"),
        ([".", "--labels", "a", "b"], "--labels: expected 1, one per WORK_DIR, got 2"),
        ([".", ".", "--checkpoint", "x"], "--checkpoint: expected a single WORK_DIR with it, got 2"),
    ],
)
def test_wrong_options(arguments, message):
    assert message in error_of("report", *arguments, status=2)


def test_missing_checkpoint(make_run):
    folder = make_run()
    (folder / "epoch_2.pth").unlink()
    with pytest.raises(UserError, match=r"checkpoint: expected a file, found none at .*epoch_2\.pth"):
        write_report([folder])
