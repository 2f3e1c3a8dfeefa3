"""``dcnzoo bench``."""

from dcnzoo.cli import main

if __name__ == "__main__":
    main("bench")
