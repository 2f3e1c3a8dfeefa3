"""The losses of MMDetection's heads, by what they are about."""

import re
from collections import defaultdict
from collections.abc import Mapping

# by a word in the name of a loss; the first that fits
_WORDS = {
    "mask loss": "mask|dice|semantic",
    "class loss": "cls|conf|obj|heatmap",
    "box loss": "bbox|iou|l1|dfl|xy|wh|off|centerness|reg",
}
PARTS = ("class loss", "box loss", "mask loss")


def loss_parts(losses: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of the losses of classes, boxes and masks; other values are left out."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name, loss in losses.items():
        part = next((part for part, words in _WORDS.items() if re.search(words, name)), None)
        if "loss" in name and part:
            sums[part] += loss
    return {part: sums[part] for part in PARTS if part in sums}
