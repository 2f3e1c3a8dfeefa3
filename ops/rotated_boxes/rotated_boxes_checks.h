// Checks that the CPU and the CUDA kernels of box_iou_rotated and nms_rotated share.
#pragma once

#include "../common/argument_checks.h"

namespace dcnzoo {

inline void check_box_iou_rotated(const Tensor& boxes1, const Tensor& boxes2, bool aligned) {
  const ArgumentChecks checks{"box_iou_rotated", boxes1};
  checks.tensor("boxes1", boxes1, {kAny, 5}, Type::floating);
  checks.tensor("boxes2", boxes2, {aligned ? Size(boxes1.size(0)) : kAny, 5});
}

inline void check_nms_rotated(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  const ArgumentChecks checks{"nms_rotated", boxes};
  checks.tensor("boxes", boxes, {kAny, 5}, Type::floating);
  checks.tensor("scores", scores, {boxes.size(0)}, Type::floating);
  // not below 0: mmcv's 0 on the CPU is the number before it
  check(iou_threshold <= 1, "nms_rotated: iou_threshold: expected at most 1, got ", iou_threshold);
}

inline std::vector<int64_t> overlap_sizes(const Tensor& boxes1, const Tensor& boxes2, bool aligned) {
  return aligned ? std::vector<int64_t>{boxes1.size(0)}
                 : std::vector<int64_t>{boxes1.size(0), boxes2.size(0)};
}

}  // namespace dcnzoo
