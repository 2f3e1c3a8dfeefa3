#include "../common/tensor.h"

#include "rotated_boxes_checks.h"

namespace dcnzoo {
namespace {

// The checks of the kernels, with the same messages, for kernels that are not written in C++.
void check_box_iou_rotated_arguments(const Tensor& boxes1, const Tensor& boxes2, bool, bool aligned, bool) {
  check_box_iou_rotated(boxes1, boxes2, aligned);
}

void check_nms_rotated_arguments(const Tensor& boxes, const Tensor& scores, double iou_threshold, bool) {
  check_nms_rotated(boxes, scores, iou_threshold);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "box_iou_rotated(Tensor boxes1, Tensor boxes2, bool over_first=False, bool aligned=False, "
      "bool clockwise=True) -> Tensor");
  m.def("nms_rotated(Tensor boxes, Tensor scores, float iou_threshold, bool clockwise=True) -> Tensor");
  m.def(
      "_check_box_iou_rotated(Tensor boxes1, Tensor boxes2, bool over_first=False, bool aligned=False, "
      "bool clockwise=True) -> ()");
  m.def("_check_nms_rotated(Tensor boxes, Tensor scores, float iou_threshold, bool clockwise=True) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_check_box_iou_rotated", TORCH_BOX(&dcnzoo::check_box_iou_rotated_arguments));
  m.impl("_check_nms_rotated", TORCH_BOX(&dcnzoo::check_nms_rotated_arguments));
}
