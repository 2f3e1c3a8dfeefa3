"""Download COCO: ``python tools/download_dataset.py --unzip``.

Broken downloads go on where they stopped. What is there already is not asked for again.
"""

import argparse
from pathlib import Path

from dcnzoo.utils.archive import unpack
from dcnzoo.utils.errors import UserError, command
from dcnzoo.utils.fetch import fetch

HOST = "http://images.cocodataset.org"
# data set → part → address and, where it is known, checksum
DATASETS = {
    "coco2017": {
        "annotations": (
            f"{HOST}/annotations/annotations_trainval2017.zip",
            "sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",
        ),
        "val2017": (f"{HOST}/zips/val2017.zip", "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41"),
        "train2017": (f"{HOST}/zips/train2017.zip", "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5"),
        "test2017": (f"{HOST}/zips/test2017.zip", "md5:77ad2c53ac5d0aea611d422c0938fb35"),
        "unlabeled2017": (f"{HOST}/zips/unlabeled2017.zip", None),
        "stuff_annotations": (
            f"{HOST}/annotations/stuff_annotations_trainval2017.zip",
            "sha1:e7aa0f7515c07e23873a9f71d9095b06bcea3e12",
        ),
        "panoptic_annotations": (f"{HOST}/annotations/panoptic_annotations_trainval2017.zip", None),
        "image_info_test2017": (f"{HOST}/annotations/image_info_test2017.zip", None),
    },
}
# what MMDetection's detection and instance segmentation configs read
USUAL = ("annotations", "val2017", "train2017")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset-name", default="coco2017", help=f"one of: {', '.join(DATASETS)}")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=USUAL,
        metavar="PART",
        help=f"of {', '.join(DATASETS['coco2017'])} (default: {' '.join(USUAL)})",
    )
    parser.add_argument("--save-dir", type=Path, default="data/coco", help="default: data/coco")
    parser.add_argument("--unzip", action="store_true", help="unpack the archives")
    parser.add_argument("--delete", action="store_true", help="remove each archive when it is unpacked")
    parser.add_argument("--list", action="store_true", help="print the addresses, download nothing")
    return parser.parse_args()


def choose(name: str, parts: list[str]) -> list[tuple[str, str | None]]:
    if name not in DATASETS:
        raise UserError(f"--dataset-name: expected one of {', '.join(DATASETS)}, got {name}")
    known = DATASETS[name]
    for part in parts:
        if part not in known:
            raise UserError(f"--parts: expected some of {', '.join(known)}, got {part}")
    return [known[part] for part in parts]


@command
def main() -> None:
    args = parse_args()
    if args.delete and not args.unzip:
        raise UserError("--delete: expected --unzip with it: what is left else is nothing")
    for url, checksum in choose(args.dataset_name, args.parts):
        if args.list:
            print(url, checksum or "")
            continue
        # says of an archive that was deleted that its content is there
        unpacked = args.save_dir / f".{Path(url).name}.unpacked"
        if unpacked.exists() and args.unzip:
            print(f"{args.save_dir}: has {Path(url).name} already")
            continue
        archive = fetch(url, args.save_dir, checksum=checksum)
        print(archive if checksum else f"{archive} (no checksum is known)", flush=True)
        if args.unzip:
            print(f"{args.save_dir}: {unpack(archive, args.save_dir)} files", flush=True)
            unpacked.touch()
        if args.delete:
            archive.unlink()


if __name__ == "__main__":
    main()
