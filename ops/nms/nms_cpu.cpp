#include "nms_cpu_kernel.h"
#include "nms_math.h"
#include "nms_checks.h"

namespace dcnzoo {
namespace {

template <typename T>
Tensor nms_of(const Tensor& boxes, const Tensor& order, T threshold, T offset) {
  const int64_t count = boxes.size(0);
  const T* box = boxes.const_data_ptr<T>();
  const int64_t* rank = order.const_data_ptr<int64_t>();
  std::vector<T> sorted(5 * count);
  T* field[5];
  for (int f = 0; f < 5; ++f) field[f] = sorted.data() + f * count;
  for (int64_t i = 0; i < count; ++i) {
    const T* from = box + 4 * rank[i];
    for (int f = 0; f < 4; ++f) field[f][i] = from[f];
    field[4][i] = area_of(Box<T>{from[0], from[1], from[2], from[3]}, offset);
  }
  std::vector<IntegerOf<T>> suppressed(count);
  const auto suppress = nms_kernels_dispatched().of<T>().suppress;
  suppress({field[0], field[1], field[2], field[3], field[4], count}, threshold, offset, suppressed.data());
  return kept_of(order, suppressed);
}

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t offset) {
  check_nms(boxes, scores, iou_threshold, offset);
  const Tensor values = contiguous_as(boxes, accumulate_type(boxes.scalar_type()));
  const Tensor order = descending_order(scores);
  return is_double(values) ? nms_of<double>(values, order, iou_threshold, double(offset))
                           : nms_of<float>(values, order, float(iou_threshold), float(offset));
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) { m.impl("nms", TORCH_BOX(&dcnzoo::nms_cpu)); }
