#include "../common/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold, int offset=0) -> Tensor");
}
