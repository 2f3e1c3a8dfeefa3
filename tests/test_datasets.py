import dataclasses
import json

import cv2
import numpy as np
import pytest

import dcnzoo.datasets

# isort: split
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from pycocotools.coco import COCO

from dcnzoo.datasets.shapes import CLASSES, ShapesSpec, draw_image, make_shapes, polygon_area
from dcnzoo.engine.cli import UserError

SPEC = ShapesSpec(train=6, val=4, size=96, min_radius=11, max_radius=44, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    assert make_shapes(root, SPEC)
    return root


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_same_seed_same_bytes(root, tmp_path):
    make_shapes(tmp_path / "again", SPEC)
    assert contents(tmp_path / "again") == contents(root)
    assert len(contents(root)) == 6 + 4 + 2 + 1


def test_other_seed_other_images(root, tmp_path):
    make_shapes(tmp_path / "other", dataclasses.replace(SPEC, seed=4))
    ours, other = contents(root), contents(tmp_path / "other")
    assert all(ours[name] != other[name] for name in ours if name.endswith(".png"))


def test_splits_share_no_image(root):
    files = contents(root)
    assert len({data for name, data in files.items() if name.endswith(".png")}) == 10


def test_larger_set_begins_with_the_smaller(root, tmp_path):
    make_shapes(tmp_path / "more", dataclasses.replace(SPEC, train=7))
    assert (tmp_path / "more/train/00005.png").read_bytes() == (root / "train/00005.png").read_bytes()


def test_global_random_state_is_left_alone(tmp_path):
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make_shapes(tmp_path / "x", dataclasses.replace(SPEC, train=1, val=1))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_file_is_valid(root, split):
    coco = COCO(root / "annotations" / f"{split}.json")
    assert len(coco.imgs) == getattr(SPEC, split)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    data = json.loads((root / "annotations" / f"{split}.json").read_text())
    ids = [a["id"] for a in data["annotations"]]
    assert len(set(ids)) == len(ids) and 0 not in ids
    assert all(coco.getAnnIds(imgIds=i) for i in coco.imgs), "every image has an instance"
    for image in coco.imgs.values():
        pixels = cv2.imread(str(root / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_areas_and_polygons_agree(root, split):
    coco = COCO(root / "annotations" / f"{split}.json")
    for a in coco.anns.values():
        (flat,) = a["segmentation"]
        x, y = np.array(flat).reshape(-1, 2).T
        left, top, width, height = a["bbox"]
        np.testing.assert_allclose(
            [left, top, left + width, top + height],
            [x.min(), y.min(), x.max(), y.max()],
            atol=0.011,
        )
        assert left >= 0 and top >= 0 and left + width <= 96 and top + height <= 96
        # pycocotools counts whole pixels: the difference is at most the pixels on the outline
        outline = np.hypot(*np.diff([np.append(x, x[0]), np.append(y, y[0])])).sum()
        assert abs(coco.annToMask(a).sum() - a["area"]) <= 0.5 * outline


def test_instances_do_not_overlap(root):
    coco = COCO(root / "annotations" / "train.json")
    for image in coco.imgs:
        masks = sum(coco.annToMask(a).astype(int) for a in coco.imgToAnns[image])
        assert masks.max() == 1


def test_sizes_span_the_factor_asked_for():
    spec = ShapesSpec(train=1, val=1)
    sides = []
    for index in range(60):
        for instance in draw_image(spec, "train", index)[1]:
            sides.append(np.ptp(instance["polygon"], axis=0).max())
    assert 2 * spec.min_radius - 0.1 <= min(sides) < 30
    assert 90 < max(sides) <= 2 * spec.max_radius + 0.1


def test_instance_stands_out_where_its_polygon_is():
    """The annotation lies on the drawn shape, not half a pixel or an axis swap beside it."""
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
    assert min(differences) > 18  # the contrast asked for is 25, less noise


def test_polygon_area_of_a_triangle():
    assert polygon_area(np.array([[1.0, 1.0], [5.0, 1.0], [1.0, 4.0]])) == 6.0


def test_second_call_writes_nothing(root):
    before = (root / "shapes.json").stat().st_mtime_ns
    assert not make_shapes(root, SPEC)
    assert (root / "shapes.json").stat().st_mtime_ns == before


def test_other_parameters_replace_the_data(tmp_path):
    root = tmp_path / "shapes"
    make_shapes(root, dataclasses.replace(SPEC, train=3))
    assert make_shapes(root, dataclasses.replace(SPEC, train=2))
    assert len(list((root / "train").iterdir())) == 2


def test_half_written_data_never_has_the_name(tmp_path, monkeypatch):
    root = tmp_path / "shapes"
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_shapes(root, SPEC)
    assert not root.exists()
    assert make_shapes(root, SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["shapes"], "leftovers are gone"


def test_foreign_folder_is_not_deleted(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"expected a folder written by make_shapes"):
        make_shapes(tmp_path, SPEC)
    assert (tmp_path / "photo.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train", 0, "train: expected ≥ 1, got 0"),
        ("max_instances", 0, "max_instances: expected ≥ 1, got 0"),
        ("max_radius", 99.0, "max_radius ≤ size / 2, got 13.0, 99.0, 128 / 2"),
        ("stretch", 0.5, "stretch: expected ≥ 1, got 0.5"),
        ("seed", -1, "seed: expected ≥ 0, got -1"),
    ],
)
def test_bad_parameters(field, value, message):
    with pytest.raises(ValueError, match=message):
        ShapesSpec(**{field: value})


# COCO files with mistakes


def read_coco(root, change, name="CocoDataset", **arguments):
    """The data set of ``root``'s training images, after ``change`` has been at the annotations."""
    annotations = json.loads((root / "annotations" / "train.json").read_text())
    changed = root / "annotations" / "changed.json"
    changed.write_text(json.dumps(change(annotations) or annotations))
    defaults = dict(metainfo=dict(classes=CLASSES), filter_cfg=dict(filter_empty_gt=True))
    cfg = {"ann_file": "annotations/changed.json", "data_prefix": dict(img="train/"), **defaults, **arguments}
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.build(dict(type=name, data_root=f"{root}/", **cfg))


@pytest.mark.parametrize("name", ["CocoDataset", "ShapesDataset"])
def test_a_good_file_is_read_as_mmdetection_reads_it(root, name):
    from mmdet.datasets import CocoDataset

    ours = read_coco(root, lambda file: None, name)
    assert isinstance(ours, CocoDataset) and isinstance(ours, dcnzoo.datasets.CocoDataset)
    theirs = CocoDataset(
        ann_file="annotations/train.json",
        data_root=f"{root}/",
        data_prefix=dict(img="train/"),
        metainfo=dict(classes=CLASSES),
    )
    assert len(ours) == 6
    assert [ours.get_data_info(i) for i in range(6)] == [theirs.get_data_info(i) for i in range(6)]


def box_of_the_second(values):
    return lambda file: file["annotations"][1].update(bbox=values)


def no_annotations(file):
    file["annotations"] = []


def other_categories(file):
    for category, name in zip(file["categories"], ("date", "fig", "hazelnut"), strict=True):
        category["name"] = name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (box_of_the_second([5, 6, -7, 8]), r"annotation 2 of image 1: bbox: .* got \[5, 6, -7, 8\]$"),
        (
            box_of_the_second([5, 6, 7]),
            r"annotation 2 .* expected \[x, y, width, height\].* got \[5, 6, 7\]$",
        ),
        (box_of_the_second([5, 6, 7, float("nan")]), r"width and height ≥ 0, got \[5, 6, 7, nan\]$"),
        (box_of_the_second(["5", 6, 7, 8]), r"width and height ≥ 0, got \['5', 6, 7, 8\]$"),
        (lambda file: file["images"].clear(), r"images: expected at least 1, got 0$"),
        (lambda file: file.update(categories=[]), r"categories: expected at least 1, got 0$"),
        (lambda file: [1, 2], r"expected a COCO file \(JSON\): annotation file format <class 'list'>"),
        (no_annotations, r"expected at least 1 image to train on, got 0 of 6: .*filter_empty_gt.*True"),
        (
            other_categories,
            r"expected all 3 classes of metainfo, missing oval, trefoil, cross, got date, fig, hazelnut$",
        ),
        (
            lambda file: file["categories"].reverse(),
            r"expected the order of metainfo's classes, oval, trefoil, cross, got cross, trefoil, oval$",
        ),
    ],
)
def test_mistakes_in_a_coco_file(root, change, message):
    with pytest.raises(UserError, match=message) as error:
        read_coco(root, change)
    assert str(error.value).startswith(f"{root}/annotations/changed.json: ")
    assert "\n" not in str(error.value)


