"""``dcnzoo test``: ``tools/test.py``."""

from dcnzoo.cli import door

command = door("test", "test", "Evaluate a detector: CONFIG CHECKPOINT.")
