"""``dcnzoo explain``: ``tools/analysis/visualize_offsets.py``."""

from dcnzoo.cli import door

command = door("explain", "analysis/visualize_offsets", "Show where a detector samples: IMAGE --model NAME.")
