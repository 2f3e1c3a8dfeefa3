"""Pascal VOC's XML files to COCO's format: ``dcnzoo data convert voc``."""

from dcnzoo.cli.data import voc
from dcnzoo.utils.errors import command

main = command(voc)

if __name__ == "__main__":
    main()
