from mmdet.registry import DATASETS
from mmengine.dist import barrier, is_main_process

from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, make_shapes
from dcnzoo.openmmlab.datasets.coco import CocoDataset


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The generated shapes (see :mod:`dcnzoo.data.shapes`) as a COCO data set.

    ``shapes`` contains the fields of :class:`ShapesSpec`. If given, the data set is generated in
    ``data_root`` unless it is there already. Without it, the existing files are read.
    """

    METAINFO = {"classes": CLASSES, "palette": PALETTE}

    def __init__(self, *args, data_root: str, shapes: dict | None = None, **kwargs) -> None:
        if shapes is not None:
            if is_main_process():
                make_shapes(data_root, ShapesSpec(**shapes))
            barrier()
        super().__init__(*args, data_root=data_root, **kwargs)
