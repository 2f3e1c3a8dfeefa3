"""``dcnzoo infer``: ``tools/infer.py``."""

from dcnzoo.cli import door

command = door("infer", "infer", "Detect objects in images: IMAGE... --model NAME.")
