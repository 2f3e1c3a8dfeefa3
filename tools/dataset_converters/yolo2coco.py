"""YOLO's text files to COCO's format: ``dcnzoo data convert yolo``."""

from dcnzoo.cli.data import yolo
from dcnzoo.utils.errors import command

main = command(yolo)

if __name__ == "__main__":
    main()
