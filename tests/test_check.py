"""``dcnzoo data check``, ``--fix`` and ``split``. test_malformed_data.py tests each problem separately."""

import json
import math
import random

import pytest
from pycocotools.coco import COCO

from dcnzoo.data.check import check_coco, fix
from dcnzoo.data.split import split_coco
from dcnzoo.utils.errors import UserError

from .test_malformed_data import ann, draw_images, good, invoke, top, write_coco


@pytest.fixture
def root(tmp_path):
    return draw_images(tmp_path)


def check(root, change=lambda content: None, **arguments):
    return check_coco(write_coco(root, change), root, **arguments)


def test_classes(root):
    (problem,) = check(root, classes=["fig", "date", "hazelnut"]).problems
    assert problem.kind == "classes" and "missing hazelnut, got fig, date" in problem.text
    (problem,) = check(root, classes=["date", "fig"]).problems
    assert problem.kind == "classes" and "order" in problem.text
    assert check(root, classes=["date"]).problems == [], "a part of them is a way to train on less"


def test_files(root):
    (root / "c.png").write_bytes(b"text")
    (problem,) = check(root).problems
    assert problem.kind == "unreadable-image" and problem.where == "image 7"
    assert check_coco(root / "coco.json").problems == [], "without the folder, files are not looked at"
    result = invoke("check", root / "none.json")
    assert result.exit_code == 1 and f"error: file: expected a file, found none at {root}" in result.output
    result = invoke("check", root / "coco.json", "--images", root / "none")
    assert result.exit_code == 2 and "--images" in result.output


def test_a_pixel_is_no_problem(root):
    def change(content):
        content["annotations"][2]["bbox"] = [-0.5, 0, 20.9, 50.4]
        content["annotations"][0]["segmentation"] = [[2, 3, 12.4, 2.6, 12, 23, 2, 13]]
        content["annotations"][0]["area"] = 170

    assert check(root, change).problems == []


# --fix


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
        "annotations": {"clipped": 1, "computed": 1, "renumbered": 1, "dropped": 1},
    }
    first, second, third = json.loads((root / "fixed.json").read_text())["annotations"]
    # the triangle's tip is 4 pixels outside; test_conversion.py works out the numbers
    assert first["bbox"] == [34, 3, 6, 20] and first["area"] == 42 + 7.5
    assert COCO(root / "fixed.json").annToMask(first)[:, 39].sum() in (4, 5)
    with pytest.raises(UserError, match="annotations: expected at least 1"):
        fix(
            check(root, top(annotations=[{**first, "bbox": [1, 1, 0, 0], "segmentation": []}])),
            root / "no.json",
        )
    assert not (root / "no.json").exists()
    assert second["area"] == 200 and [first["id"], second["id"], third["id"]] == [1, 2, 3]


