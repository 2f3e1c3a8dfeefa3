// Checks that the CPU and the CUDA kernel of nms share.
#pragma once

#include <array>

#include "../common/tensor.h"

namespace dcnzoo {

inline void check_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t offset) {
  const auto check_argument = [&](const char* name, const Tensor& tensor) {
    check(is_floating(tensor.scalar_type()), "nms: ", name,
          ": expected float64, float32, bfloat16 or float16, got ", dtype_name(tensor.scalar_type()));
  };
  check_argument("boxes", boxes);
  check_argument("scores", scores);
  check(boxes.dim() == 2 && boxes.size(1) == 4, "nms: boxes: expected shape (N, 4), got ",
        shape_text(sizes_of(boxes)));
  check(scores.dim() == 1 && scores.size(0) == boxes.size(0), "nms: scores: expected shape (", boxes.size(0),
        ",), one per box, got ", shape_text(sizes_of(scores)));
  check(same_device(boxes, scores), "nms: scores: expected device ", device_name(boxes), " like boxes, got ",
        device_name(scores));
  check(iou_threshold >= 0 && iou_threshold <= 1, "nms: iou_threshold: expected a number from 0 to 1, got ",
        iou_threshold);
  check(offset == 0 || offset == 1, "nms: offset: expected 0 or 1, got ", offset);
}

// The boxes in the type in which their overlaps are computed.
inline Tensor contiguous_boxes(const Tensor& boxes) {
  return torch::stable::contiguous(torch::stable::to(boxes, accumulate_type(boxes.scalar_type())));
}

}  // namespace dcnzoo
