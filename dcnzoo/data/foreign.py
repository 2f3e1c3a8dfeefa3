"""Formats of annotations that are not read: how to recognise them, and how to get one that is."""

import re
from pathlib import Path
from typing import NamedTuple

from dcnzoo.data.splits import Tree
from dcnzoo.data.voc import is_voc

_HEAD = 65_536  # bytes in which a format is recognised


class Foreign(NamedTuple):
    """A format that is not read.

    Attributes:
        name: of the tool or format.
        endings: of its files.
        signature: a pattern in the first bytes, or in the file's name if they are not text.
        remedy: how to get a format that is read.
    """

    name: str
    endings: str
    signature: str
    remedy: str


_COCO, _DATUMARO = "export as COCO", "datum convert -i FOLDER -f coco (Datumaro)"
_BY_PROGRAM = "write a COCO file from it, by the package datasets or by pandas"
FOREIGN = [
    Foreign(*row)
    for row in (
        (
            "Label Studio's JSON",
            ".json",
            r'"from_name"|"original_width"',
            "export as COCO or YOLO with images",
        ),
        ("CVAT for images", ".xml", r"<annotations>[\s\S]*<(image|track) ", "export the task as COCO 1.0"),
        ("LabelMe 3.0 (XML)", ".xml", r"<annotation>[\s\S]*<polygon>", f"import it into CVAT and {_COCO}"),
        ("Supervisely", ".json", r'"classTitle"', "export with the app Export to COCO"),
        ("Labelbox", ".json .ndjson", r'"data_row"|"Labeled Data"', "Labelbox's COCO converter"),
        (
            "Darwin (V7)",
            ".json",
            r'"bounding_box"[\s\S]*"(slot_names|lanes|slots)"|"darwin',
            "export as COCO",
        ),
        ("CreateML", ".json", r'"coordinates"\s*:\s*\{', f"in Roboflow, {_COCO}"),
        (
            "Datumaro",
            ".json",
            r'"(dm_format_version|label_categories)"|"categories"\s*:\s*\{\s*"label"',
            _DATUMARO,
        ),
        ("BDD100K", ".json", r'"box2d"', "python -m bdd100k.label.to_coco"),
        ("SuperAnnotate", ".json", r'"className"', "superannotate.export_annotation with COCO"),
        ("Kili", ".json", r'"jsonResponse"', "project.export with fmt=coco"),
        ("Hasty", ".json", r'"(export_format_version|image_status)"', "export as COCO"),
        (
            "FiftyOne",
            ".json",
            r'"_cls"\s*:\s*"(Detection|Polyline)',
            "dataset.export with COCODetectionDataset",
        ),
        ("MMDetection's data_list", ".json", r'"data_list"', "write the COCO file from which it was made"),
        ("Detectron2's dicts", ".json", r'"bbox_mode"', "detectron2.data.datasets.convert_to_coco_json"),
        (
            "Cityscapes",
            ".json",
            r'"imgHeight"[\s\S]*"polygon"',
            "tools/dataset_converters/cityscapes.py of MMDetection",
        ),
        (
            "COCO's results, predictions",
            ".json",
            r'^\s*\[\s*\{[^{}]*"image_id"[^{}]*"score"',
            "they are no annotations",
        ),
        (
            "xView and other GeoJSON",
            ".json .geojson",
            r'"FeatureCollection"',
            "solaris.data.coco.geojson2coco",
        ),
        ("Hugging Face's metadata.jsonl", ".jsonl", r'"file_name"', _BY_PROGRAM),
        ("JSON lines", ".jsonl .ndjson", r'"(bbox|boxes|objects|annotations)"', _BY_PROGRAM),
        ("odgt (CrowdHuman)", ".odgt", r'"gtboxes"', "crowdhuman2coco.py of MMTracking"),
        (
            "OpenImages' csv",
            ".csv",
            r"ImageID,(Source,)?LabelName",
            "import it into FiftyOne and export COCO",
        ),
        ("VIA's csv", ".csv", r"region_shape_attributes", "in VIA, export the annotations as JSON"),
        (
            "csv of Roboflow, TensorFlow or Kaggle",
            ".csv .tsv",
            r"(?i)^\W*(filename|file_name|image|image_id|image_name|path)\W[^\n]*(xmin|x_?1|bbox|width|label|class)",
            f"in Roboflow, {_COCO}; or with pandas, a COCO file",
        ),
        (
            "csv of RetinaNet",
            ".csv",
            r"(?i)^[^\n,]+\.(jpe?g|png|bmp|tiff?),-?[\d.]*,-?[\d.]*,-?[\d.]*,-?[\d.]*,",
            f"with pandas, a COCO file; or in Roboflow, {_COCO}",
        ),
        ("MOT", ".txt", r"^\d+,-?\d+,(-?[\d.]+,){6}", f"in CVAT, import MOT 1.1 and {_COCO}"),
        (
            "VisDrone",
            ".txt",
            r"^(-?\d+,){7}-?\d+,?\s",
            "VisDrone.yaml of Ultralytics makes YOLO of it",
        ),
        (
            "KITTI",
            ".txt",
            r"^[A-Za-z_]+ -?[\d.]+ -?\d+ (-?[\d.]+ ){11}-?[\d.]+",
            _DATUMARO,
        ),
        (
            "DOTA",
            ".txt",
            r"^(imagesource:|gsd:|(-?[\d.]+ ){8}[A-Za-z-]+ \d)",
            "upright boxes by DOTA_devkit, then COCO",
        ),
        ("WIDER FACE", ".txt", r"^\S+\.jpe?g\s+\d+\s+(-?\d+ ){4}", _DATUMARO),
        (
            "Pascal VOC's segmentation or another MATLAB file",
            ".mat",
            "",
            "export boxes as Pascal VOC or COCO",
        ),
        ("TFRecord", ".tfrecord .record", "", f"in Roboflow, {_COCO}; or datum (Datumaro)"),
        ("LMDB or Parquet", ".mdb .parquet .arrow", "", "export pictures and a COCO file"),
        ("an archive", ".zip .tar .gz .tgz .7z .rar .bz2 .xz", "", "unpack it"),
    )
]


def named_format(file: Path) -> str:
    """Return the name of a file's format that is not read, with a remedy; empty if it is not known."""
    head = b""
    for row in FOREIGN:
        if file.suffix.lower() not in row.endings.split():
            continue
        if row.signature and not head:
            with open(file, "rb") as opened:
                head = opened.read(_HEAD).replace(b"\0", b"").removeprefix(b"\xef\xbb\xbf")
        if re.search(
            row.signature, head.decode(errors="replace"), re.MULTILINE if file.suffix == ".txt" else 0
        ):
            return f"{row.name} is not read: {row.remedy}"
    return ""


def named_formats(tree: Tree, binary: bool = False) -> dict[Path, str]:
    """Return the files below a folder in formats that are not read, with what :func:`named_format` says.

    Args:
        binary: also archives and other files that may be anything.
    """
    endings = {ending for row in FOREIGN for ending in row.endings.split() if row.signature or binary}
    texts = {}
    for file in tree.ending(*endings):
        if file in tree.damaged:
            texts[file] = f"it cannot be read: {tree.damaged[file]}"
        elif not (file.suffix.lower() == ".xml" and is_voc(file)) and (text := named_format(file)):
            texts[file] = text
    return texts
