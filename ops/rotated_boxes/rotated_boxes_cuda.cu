#include "../common/suppression.cuh"
#include "rotated_boxes_checks.h"
#include "rotated_boxes_math.h"

namespace dcnzoo {
namespace {

// Converts boxes, in the order of `order` if it is not null.
__global__ void rotated_boxes_kernel(const double* values, const int64_t* order, int64_t count,
                                     bool clockwise, RotatedBox* boxes) {
  DCNZOO_FOR_EACH(i, count) boxes[i] = rotated_box(values + 5 * (order == nullptr ? i : order[i]), clockwise);
}

template <typename T>
__global__ void box_iou_rotated_kernel(const RotatedBox* boxes, const RotatedBox* others, int64_t width,
                                       int64_t count, bool over_first, bool aligned, T* ratios) {
  DCNZOO_FOR_EACH(i, count) {
    const int64_t row = aligned ? i : i / width, column = aligned ? i : i % width;
    ratios[i] = T(rotated_overlap(boxes[row], others[column], over_first));
  }
}

// [count, fields], one RotatedBox per row
Tensor launch_rotated_boxes(const Tensor& boxes, bool clockwise, const int64_t* order = nullptr) {
  const Tensor values = contiguous_as(boxes, ScalarType::Double);
  const int64_t count = boxes.size(0);
  const Tensor result = torch::stable::new_empty(values, {count, kRotatedBoxFields});
  if (count > 0)
    launch("rotated_boxes_kernel", rotated_boxes_kernel, blocks_for(count), kThreads, values,
           data_of<double>(values), order, count, clockwise, mutable_data_of<RotatedBox>(result));
  return result;
}

Tensor box_iou_rotated_cuda(const Tensor& boxes1, const Tensor& boxes2, bool over_first, bool aligned,
                            bool clockwise) {
  check_box_iou_rotated(boxes1, boxes2, aligned);
  const Tensor ratios = torch::stable::new_empty(boxes1, overlap_sizes(boxes1, boxes2, aligned));
  const int64_t count = ratios.numel();
  if (count == 0) return ratios;
  const Tensor boxes = launch_rotated_boxes(boxes1, clockwise);
  const Tensor others = launch_rotated_boxes(boxes2, clockwise);
  dispatch_floating(boxes1.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch("box_iou_rotated_kernel", box_iou_rotated_kernel<T>, blocks_for(count), kThreads, ratios,
           data_of<RotatedBox>(boxes), data_of<RotatedBox>(others), boxes2.size(0), count, over_first,
           aligned, mutable_data_of<T>(ratios));
  });
  return ratios;
}

// As on the CPU, an overlap is rounded to T before the comparison.
template <typename T>
struct SortedRotatedBoxes {
  using Entry = RotatedBox;
  const RotatedBox* boxes;
  T threshold;

  __device__ RotatedBox at(int64_t index) const { return boxes[index]; }
  __device__ bool overlap(const RotatedBox& a, const RotatedBox& b) const {
    return T(rotated_overlap(a, b, false)) > threshold;
  }
};

Tensor nms_rotated_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold, bool clockwise) {
  check_nms_rotated(boxes, scores, iou_threshold);
  const Tensor order = descending_order(scores);
  const Tensor sorted = launch_rotated_boxes(boxes, clockwise, data_of<int64_t>(order));
  const auto suppress = [&](auto zero) {
    using T = decltype(zero);
    return suppress_in_order(SortedRotatedBoxes<T>{data_of<RotatedBox>(sorted), T(iou_threshold)}, order);
  };
  return is_double(boxes) ? suppress(double()) : suppress(float());
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("box_iou_rotated", TORCH_BOX(&dcnzoo::box_iou_rotated_cuda));
  m.impl("nms_rotated", TORCH_BOX(&dcnzoo::nms_rotated_cuda));
}
