// Checks that the CPU and the CUDA kernel of nms share.
#pragma once

#include "../common/argument_checks.h"

namespace dcnzoo {

inline void check_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t offset) {
  const ArgumentChecks checks{"nms", boxes};
  checks.tensor("boxes", boxes, {kAny, 4}, Type::floating);
  checks.tensor("scores", scores, {boxes.size(0)}, Type::floating);
  check(iou_threshold >= 0 && iou_threshold <= 1, "nms: iou_threshold: expected a number from 0 to 1, got ",
        iou_threshold);
  check(offset == 0 || offset == 1, "nms: offset: expected 0 or 1, got ", offset);
}

}  // namespace dcnzoo