def test_fix_converts_ids_that_are_texts(root):
    """Numbers stay; names get free numbers. A name that no image has is not one of them."""

    def change(content):
        for image, text in zip(content["images"], ("1", "b-5f", "007"), strict=True):
            image["id"] = text
        for annotation, text in zip(content["annotations"], ("1", 1, "b-5f"), strict=True):
            annotation["image_id"] = text
        content["categories"][1]["id"] = content["annotations"][1]["category_id"] = "9"
        content["annotations"] += [{**content["annotations"][2], "id": 4, "image_id": "gone"}]

    done = fix(check(root, change), root / "fixed.json")
    assert {key: dict(counts) for key, counts in done.items()} == {
        "images": {"converted": 3},
        "annotations": {"converted": 3, "dropped": 1},
    }
    content = json.loads((root / "fixed.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 8, 7]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1, 1, 8]
    assert [category["id"] for category in content["categories"]] == [3, 9]
    assert [annotation["category_id"] for annotation in content["annotations"]] == [3, 9, 3]
    assert check_coco(root / "fixed.json", root).problems == []


def test_fix_recomputes_the_box_of_a_mask_that_it_clips(root):
    def change(content):
        del content["annotations"][0]["bbox"]
        content["annotations"][0]["segmentation"] = [[30, 5, 46, 5, 46, 15, 30, 15]]

    fix(check(root, change), root / "fixed.json")
    (first, *_) = json.loads((root / "fixed.json").read_text())["annotations"]
    assert first["bbox"] == [30, 5, 10, 10] and first["area"] == 100, "the image is 40 pixels wide"


VALUES = (None, 0, -1, 1.5, 10**30, math.inf, math.nan, "", "a", True, [], [[]], {}, [1], {"counts": "0"})


@pytest.mark.parametrize("seed", range(2))
def test_any_value_anywhere_is_a_problem_never_a_traceback(root, seed):
    generator = random.Random(seed)

    def places(node):
        for key in range(len(node)) if isinstance(node, list) else list(node):
            yield node, key
            if isinstance(node[key], list | dict):
                yield from places(node[key])

    for _ in range(80):
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
        assert check_coco(root / "fixed.json", root).problems == []


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
        with pytest.raises(UserError, match="share: "):
            split_coco(file, outs, share)


def test_split_mistakes(root):
    check(root, ann(image_id=2))
    outs = (root / "train.json", root / "val.json")
    with pytest.raises(UserError, match="annotation 3: image_id: "):
        split_coco(root / "coco.json", outs, 0.5)

    def one(content):
        content.update(images=content["images"][:1], annotations=content["annotations"][:1])

    check(root, one)
    with pytest.raises(UserError, match="images: "):
        split_coco(root / "coco.json", outs, 0.5)
    for same in ((outs[0], outs[0]), (root / "coco.json", outs[1]), (outs[0], root / "." / "coco.json")):
        with pytest.raises(UserError, match=f"{same[0].name}.* and .*{same[1].name}"):
            split_coco(root / "coco.json", same, 0.5)
    assert not outs[0].exists() and not outs[1].exists()


# The commands


def test_check_command(root):
    check(root)
    file, config = root / "coco.json", root / "config.py"
    result = invoke("check", file, "--images", root, "--classes", "fig,date")
    assert result.exit_code == 0 and "no problems" in result.stdout, result.output
    assert "3 images, 3 annotations, 2 categories" in result.stdout
    config.write_text(
        "train_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(\n"
        "    type='CocoDataset', metainfo=dict(classes=('date', 'fig')))))\n"
    )
    of_coco = root / "of_coco.py"
    of_coco.write_text("train_dataloader = dict(dataset=dict(type='CocoDataset'))\n")
    for arguments, named in (
        (["--config", config], "date, fig, got fig"),
        (["--config", of_coco], "person, bicycle, car"),
        (["--config", config, "--classes", "fig"], "error: --config: "),
        (["--config", file], str(file)),
    ):
        result = invoke("check", file, *arguments)
        assert result.exit_code == 1 and named in result.output

    check(root, ann(bbox=[5, 10, 16.5, 20], area=330))
    result = invoke("check", file)
    assert result.exit_code == 1 and f"{file}: annotation 3: bbox: " in result.stdout
    result = invoke("check", file, "--json")
    assert result.exit_code == 1 and len(json.loads(result.stdout)["problems"]) == 1
    result = invoke("check", file, "--fix", root / "fixed.json")
    assert result.exit_code == 0 and "1 annotation clipped" in result.stderr, result.output
    assert invoke("check", root / "fixed.json").exit_code == 0
    before = file.read_bytes()
    result = invoke("check", file, "--fix", root / "." / "coco.json")
    assert result.exit_code == 1 and "--force" in result.output and file.read_bytes() == before
    assert invoke("check", file, "--fix", file, "--force").exit_code == 0
    assert invoke("check", file).exit_code == 0


def test_split_command(root):
    check(root)
    result = invoke("split", root / "coco.json", root / "train.json", root / "val.json", "--val-ratio", "0.3")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith(f"written: {root}/train.json: 2 images, ")
