#include "../common/tensor.h"

#include "nms_checks.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold, int offset=0) -> Tensor");
  m.def("_check_nms(Tensor boxes, Tensor scores, float iou_threshold, int offset=0) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_check_nms", TORCH_BOX(&dcnzoo::check_nms));
}
