"""Formats of annotations that are not read: how to recognise them, and how to get one that is."""

import re
from pathlib import Path
from typing import NamedTuple

from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.splits import Tree
from dcnzoo.data.voc import is_voc, parse_xml

_HEAD = 65_536  # bytes in which a format is recognised


class Foreign(NamedTuple):
    """A format that is not read.

    Attributes:
        name: of the tool or format.
        endings: of its files.
        signature: a pattern in the first bytes; empty for files that are not text.
        remedy: how to get a format that is read.
    """

    name: str
    endings: str
    signature: str = ""
    remedy: str = "export as COCO"

    def __str__(self) -> str:
        return f"{self.name} is not read: {self.remedy}"


_DATUMARO = "datum convert -i FOLDER -f coco (Datumaro)"
_PROGRAM = "write a COCO file from it, with pandas or the package datasets"
_ROBOFLOW = "import it into Roboflow or FiftyOne and export COCO"
RESULTS = Foreign(
    "COCO's results", ".json", r'^\s*\[\s*\{[^{}]*"image_id"[^{}]*"score"', "these are predictions"
)
FOREIGN = [
    row if isinstance(row, Foreign) else Foreign(*row)
    for row in (
        ("Label Studio's JSON", ".json", r'"from_name"|"original_width"', "export COCO or YOLO with images"),
        ("CVAT for images", ".xml", r"<annotations>[\s\S]*<(image|track) ", "export the task as COCO 1.0"),
        ("LabelMe 3.0 (XML)", ".xml", r"<annotation>[\s\S]*<polygon>", "import it into CVAT, export COCO"),
        ("Supervisely", ".json", r'"classTitle"', "export with the app Export to COCO"),
        ("Labelbox", ".json .ndjson", r'"data_row"|"Labeled Data"', "Labelbox's COCO converter"),
        ("Darwin (V7)", ".json", r'"bounding_box"[\s\S]*"(slot_names|lanes|slots)"|"darwin'),
        ("CreateML", ".json", r'"coordinates"\s*:\s*\{', _ROBOFLOW),
        (
            "Datumaro",
            ".json",
            r'"(dm_format_version|label_categories)"|"categories": *\{\s*"label"',
            _DATUMARO,
        ),
        ("BDD100K", ".json", r'"box2d"', "python -m bdd100k.label.to_coco"),
        ("SuperAnnotate", ".json", r'"className"', "superannotate.export_annotation with COCO"),
        ("Kili", ".json", r'"jsonResponse"', "project.export with fmt=coco"),
        ("Hasty", ".json", r'"(export_format_version|image_status)"'),
        ("FiftyOne", ".json", r'"_cls"\s*:\s*"(Detection|Polyline)', "export a COCODetectionDataset"),
        ("MMDetection's data_list", ".json", r'"data_list"', "use the COCO file from which it was made"),
        ("Detectron2's dicts", ".json", r'"bbox_mode"', "detectron2.data.datasets.convert_to_coco_json"),
        ("Cityscapes", ".json", r'"imgHeight"[\s\S]*"polygon"', "MMDetection's converter cityscapes.py"),
        RESULTS,
        (
            "xView and other GeoJSON",
            ".json .geojson",
            r'"FeatureCollection"',
            "solaris.data.coco.geojson2coco",
        ),
        ("Hugging Face's metadata.jsonl", ".jsonl", r'"file_name"', _PROGRAM),
        ("JSON lines", ".jsonl .ndjson", r'"(bbox|boxes|objects|annotations)"', _PROGRAM),
        ("odgt (CrowdHuman)", ".odgt", r'"gtboxes"', "crowdhuman2coco.py of MMTracking"),
        ("OpenImages' csv", ".csv", r"ImageID,(Source,)?LabelName", _ROBOFLOW),
        ("VIA's csv", ".csv", r"region_shape_attributes", "in VIA, export the annotations as JSON"),
        (
            "csv of Roboflow, TensorFlow or Kaggle",
            ".csv .tsv",
            r"(?i)^\W*(filename|file_name|image|image_id|image_name|path)\W[^\n]*(xmin|x_?1|bbox|width|label|class)",
            _ROBOFLOW,
        ),
        ("csv of RetinaNet", ".csv", r"(?i)^[^\n,]+\.(jpe?g|png|bmp|tiff?)(,-?[\d.]*){4},", _PROGRAM),
        ("MOT", ".txt", r"^\d+,-?\d+,(-?[\d.]+,){6}", "in CVAT, import MOT 1.1 and export COCO"),
        ("VisDrone", ".txt", r"^(-?\d+,){7}-?\d+,?\s", "VisDrone.yaml of Ultralytics makes YOLO of it"),
        ("KITTI", ".txt", r"^[A-Za-z_]+ -?[\d.]+ -?\d+ (-?[\d.]+ ){11}-?[\d.]+", _DATUMARO),
        ("DOTA", ".txt", r"^(imagesource:|gsd:|(-?[\d.]+ ){8}[A-Za-z-]+ \d)", "upright boxes by DOTA_devkit"),
        ("WIDER FACE", ".txt", r"^\S+\.jpe?g\s+\d+\s+(-?\d+ ){4}", _DATUMARO),
        ("VOC's segmentation or another MATLAB file", ".mat", "", "export boxes as Pascal VOC or COCO"),
        ("TFRecord", ".tfrecord .record", "", f"{_ROBOFLOW}; or {_DATUMARO}"),
        ("LMDB or Parquet", ".mdb .parquet .arrow", "", "export pictures and a COCO file"),
        ("an archive", ".zip .tar .gz .tgz .7z .rar .bz2 .xz", "", "unpack it"),
    )
]


def named_format(file: Path) -> Foreign | None:
    """Return the format of a file that is not read; None if it is not known."""
    rows, head = [row for row in FOREIGN if file.suffix.lower() in row.endings.split()], ""
    if any(row.signature for row in rows) and not is_voc(file):
        with open(file, "rb") as opened:
            content = opened.read(_HEAD).replace(b"\0", b"").removeprefix(b"\xef\xbb\xbf")
        head = content.decode(errors="replace")
    flags = re.MULTILINE if file.suffix.lower() == ".txt" else 0
    return next((row for row in rows if re.search(row.signature, head, flags)), None)


def named_formats(tree: Tree, binary: bool = False) -> dict[Path, Foreign | str]:
    """Return the files below a folder that are not read: their format, or why they cannot be.

    Args:
        binary: also archives and other files that may be anything.
    """
    endings = {ending for row in FOREIGN for ending in row.endings.split() if row.signature or binary}
    result: dict[Path, Foreign | str] = {
        file: f"it cannot be read: {text}" for file, text in tree.damaged.items()
    }
    for file in tree.ending(*endings):
        if file not in result and (row := named_format(file)):
            result[file] = row
        elif file.suffix.lower() == ".xml" and not is_voc(file):
            try:
                parse_xml(file)
            except InvalidAnnotation as error:
                result[file] = f"it cannot be read: {error}"
    return result
