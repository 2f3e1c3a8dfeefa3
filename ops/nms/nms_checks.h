// Checks that the CPU and the CUDA kernel of nms share.
#pragma once

#include "../common/argument_checks.h"

namespace dcnzoo {

inline void check_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t offset) {
  check_floating(boxes, "nms: boxes");
  check(boxes.dim() == 2 && boxes.size(1) == 4, "nms: boxes: expected shape (N, 4), got ",
        shape_text(sizes_of(boxes)));
  check_scores("nms", boxes, scores);
  check(iou_threshold >= 0 && iou_threshold <= 1, "nms: iou_threshold: expected a number from 0 to 1, got ",
        iou_threshold);
  check(offset == 0 || offset == 1, "nms: offset: expected 0 or 1, got ", offset);
}

}  // namespace dcnzoo
