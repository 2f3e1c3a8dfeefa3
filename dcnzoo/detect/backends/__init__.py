"""Runtimes of exported files: each module has ``open_file(path, device, threads, precision)``."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

IMG_SHAPE = "img_shape"  # input of an exported file: the sizes of the pictures
BOX_MASKS = "box_masks"  # output of an exported file: masks at the resolution of the mask head
# outputs of Mask2Former: mask logits at the resolution of the mask head, and scores of the classes alone
MASK_LOGITS, CLASS_SCORES = "mask_logits", "class_scores"

Shape = tuple[int | None, ...]  # None: any size


@dataclass(frozen=True)
class Opened:
    """A file that a runtime has opened.

    Attributes:
        inputs: name → shape.
        run: computes the outputs, in the order of ``output_names``, from the inputs by name.
        device: the one that it uses, ``"cpu"`` or ``"cuda:0"``.
    """

    inputs: dict[str, Shape]
    output_names: list[str]
    metadata: dict[str, str]
    run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]
    device: str
