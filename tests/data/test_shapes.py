"""The generated data set of shapes: seeds, files of the user, annotations beside the drawn pictures."""

import dataclasses

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from dcnzoo.data.shapes import CLASSES, ShapesSpec, draw_image, make_shapes
from tests.data.conftest import SPEC


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_seeds(tmp_path):
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for name in ("first", "again"):
        make_shapes(tmp_path / name, SPEC)
    ours = contents(tmp_path / "first")
    assert contents(tmp_path / "again") == ours and len(ours) == 6 + 4 + 2 + 1
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    pictures = {name: data for name, data in ours.items() if name.endswith(".png")}
    assert len(set(pictures.values())) == 10, "the splits share none"
    make_shapes(tmp_path / "other", dataclasses.replace(SPEC, seed=4))
    other = contents(tmp_path / "other")
    assert all(other[name] != data for name, data in pictures.items())
    make_shapes(tmp_path / "more", dataclasses.replace(SPEC, train=7))
    more = contents(tmp_path / "more")
    assert all(more[name] == data for name, data in pictures.items()), "a larger set begins with the smaller"


def test_no_file_of_the_user_is_replaced(tmp_path):
    root = tmp_path / "shapes"
    make_shapes(root, dataclasses.replace(SPEC, train=2, val=1))
    for name in ("thesis.tex", "train/me.png"):
        (root / name).write_text("mine")
        before = contents(root)
        with pytest.raises(FileExistsError, match="the same parameters"):
            make_shapes(root, SPEC)
        assert contents(root) == before
        (root / name).unlink()
    for content in ("{}", "[]", '{"version": 1, "shapes": ["star"]}'):  # another program's shapes.json
        (root / "shapes.json").write_text(content)
        with pytest.raises(FileExistsError, match="make_shapes"):
            make_shapes(root, SPEC)


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_file(root, split):
    coco = COCO(root / "annotations" / f"{split}.json")
    assert len(coco.imgs) == getattr(SPEC, split)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for number, image in coco.imgs.items():
        assert cv2.imread(str(root / split / image["file_name"])).shape == (96, 96, 3)
        assert coco.imgToAnns[number] and 0 not in coco.anns
        assert sum(coco.annToMask(a).astype(int) for a in coco.imgToAnns[number]).max() == 1
    for a in coco.anns.values():
        (flat,) = a["segmentation"]
        x, y = np.array(flat).reshape(-1, 2).T
        left, top, width, height = a["bbox"]
        box = [left, top, left + width, top + height]
        np.testing.assert_allclose(box, [x.min(), y.min(), x.max(), y.max()], atol=0.011)
        assert min(box) >= 0 and max(box) <= 96
        # pycocotools counts whole pixels, so that areas differ by at most the pixels on the outline
        outline = np.hypot(*np.diff([np.append(x, x[0]), np.append(y, y[0])])).sum()
        assert abs(coco.annToMask(a).sum() - a["area"]) <= 0.5 * outline


def test_instance_stands_out_where_its_polygon_is():
    """The annotation matches the drawn shape, without a half-pixel shift or swapped axes."""
    spec = ShapesSpec(texture=0.0, strokes=0)
    differences = []
    for index in range(20):
        image, instances = draw_image(spec, "val", index)
        every = np.zeros((128, 128), np.uint8)
        for instance in instances:
            cv2.fillPoly(every, [np.round(instance["polygon"] - 0.5).astype(np.int32)], 1)
        for instance in instances:
            one = np.zeros((128, 128), np.uint8)
            cv2.fillPoly(one, [np.round(instance["polygon"] - 0.5).astype(np.int32)], 1)
            inner = cv2.erode(one, np.ones((3, 3))) > 0
            outer = (cv2.dilate(one, np.ones((5, 5))) > 0) & (cv2.dilate(every, np.ones((3, 3))) == 0)
            if inner.sum() > 20 and outer.sum() > 20:
                differences.append(np.abs(image[inner].mean(0) - image[outer].mean(0)).max())
    assert len(differences) > 20
    assert min(differences) > 18  # the requested contrast is 25, minus noise