def test_coco_file_that_is_none(root):
    with pytest.raises(UserError, match=rf"^ann_file: expected a file, found none at {root}/none.json$"):
        read_coco(root, lambda file: None, ann_file="none.json")
    (root / "text.json").write_text("no JSON")
    with pytest.raises(UserError, match=r"text.json: expected a COCO file \(JSON\): Expecting value"):
        read_coco(root, lambda file: None, ann_file="text.json")
    with pytest.raises(UserError, match=rf"^data_prefix: .* the first at {root}/val2/00000.png, found none"):
        read_coco(root, lambda file: None, data_prefix=dict(img="val2/"))


def test_fewer_classes_than_categories(root):
    """Those left out are not seen, which is a way to train on a part of a data set."""
    data = read_coco(root, lambda file: None, metainfo=dict(classes=("cross",)))
    labels = {instance["bbox_label"] for i in range(len(data)) for instance in data[i]["instances"]}
    assert labels == {0}


def test_a_file_without_annotations_is_tested_on(root):
    assert len(read_coco(root, no_annotations, test_mode=True)) == 6


def test_long_lists_are_cut(root):
    classes = tuple(f"class {i}" for i in range(80))
    with pytest.raises(UserError, match=r"all 80 .*missing class 0, .*, class 4 and 75 more, got oval, tref"):
        read_coco(root, lambda file: None, metainfo=dict(classes=classes))
