"""``dcnzoo bench``: ``tools/benchmark/ops.py``."""

from dcnzoo.cli import door

command = door("bench", "benchmark/ops", "Time the operators beside their rivals.")
