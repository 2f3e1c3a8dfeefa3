from mmdet.registry import DATASETS
from mmengine.dist import barrier, is_main_process

from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, make_shapes
from dcnzoo.openmmlab.datasets.coco import CocoDataset


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The generated shapes (see :mod:`dcnzoo.data.shapes`) as a COCO data set.

    ``shapes`` contains the fields of :class:`ShapesSpec`. If given, the data set is generated in
    ``data_root`` before it is first read, unless it is there already. Without it, existing files are read.
    """

    METAINFO = {"classes": CLASSES, "palette": PALETTE}

    def __init__(self, *args, shapes: dict | None = None, **kwargs) -> None:
        self.shapes = shapes
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        if self.shapes is not None:
            if is_main_process():
                make_shapes(self.data_root, ShapesSpec(**self.shapes))
            barrier()
        return super().load_data_list()
