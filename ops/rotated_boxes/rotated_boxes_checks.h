// Checks that the CPU and the CUDA kernels of box_iou_rotated and nms_rotated share.
#pragma once

#include "../common/argument_checks.h"

namespace dcnzoo {

inline void check_rotated_boxes(const char* op, const char* name, const Tensor& boxes) {
  check_floating(boxes, op, ": ", name);
  check(boxes.dim() == 2 && boxes.size(1) == 5, op, ": ", name,
        ": expected shape (N, 5), each (x, y, width, height, angle), got ", shape_text(sizes_of(boxes)));
}

inline void check_box_iou_rotated(const Tensor& boxes1, const Tensor& boxes2, bool aligned) {
  constexpr const char* op = "box_iou_rotated";
  check_rotated_boxes(op, "boxes1", boxes1);
  check_rotated_boxes(op, "boxes2", boxes2);
  check(boxes1.scalar_type() == boxes2.scalar_type(), op, ": boxes2: expected ",
        dtype_name(boxes1.scalar_type()), " like boxes1, got ", dtype_name(boxes2.scalar_type()));
  check_device(boxes2, boxes1, " like boxes1", op, ": boxes2");
  check(!aligned || boxes1.size(0) == boxes2.size(0), op, ": boxes2: expected ", boxes1.size(0),
        " boxes like boxes1, with aligned=True, got ", boxes2.size(0));
}

inline void check_nms_rotated(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  constexpr const char* op = "nms_rotated";
  check_rotated_boxes(op, "boxes", boxes);
  check_scores(op, boxes, scores);
  // not below 0: mmcv's 0 on the CPU is the number before it
  check(iou_threshold <= 1, op, ": iou_threshold: expected at most 1, got ", iou_threshold);
}

inline std::vector<int64_t> overlap_sizes(const Tensor& boxes1, const Tensor& boxes2, bool aligned) {
  return aligned ? std::vector<int64_t>{boxes1.size(0)}
                 : std::vector<int64_t>{boxes1.size(0), boxes2.size(0)};
}

}  // namespace dcnzoo
