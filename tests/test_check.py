"""``dcnzoo data check``, ``--fix`` and ``split``: each problem by itself, put into a file without any."""

import json
import math
import random

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import dcnzoo.openmmlab.datasets  # noqa: F401
from dcnzoo.cli import commands
from dcnzoo.data.check import KINDS, check_coco, fix
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.data.split import split_coco
from dcnzoo.utils.errors import UserError


def good():
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 10:30] = 1  # 20 × 10
    rle = coco_mask.encode(np.asfortranarray(mask))
    rle = {"size": [30, 40], "counts": rle["counts"].decode()}
    images = [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 5, "file_name": "deep/b.png", "width": 20, "height": 50},
        {"id": 7, "file_name": "c.png", "width": 40, "height": 30},
    ]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 3, 10, 20], "area": 150, "iscrowd": 0,
         "segmentation": [[2, 3, 12, 3, 12, 23, 2, 13]]},
        {"id": 2, "image_id": 1, "category_id": 9, "bbox": [10, 5, 20, 10], "area": 200, "iscrowd": 1,
         "segmentation": rle},
        {"id": 3, "image_id": 5, "category_id": 3, "bbox": [0, 0, 20, 50], "area": 1000, "iscrowd": 0},
    ]  # fmt: skip
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "fig"}, {"id": 9, "name": "date"}],
    }


