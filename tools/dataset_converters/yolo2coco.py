"""``dcnzoo data convert yolo``."""

from dcnzoo.cli import main

if __name__ == "__main__":
    main("data", "convert", "yolo")
