"""``dcnzoo train``: ``tools/train.py``."""

from dcnzoo.cli import door

command = door("train", "train", "Train a detector: CONFIG.")
