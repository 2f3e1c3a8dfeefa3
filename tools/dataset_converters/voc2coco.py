"""``dcnzoo data convert voc``."""

from dcnzoo.cli import main

if __name__ == "__main__":
    main("data", "convert", "voc")
