"""Folders of annotated pictures as tools document their exports, with the truth about them."""

from pathlib import Path

from dcnzoo.data.reading import read as read_data
from tests.helpers.formats import CLASSES, coco, draw, labelme, voc, write, yolo

SIZES = {"train": 6, "val": 3, "test": 2}


# Generators get a folder and the number of pictures of each split, and return split → (folder, objects).


def by_folder(writer, images="{}", names=("train", "val", "test")):
    """Return a generator of splits in folders; it calls ``writer(root, split, folder, name, boxes)``."""

    def generate(root, splits):
        truth = {}
        for split, number in splits.items():
            name = dict(zip(SIZES, names, strict=True))[split]
            folder = root / images.format(name)
            part = draw(folder, number)
            truth[split] = (folder, part)
            for file, boxes in part.items():
                writer(root, name, folder, Path(file), boxes)
        return truth

    return generate


def labels_beside(root, name, folder, file, boxes):
    labels = str(folder).replace(f"{root}/images", f"{root}/labels").replace("/images", "/labels")
    yolo(Path(labels) / file.with_suffix(".txt"), boxes)


def described(generate, text, file="data.yaml"):
    def write_all(root, splits):
        truth = generate(root, splits)
        lines = [line for line in text.splitlines() if any(key in line for key in (*splits, "path"))]
        write(root / file, "\n".join([*lines, f"names: [{', '.join(CLASSES)}]\n"]))
        return truth

    return write_all


def yolo_lists(root, splits):
    truth = by_folder(labels_beside, "images/{}")(root, splits)
    for split, (folder, part) in truth.items():
        write(root / f"{split}.txt", "".join(f"data/images/{split}/{name}\n" for name in part))
        assert folder.name == split
    write(
        root / "data.yaml",
        "path: ./\n" + "".join(f"{s}: {s}.txt\n" for s in splits) + "names: {0: disc, 1: box, 2: star}",
    )
    return truth


def darknet(root, splits):
    def writer(root, name, folder, file, boxes):
        yolo(folder / file.with_suffix(".txt"), boxes)

    truth = by_folder(writer, "obj_{}_data", ("train", "valid", "test"))(root, splits)
    names = {"train": "train", "val": "valid", "test": "test"}
    for split, (folder, part) in truth.items():
        write(root / f"{names[split]}.txt", "".join(f"data/{folder.name}/{name}\n" for name in part))
    write(root / "obj.names", "\n".join(CLASSES))
    rows = "".join(f"{names[split]} = data/{names[split]}.txt\n" for split in splits)
    write(root / "obj.data", f"classes = 3\n{rows}names = data/obj.names\nbackup = backup/\n")
    return truth


def lists_and_names(root, splits):
    truth = darknet(root, splits)
    (root / "obj.data").unlink()
    return truth


def lists_of_one_folder(root, splits):
    """Draw all pictures into one folder; lists say which split a picture belongs to."""
    truth = {}
    for split, number in splits.items():
        part = draw(root / "images", [f"{split}_{n}.jpg" for n in range(number)])
        for name, boxes in part.items():
            yolo((root / "labels" / name).with_suffix(".txt"), boxes)
        write(root / f"{split}.txt", "".join(f"./images/{name}\n" for name in part))
        truth[split] = (root / "images", part)
    write(root / "classes.txt", "\n".join(CLASSES))
    return truth


def classes_file(generate, file="classes.txt"):
    """Return a generator that also writes the classes' names; with a star in ``file``, for each split."""

    def write_all(root, splits):
        truth = generate(root, splits)
        for folder, _ in truth.values():
            write(root / file.replace("*", folder.name), "\n".join(CLASSES))
        return truth

    return write_all


def voc_lists(annotations="Annotations", images="JPEGImages", names=("train", "val", "test"), quoted=False):
    """Return a generator of one folder of pictures, whose names do not repeat, with lists of the splits."""

    def generate(root, splits):
        truth = {}
        for split, number in splits.items():
            part = draw(root / images, [f"{split} {n:04}.jpg" for n in range(number)])
            for name, boxes in part.items():
                voc(root / annotations / Path(name).with_suffix(".xml"), name, boxes)
            stems = [f'"{Path(name).stem}"' if quoted else Path(name).stem for name in part]
            listed = dict(zip(SIZES, names, strict=True))[split]
            write(root / f"ImageSets/Main/{listed}.txt", "\n".join(stems))
            truth[split] = (root / images, part)
        return truth

    return generate


def devkit(root, splits):
    truth = {split: (root, {}) for split in splits}
    for year in ("VOC2007", "VOC2012"):
        for split, (folder, part) in voc_lists()(root / year, splits).items():
            truth[split][1].update({f"{folder.relative_to(root)}/{name}": part[name] for name in part})
    return truth


