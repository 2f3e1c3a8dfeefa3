from mmdet.registry import DATASETS
from mmengine.dist import barrier, is_main_process

from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, make_shapes
from dcnzoo.openmmlab.datasets.coco import CocoDataset


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The generated shapes (see :mod:`dcnzoo.data.shapes`) as a COCO data set.

    ``shapes`` holds the fields of :class:`ShapesSpec`. With it, ``data_root`` is filled before it
    is read whenever it does not hold exactly that data set; without it, what is there is read.
    """

    METAINFO = {"classes": CLASSES, "palette": PALETTE}

    def __init__(self, *args, data_root: str, shapes: dict | None = None, **kwargs) -> None:
        if shapes is not None:
            if is_main_process():
                make_shapes(data_root, ShapesSpec(**shapes))
            barrier()
        super().__init__(*args, data_root=data_root, **kwargs)
