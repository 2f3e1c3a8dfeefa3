"""LabelMe's JSON files to COCO's format: ``dcnzoo data convert labelme``."""

from dcnzoo.cli.data import labelme
from dcnzoo.utils.errors import command

main = command(labelme)

if __name__ == "__main__":
    main()
