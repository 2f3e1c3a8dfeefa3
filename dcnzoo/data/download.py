"""Data sets to download: addresses and checksums."""

HOST = "http://images.cocodataset.org"
# data set → part → URL and checksum (None if unknown)
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
