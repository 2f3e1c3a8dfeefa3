"""``dcnzoo data convert labelme``."""

from dcnzoo.cli import main

if __name__ == "__main__":
    main("data", "convert", "labelme")
