"""What the documented exports of annotation tools become, in each arrangement of splits."""

import shutil

import pytest

from dcnzoo.data.reading import read as read_data
from dcnzoo.data.tree import split_of
from dcnzoo.utils.errors import UserError
from tests.helpers.folders import GENERATORS, SIZES, expected, read, voc_lists
from tests.helpers.formats import CLASSES, coco, draw, write


def same(result, truth):
    assert result.keys() == truth.keys()
    for split, pictures in result.items():
        assert pictures.keys() == truth[split].keys()
        for path, boxes in pictures.items():
            for box, written in zip(sorted(boxes), sorted(truth[split][path]), strict=True):
                assert box[0] == written[0] and box[1:] == pytest.approx(written[1:], abs=0.1)


@pytest.mark.parametrize("splits", ["train val test", "train val", "train test", "train"])
@pytest.mark.parametrize("name", GENERATORS)
def test_splits_pictures_and_objects(tmp_path, name, splits):
    truth = expected(GENERATORS[name](tmp_path, {split: SIZES[split] for split in splits.split()}))
    if "val" not in splits:
        truth["all"] = truth.pop("train")
    same(read(tmp_path), truth)


@pytest.mark.parametrize("name", GENERATORS)
def test_lists_and_names_are_used(tmp_path, name):
    """No line says that a file was not used which has selected the pictures or named the classes."""
    GENERATORS[name](tmp_path, {"train": 4, "val": 3})
    others = [note for note in read_data(tmp_path).notes if note.startswith("other files")]
    assert others == [] or name == "COCO"  # captions and keypoints


@pytest.mark.parametrize("name", GENERATORS)
def test_equal_files_in_two_splits_are_refused(tmp_path, name):
    truth = GENERATORS[name](tmp_path, {"train": 6, "val": 3})
    (train, files), (val, others) = truth["train"], truth["val"]
    first, (_, second, *_) = next(iter(files)), others
    shutil.copyfile(train / first, val / second)
    with pytest.raises(UserError, match="two splits, got 1 picture: ") as error:
        read_data(tmp_path).split()
    assert second in str(error.value) and first in str(error.value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[("train", "train"), ("instances_train2017", "train"), ("Train", "train"), ("trainImages", "train")],
        *[("val2017", "val"), ("instances_Validation", "val"), ("valid", "val"), ("TEST", "test")],
        *[("image_info_test-dev2017", "test"), ("trainval", ""), ("train_val", ""), ("naval", "")],
        *[("oval", ""), ("trains", ""), ("contest", ""), ("interval_3", ""), ("oval_train", "train")],
    ],
)
def test_a_split_is_a_word(name, split):
    assert split_of([name]) == split


def test_lists_of_voc_above_main(tmp_path):
    truth = voc_lists()(tmp_path, SIZES)
    for file in (tmp_path / "ImageSets/Main").iterdir():
        file.rename(tmp_path / "ImageSets" / file.name)
    same(read(tmp_path), expected(truth))


def test_voc_with_a_test_set_only(tmp_path):
    """As VOC2007's: all pictures are one split, which ``dcnzoo test --data`` takes."""
    truth = voc_lists()(tmp_path, {"test": 4})
    write(tmp_path / "ImageSets/Main/disc_test.txt", "0000 1\n")
    same(read(tmp_path), {"all": expected(truth)["test"]})


def test_voc_2007_has_lists_and_masks_for_other_tasks(tmp_path):
    truth = voc_lists()(tmp_path, SIZES)
    for split, (_, part) in truth.items():
        stems = [name.removesuffix(".jpg") for name in part]
        write(tmp_path / f"ImageSets/Main/disc_{split}.txt", "  1\n".join(stems))
        write(tmp_path / f"ImageSets/Segmentation/{split}.txt", stems[0])
        write(tmp_path / f"ImageSets/Layout/{split}.txt", f"{stems[0]} 1")
        draw(tmp_path / "SegmentationClass", [f"{stem}.png" for stem in stems])
    write(tmp_path / "ImageSets/Main/trainval.txt", (tmp_path / "ImageSets/Main/val.txt").read_text())
    same(read(tmp_path), expected(truth))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_named_file_is_the_data(tmp_path, name):
    """Another format beside the file is ignored; the pictures may be in the folder above."""
    GENERATORS[name](tmp_path, {"train": 4, "val": 3})
    write(tmp_path / "other/all.json", coco(draw(tmp_path / "other", 3)))
    described = [*tmp_path.glob("*.yaml"), *tmp_path.glob("obj.data")]
    if described and described[0].suffix:
        assert {*read(described[0])} == {"train", "val"}
    if name == "COCO":
        (pool,) = read(tmp_path / "annotations/instances_val2017.json").values()
        assert {path.rpartition("val2017/")[2] for path in pool} == {"0000.jpg", "0001.jpg", "0002.jpg"}


def test_classes_that_are_chosen(tmp_path):
    GENERATORS["YOLO, Ultralytics"](tmp_path, {"train": 6, "val": 3})
    splits = read_data(tmp_path, classes=CLASSES[::-1]).split()
    assert [*splits["train"].per_class] == [*splits["val"].per_class] == [*CLASSES[::-1]]
    with pytest.raises(UserError, match="one of the classes"):
        read_data(tmp_path, classes=("disc", "nut"))