def voc_folders(images="{}", annotations="{}", names=("train", "val", "test")):
    def writer(root, name, folder, file, boxes):
        voc(root / annotations.format(name) / file.with_suffix(".xml"), file.name, boxes)

    return by_folder(writer, images, names)


def coco_folders(images, annotations, names=("train", "val", "test"), prefix="", root_category=False):
    def generate(root, splits):
        truth = {}
        for split, number in splits.items():
            name = dict(zip(SIZES, names, strict=True))[split]
            part = draw(root / images.format(name), number)
            write(root / annotations.format(name), coco(part, prefix, root_category))
            truth[split] = (root / images.format(name), part)
        return truth

    return generate


def coco_official(root, splits):
    truth = coco_folders("{}2017", "annotations/instances_{}2017.json")(root, splits)
    for split, (_, part) in truth.items():
        content = coco(part)
        captions = [{"id": 1, "image_id": 1, "caption": "a disc"}]
        write(root / f"annotations/captions_{split}2017.json", {**content, "annotations": captions})
        write(root / f"annotations/person_keypoints_{split}2017.json", content)
    return truth


def labelme_folders(images, annotations, path="{}", corners=False):
    def writer(root, name, folder, file, boxes):
        stated = path.format(file.name)
        labelme(root / annotations.format(name) / file.with_suffix(".json"), stated, boxes, corners=corners)

    return by_folder(writer, images)


KEYS = "train: {0}\nval: {1}\ntest: {2}\n"
GENERATORS = {
    "YOLO, Ultralytics": described(
        by_folder(labels_beside, "images/{}"),
        "path: ../datasets/shapes\n" + KEYS.format("images/train", "images/val", "images/test"),
        "shapes.yaml",
    ),
    "YOLO, Roboflow": described(
        by_folder(labels_beside, "{}/images", ("train", "valid", "test")),
        KEYS.format("../train/images", "../valid/images", "../test/images"),
    ),
    "YOLO, CVAT": yolo_lists,
    "YOLO, FiftyOne": described(
        by_folder(labels_beside, "images/{}", ("train", "validation", "test")),
        "path: .\ntrain: ./images/train/\nvalidation: ./images/validation/  # val\ntest: ./images/test/\n",
        "dataset.yaml",
    ),
    "YOLO, darknet and CVAT 1.1": darknet,
    "YOLO, lists and names": lists_and_names,
    "YOLO, lists of one folder": lists_of_one_folder,
    "Pascal VOC": voc_lists(),
    "Pascal VOC, devkit": devkit,
    "Pascal VOC, CVAT": voc_lists(names=("Train", "Validation", "Test"), quoted=True),
    "Pascal VOC, Roboflow": voc_folders(names=("train", "valid", "test")),
    "Pascal VOC, without lists": voc_folders("images/{}/cam 1", "annotations/{}/cam 1"),
    "COCO": coco_official,
    "COCO, CVAT": coco_folders("images/{}", "annotations/instances_{}.json", ("Train", "Validation", "Test")),
    "COCO, Roboflow": coco_folders(
        "{}", "{}/_annotations.coco.json", ("train", "valid", "test"), root_category=True
    ),
    "COCO, Label Studio": coco_folders("{}/images", "{}/result.json", prefix="..\\..\\media\\upload\\3\\"),
    "COCO, FiftyOne": coco_folders("{}/data", "{}/labels.json"),
    "COCO, two files": coco_folders("images/{}", "{}.json"),
    "LabelMe": labelme_folders("{}", "{}"),
    "LabelMe, pictures elsewhere": labelme_folders("images/{}", "annotations/{}", "C:\\me\\{}"),
    "LabelMe, X-AnyLabeling": labelme_folders("{}", "{}", corners=True),
    "YOLO, Label Studio": classes_file(by_folder(labels_beside, "images/{}")),
    "YOLO, Roboflow's Darknet": classes_file(
        by_folder(lambda root, name, folder, file, boxes: yolo(folder / file.with_suffix(".txt"), boxes)),
        "*/_darknet.labels",
    ),
    "YOLO, LabelImg": classes_file(
        by_folder(lambda root, name, folder, file, boxes: yolo(folder / file.with_suffix(".txt"), boxes))
    ),
}


def read(data, **options):
    """split → {path of the picture: [(class, x, y, width, height)]}."""
    result = {}
    for name, pictures in read_data(data, **options).splits.items():
        result[name] = {
            str(p.file): [(each.name, *each.bbox) for each in p.objects.values()] for p in pictures
        }
    return result


def expected(truth):
    return {
        split: {
            str(folder / name): [(CLASSES[k], *map(float, box)) for k, *box in boxes]
            for name, boxes in part.items()
        }
        for split, (folder, part) in truth.items()
    }