@pytest.fixture
def root(tmp_path):
    for image in good()["images"]:
        file = tmp_path / "images" / image["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (image["width"], image["height"])).save(file)
    return tmp_path


def check(root, change=lambda content: None, **arguments):
    content = good()
    changed = change(content)
    file = root / "coco.json"
    file.write_text(changed if isinstance(changed, str) else json.dumps(content))
    return check_coco(file, root / "images", **arguments)


def test_a_good_file(root):
    report = check(root, classes=["fig", "date"])
    assert report.problems == []
    assert report.counts == {"images": 3, "annotations": 3, "categories": 2}
    assert report.per_class == {"fig": 2, "date": 1} and report.empty_images == 1


def test_generated_data_has_no_problems(tmp_path):
    """Polygons whose areas and boxes another program computed."""
    make_shapes(tmp_path / "shapes", ShapesSpec(train=4, val=2, size=96, max_radius=40))
    file = tmp_path / "shapes/annotations/train.json"
    report = check_coco(file, tmp_path / "shapes/train", ("oval", "trefoil", "cross"))
    assert report.problems == [] and report.counts["annotations"] > 4


def image(index, **values):
    return lambda content: content["images"][index].update(values)


def annotation(index, **values):
    return lambda content: content["annotations"][index].update(values)


def category(index, **values):
    return lambda content: content["categories"][index].update(values)


def without(part, index, key):
    return lambda content: content[part][index].pop(key) and None


def rle(**values):
    return lambda content: content["annotations"][1]["segmentation"].update(values)


def empty(*keys):
    return lambda content: content.update({key: [] for key in keys})


POLYGON = [2, 3, 12, 3, 12, 23, 2, 13]
CASES = {
    "no JSON": (lambda content: "{", "file", "line 1", ""),
    "a list": (
        lambda content: "[1]",
        "file",
        "file",
        "",
    ),
    "no lists": (lambda content: '{"images": {}}', "file", "images", ""),
    "no images": (empty("images", "annotations"), "empty", "images", ""),
    "no annotations": (empty("annotations"), "empty", "annotations", ""),
    "no categories": (empty("annotations", "categories"), "empty", "annotations", ""),
    "image without id": (without("images", 2, "id"), "image-entry", "images[2]", "id"),
    "image with a text as id": (image(2, id="7"), "image-entry", "images[2]", "id"),
    "image without name": (without("images", 2, "file_name"), "image-entry", "image 7", "file_name"),
    "image without size": (
        image(2, width=0),
        "image-entry",
        "image 7",
        "width",
    ),
    "category without id": (
        lambda content: content["categories"].append({"name": "hazelnut"}),
        "category-entry",
        "categories[2]",
        "id",
    ),
    "category without name": (category(1, name=""), "category-entry", "categories[1]", "name"),
    "two images of one id": (image(2, id=1), "duplicate-image-id", "image 1", "id"),
    "two images of one file": (
        image(2, file_name="a.png"),
        "duplicate-file-name",
        "image 7",
        "file_name",
    ),
    "two categories of one id": (
        lambda content: content["categories"].append({"id": 3, "name": "hazelnut"}),
        "duplicate-category-id",
        "categories[2]",
        "id",
    ),
    "two categories of one name": (
        category(1, name="fig"),
        "duplicate-category",
        "categories[1]",
        "name",
    ),
    "two annotations of one id": (
        annotation(2, id=1),
        "duplicate-annotation-id",
        "annotation 1",
        "id",
    ),
    "annotation without id": (
        annotation(2, id=None),
        "duplicate-annotation-id",
        "annotations[2]",
        "id",
    ),
    "annotation 0": (annotation(2, id=0), "annotation-id-0", "annotation 0", "id"),
    "image that is missing": (
        image(2, file_name="d.png"),
        "missing-image",
        "image 7",
        "file_name",
    ),
    "image of another size": (
        image(2, height=31),
        "image-size",
        "image 7",
        "width, height",
    ),
    "image that is turned": (
        image(2, width=30, height=40),
        "image-size",
        "image 7",
        "width, height",
    ),
    "unknown image": (
        annotation(2, image_id=2),
        "unknown-image",
        "annotation 3",
        "image_id",
    ),
    "image_id as a text": (annotation(2, image_id="5"), "annotation-entry", "annotation 3", "image_id"),
    "unknown category": (
        annotation(2, category_id=1),
        "unknown-category",
        "annotation 3",
        "category_id",
    ),
    "no category": (
        without("annotations", 2, "category_id"),
        "annotation-entry",
        "annotation 3",
        "category_id",
    ),
    "no annotation": (
        lambda content: content["annotations"].append("fig"),
        "annotation-entry",
        "annotations[3]",
        "",
    ),
    "no box": (
        without("annotations", 2, "bbox"),
        "box",
        "annotation 3",
        "bbox",
    ),
    "box of three": (annotation(2, bbox=[1, 2, 3]), "box", "annotation 3", "bbox"),
    "box with NaN": (annotation(2, bbox=[1, 2, math.nan, 3]), "box", "annotation 3", "bbox"),
    "box with a huge integer": (annotation(2, bbox=[1, 2, 10**400, 3]), "box", "annotation 3", "bbox"),
    "box with a text": (annotation(2, bbox=[1, 2, "3", 4]), "box", "annotation 3", "bbox"),
    "box without an area": (
        annotation(2, bbox=[1, 2, 0, 4]),
        "box",
        "annotation 3",
        "bbox",
    ),
    "box inside out": (annotation(2, bbox=[9, 2, -4, 4]), "box", "annotation 3", "bbox"),
    "box that reaches out": (
        annotation(2, bbox=[5, 10, 16.5, 20], area=330),
        "box-outside",
        "annotation 3",
        "bbox",
    ),
    "box beside the image": (
        annotation(2, bbox=[25, 10, 5, 20], area=100),
        "box",
        "annotation 3",
        "bbox",
    ),
    "polygon of two points": (
        annotation(0, segmentation=[[2, 3, 12, 23]]),
        "polygon",
        "annotation 1",
        "segmentation",
    ),
    "polygon of odd length": (
        annotation(0, segmentation=[[*POLYGON, 2]]),
        "polygon",
        "annotation 1",
        "segmentation",
    ),
    "polygon with NaN": (
        annotation(0, segmentation=[[*POLYGON, 2, math.nan]]),
        "segmentation",
        "annotation 1",
        "segmentation",
    ),
    "polygon of pairs": (
        annotation(0, segmentation=[[[2, 3], [12, 3], [12, 23]]]),
        "segmentation",
        "annotation 1",
        "segmentation",
    ),
    "polygon without an area": (
        annotation(0, segmentation=[POLYGON, [1, 1, 2, 2, 3, 3]]),
        "polygon",
        "annotation 1",
        "segmentation",
    ),
    "polygon outside": (
        annotation(0, segmentation=[[2, 3, 12, 3, 12, 23, -1.5, 13]], bbox=[0, 3, 12, 20], area=185),
        "polygon-outside",
        "annotation 1",
        "segmentation",
    ),
    "a text as mask": (
        annotation(0, segmentation="fig"),
        "segmentation",
        "annotation 1",
        "segmentation",
    ),
    "RLE without size": (rle(size=None), "rle", "annotation 2", "segmentation"),
    "RLE of another size": (
        rle(size=[40, 30]),
        "rle",
        "annotation 2",
        "segmentation",
    ),
    "RLE without counts": (rle(counts=None), "rle", "annotation 2", "segmentation"),
    "RLE with a negative count": (rle(counts=[5, -5, 1200]), "rle", "annotation 2", "segmentation"),
    "RLE of too few pixels": (
        rle(counts=[100, 50]),
        "rle",
        "annotation 2",
        "segmentation",
    ),
    "RLE that is empty": (rle(counts=[1200]), "rle", "annotation 2", "segmentation"),
    "RLE that is text": (
        rle(counts="0ö"),
        "rle",
        "annotation 2",
        "segmentation",
    ),
    "RLE that is cut": (
        rle(counts="0o"),
        "rle",
        "annotation 2",
        "segmentation",
    ),
    "box of another mask": (
        annotation(0, bbox=[20, 3, 10, 20]),
        "box-of-mask",
        "annotation 1",
        "bbox",
    ),
    "no area": (without("annotations", 0, "area"), "area", "annotation 1", "area"),
    "area of zero": (annotation(2, area=0), "area", "annotation 3", "area"),
    "area of something else": (
        annotation(0, area=250),
        "area",
        "annotation 1",
        "area",
    ),
    "area of another RLE": (annotation(1, area=20), "area", "annotation 2", "area"),
    "area beyond the box": (annotation(2, area=1200), "area", "annotation 3", "area"),
    "iscrowd of 2": (annotation(2, iscrowd=2), "iscrowd", "annotation 3", "iscrowd"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_problem(root, case):
    change, kind, where, field = CASES[case]
    report = check(root, change)
    first = report.problems[0]
    assert (first.kind, first.where) == (kind, where)
    assert first.text.startswith(f"{field}: expected " if field else "expected ")
    # nothing else is wrong, but for what follows from it
    assert len(report.problems) == 1 or case in (
        "no images",
        "no categories",
        "two images of one id",
        "image that is turned",
        "image with a text as id",
    )
    assert json.loads(json.dumps(report.as_dict()))["problems"][0] == {
        "kind": kind,
        "where": where,
        "text": first.text,
    }


def test_every_kind_of_problem_is_tested():
    others = {"classes", "unreadable-image"}
    assert {kind for _, kind, *_ in CASES.values()} | others == set(KINDS)


def test_classes(root):
    (problem,) = check(root, classes=["fig", "date", "hazelnut"]).problems
    assert problem.text == "expected the classes fig, date, hazelnut, missing hazelnut, got fig, date"
    (problem,) = check(root, classes=["date", "fig"]).problems
    assert problem.text == "expected the order of the classes, date, fig, got fig, date"
    assert check(root, classes=["date"]).problems == [], "a part of them is a way to train on less"


def test_files(root):
    (root / "images/c.png").write_bytes(b"text")
    (problem,) = check(root).problems
    assert problem.kind == "unreadable-image" and problem.where == "image 7"
    assert check_coco(root / "coco.json").problems == [], "without the folder, files are not looked at"
    with pytest.raises(UserError, match="file: expected a COCO file, found none at"):
        check_coco(root / "none.json")
    with pytest.raises(UserError, match="images: expected a folder, found none at"):
        check_coco(root / "coco.json", root / "none")
    (root / "latin.json").write_bytes(b'{"images": "gr\xf6\xdfer"}')
    (problem,) = check_coco(root / "latin.json").problems
    assert problem.text == "expected text in UTF-8, got byte 0xf6"


def test_a_pixel_is_no_problem(root):
    def change(content):
        content["annotations"][2]["bbox"] = [-0.5, 0, 20.9, 50.4]
        content["annotations"][0]["segmentation"] = [[2, 3, 12.4, 2.6, 12, 23, 2, 13]]
        content["annotations"][0]["area"] = 170

    assert check(root, change).problems == []


# --fix


@pytest.mark.parametrize("case", CASES)
def test_what_can_be_fixed_is(root, case):
    change, kind, *_ = CASES[case]
    report = check(root, change)
    out = root / "fixed.json"
    if any(KINDS[problem.kind][1] is None for problem in report.problems):
        with pytest.raises(UserError, match=r"expected only what --fix can mend, got"):
            fix(report, out)
        assert not out.exists()
        return
    done = fix(report, out)
    assert check_coco(out, root / "images").problems == []
    assert {what for counts in done.values() for what in counts} <= {KINDS[kind][1], "dropped"}
    if KINDS[kind][1] != "dropped":
        assert len(json.loads(out.read_text())["annotations"]) == 3


def test_fix_by_hand(root):
    def change(content):
        content["annotations"][0].update(
            bbox=[34, 3, 10, 20], segmentation=[[34, 5, 44, 10, 34, 15], [34, 20, 39, 20, 39, 23]], area=57
        )
        content["annotations"][1]["area"] = 1
        content["annotations"][2]["id"] = 1
        content["annotations"] += [{**content["annotations"][2], "id": 9, "image_id": 7}]
        content["images"][2]["file_name"] = "gone.png"

    done = fix(check(root, change), root / "fixed.json")
    assert {key: dict(counts) for key, counts in done.items()} == {
        "images": {"dropped": 1},
        "annotations": {"clipped": 1, "computed": 1, "numbered anew": 1, "dropped": 1},
    }
    first, second, third = json.loads((root / "fixed.json").read_text())["annotations"]
    # the triangle's tip is 4 pixels out; worked out in test_conversion.py
    assert first["bbox"] == [34, 3, 6, 20] and first["area"] == 42 + 7.5
    assert COCO(root / "fixed.json").annToMask(first)[:, 39].sum() in (4, 5)
    assert second["area"] == 200 and [first["id"], second["id"], third["id"]] == [1, 2, 3]


def test_fix_of_nothing_left(root):
    def change(content):
        for entry in content["annotations"]:
            entry["bbox"] = [1, 1, 0, 0]

    with pytest.raises(
        UserError, match="annotations: expected at least 1 without a problem, got 0; nothing is"
    ):
        fix(check(root, change), root / "fixed.json")
    assert not (root / "fixed.json").exists()


VALUES = (None, 0, -1, 1.5, 10**30, math.inf, math.nan, "", "a", True, [], [[]], {}, [1], {"counts": "0"})


@pytest.mark.parametrize("seed", range(4))
def test_any_value_anywhere_is_a_problem_never_a_traceback(root, seed):
    generator = random.Random(seed)

    def places(node):
        for key in range(len(node)) if isinstance(node, list) else list(node):
            yield node, key
            if isinstance(node[key], list | dict):
                yield from places(node[key])

    for _ in range(150):
        content = good()
        for _ in range(generator.randint(1, 3)):
            node, key = generator.choice(list(places(content)))
            node[key] = generator.choice(VALUES)
        report = check(root, lambda _, content=content: json.dumps(content))
        json.dumps(report.as_dict())
        try:
            fix(report, root / "fixed.json")
        except UserError:
            continue
        assert check_coco(root / "fixed.json", root / "images").problems == []


# Two parts of one file


def test_split(root):
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 9, "height": 8} for i in range(1, 11)],
        "annotations": [
            {"id": i, "image_id": i // 2 + 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
            for i in range(1, 20)
        ],
        "categories": [{"id": 1, "name": "fig"}, {"id": 2, "name": "rare"}],
        "info": {"year": 2026},
    }
    file, outs = root / "all.json", (root / "train.json", root / "val.json")
    file.write_text(json.dumps(content))
    train, val = split_coco(file, outs, 0.25)
    assert [json.loads(out.read_text()) for out in outs] == [train, val]
    assert (len(train["images"]), len(val["images"])) == (8, 2)
    for part in (train, val):
        assert part["categories"] == content["categories"] and part["info"] == content["info"]
        assert {a["image_id"] for a in part["annotations"]} <= {i["id"] for i in part["images"]}
    for key in ("images", "annotations"):
        assert sorted(entry["id"] for part in (train, val) for entry in part[key]) == [
            entry["id"] for entry in content[key]
        ]
    assert split_coco(file, outs, 0.25) == (train, val)
    assert split_coco(file, outs, 0.25, seed=1) != (train, val)
    for share in (0, 1, math.nan):
        with pytest.raises(UserError, match="share: expected a number between 0 and 1, got"):
            split_coco(file, outs, share)


def test_split_mistakes(root):
    check(root, annotation(2, image_id=2))
    outs = (root / "train.json", root / "val.json")
    with pytest.raises(UserError, match="annotation 3: image_id: expected the id of one of the 3 images"):
        split_coco(root / "coco.json", outs, 0.5)

    def one(content):
        content.update(images=content["images"][:1], annotations=content["annotations"][:1])

    check(root, one)
    with pytest.raises(UserError, match="images: expected at least 2, got 1"):
        split_coco(root / "coco.json", outs, 0.5)
    for same in ((outs[0], outs[0]), (root / "coco.json", outs[1]), (outs[0], root / "." / "coco.json")):
        with pytest.raises(UserError, match=f"different files, got .*{same[0].name}.* and .*{same[1].name}"):
            split_coco(root / "coco.json", same, 0.5)
    assert not outs[0].exists() and not outs[1].exists()


# The commands


def invoke(*arguments):
    return CliRunner().invoke(commands, ["data", *map(str, arguments)])


def test_check_command(root):
    check(root)
    result = invoke("check", root / "coco.json", "--images", root / "images", "--classes", "fig,date")
    assert result.exit_code == 0, result.output
    assert "3 images, 3 annotations, 2 categories" in result.stdout and "no problems" in result.stdout
    assert "1 images without an annotation" in result.stdout
    check(root, annotation(2, bbox=[5, 10, 16.5, 20], area=330))
    result = invoke("check", root / "coco.json")
    assert result.exit_code == 1
    assert "box reaches out of the image       1  clipped" in result.stdout
    line = "annotation 3: bbox: expected a box inside of 20 × 50 pixels, got [5, 10, 16.5, 20]"
    assert f"{root}/coco.json: {line}" in result.stdout
    result = invoke("check", root / "coco.json", "--json")
    assert result.exit_code == 1 and len(json.loads(result.stdout)["problems"]) == 1
    result = invoke("check", root / "coco.json", "--fix", root / "fixed.json")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"written: {root}/fixed.json: 1 annotations clipped\n"
    assert invoke("check", root / "fixed.json").exit_code == 0


def test_check_command_with_a_config(root):
    check(root)
    config = root / "config.py"
    config.write_text(
        "train_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(\n"
        "    type='CocoDataset', metainfo=dict(classes=('date', 'fig')))))\n"
    )
    result = invoke("check", root / "coco.json", "--config", config)
    assert result.exit_code == 1 and "expected the order of the classes, date, fig, got fig" in result.stdout
    config.write_text("train_dataloader = dict(dataset=dict(type='CocoDataset'))\n")
    result = invoke("check", root / "coco.json", "--config", config)
    assert "expected the classes person, bicycle, car, motorcycle, airplane and 75 more" in result.stdout
    result = invoke("check", root / "coco.json", "--config", config, "--classes", "fig")
    assert result.exit_code == 1 and result.output.startswith("error: --config: ")
    result = invoke("check", root / "coco.json", "--config", root / "coco.json")
    assert result.exit_code == 1 and f"{root}/coco.json" in result.output


def test_split_command(root):
    check(root)
    result = invoke("split", root / "coco.json", root / "train.json", root / "val.json", "--val-ratio", "0.3")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith(f"written: {root}/train.json: 2 images, ")
