#include "../common/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "box_iou_rotated(Tensor boxes1, Tensor boxes2, bool over_first=False, bool aligned=False, "
      "bool clockwise=True) -> Tensor");
  m.def("nms_rotated(Tensor boxes, Tensor scores, float iou_threshold, bool clockwise=True) -> Tensor");
}
