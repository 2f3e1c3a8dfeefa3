"""Runtimes of exported files: each module has ``open_file(path, device, threads, precision)``."""

from collections.abc import Callable

import numpy as np

IMG_SHAPE = "img_shape"  # input of an exported file: the sizes of the pictures
BOX_MASKS = "box_masks"  # output of an exported file: masks at the resolution of the mask head
# outputs of Mask2Former: mask logits at the resolution of the mask head, and scores of the classes alone
MASK_LOGITS, CLASS_SCORES = "mask_logits", "class_scores"

Shape = tuple[int | None, ...]  # None: any size
# inputs, names of the outputs, metadata, a function that runs the model, and the device that it uses
Opened = tuple[
    dict[str, Shape], list[str], dict[str, str], Callable[[dict[str, np.ndarray]], list[np.ndarray]], str
]
