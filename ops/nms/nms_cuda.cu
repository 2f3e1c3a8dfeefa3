#include "../common/suppression.cuh"
#include "nms_checks.h"
#include "nms_math.h"

namespace dcnzoo {
namespace {

// The caller's boxes, read in descending order of their scores.
template <typename T>
struct SortedBoxes {
  struct Entry {
    Box<T> box;
    T area;
  };
  const T* boxes;
  const int64_t* order;
  T threshold, offset;

  __device__ Entry at(int64_t index) const {
    const T* box = boxes + 4 * order[index];
    const Box<T> found{box[0], box[1], box[2], box[3]};
    return {found, area_of(found, offset)};
  }
  __device__ bool overlap(const Entry& a, const Entry& b) const {
    return overlaps(a.box, a.area, b.box, b.area, threshold, offset);
  }
};

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t offset) {
  check_nms(boxes, scores, iou_threshold, offset);
  const Tensor values = contiguous_as(boxes, accumulate_type(boxes.scalar_type()));
  const Tensor order = descending_order(scores);
  const auto suppress = [&](auto zero) {
    using T = decltype(zero);
    return suppress_in_order(
        SortedBoxes<T>{data_of<T>(values), data_of<int64_t>(order), T(iou_threshold), T(offset)}, order);
  };
  return is_double(values) ? suppress(double()) : suppress(float());
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) { m.impl("nms", TORCH_BOX(&dcnzoo::nms_cuda)); }
