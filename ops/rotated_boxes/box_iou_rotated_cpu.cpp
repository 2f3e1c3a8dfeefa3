#include "rotated_boxes_cpu.h"

namespace dcnzoo {
namespace {

constexpr int64_t kColumns = 1024;  // pairs of a row per task

template <typename T>
void overlaps_of_all_pairs(RotatedBoxList& rows, RotatedBoxList& columns, bool over_first, T* ratios) {
  const BoxCircles circles = columns.circles();
  const int64_t width = columns.size(), blocks = ceil_div(width, kColumns);
  const auto find_near = rotated_box_kernels_dispatched().find_near;
  parallel_for(rows.size() * blocks, 32, [&](int64_t begin, int64_t end) {
    const auto store = [&](int64_t place, double ratio) { ratios[place] = T(ratio); };
    PairQueue<decltype(store)> queue(over_first, store);
    int64_t near[kColumns];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / blocks, first = task % blocks * kColumns;
      const int64_t last = std::min(first + kColumns, width);
      std::fill(ratios + row * width + first, ratios + row * width + last, T(0));
      const int64_t count = find_near(rows[row], circles, first, last, 0, near);
      for (int64_t i = 0; i < count; ++i) queue.add(rows[row], columns[near[i]], row * width + near[i]);
    }
    queue.flush();
  });
}

template <typename T>
void overlaps_of_aligned_pairs(const RotatedBoxList& boxes, const RotatedBoxList& others, bool over_first,
                               T* ratios) {
  parallel_for(boxes.size(), 1024, [&](int64_t begin, int64_t end) {
    const auto store = [&](int64_t place, double ratio) { ratios[place] = T(ratio); };
    PairQueue<decltype(store)> queue(over_first, store);
    for (int64_t i = begin; i < end; ++i) queue.add(boxes[i], others[i], i);
    queue.flush();
  });
}

template <typename T>
void overlaps(RotatedBoxList& boxes, RotatedBoxList& others, bool over_first, bool aligned, T* ratios) {
  if (aligned)
    overlaps_of_aligned_pairs(boxes, others, over_first, ratios);
  else
    overlaps_of_all_pairs(boxes, others, over_first, ratios);
}

Tensor box_iou_rotated_cpu(const Tensor& boxes1, const Tensor& boxes2, bool over_first, bool aligned,
                           bool clockwise) {
  check_box_iou_rotated(boxes1, boxes2, aligned);
  const ScalarType type = boxes1.scalar_type(), wide = accumulate_type(type);
  Tensor ratios = torch::stable::new_empty(boxes1, overlap_sizes(boxes1, boxes2, aligned), wide);
  RotatedBoxList boxes(boxes1, clockwise), others(boxes2, clockwise);
  if (wide == ScalarType::Double)
    overlaps(boxes, others, over_first, aligned, ratios.mutable_data_ptr<double>());
  else
    overlaps(boxes, others, over_first, aligned, ratios.mutable_data_ptr<float>());
  return torch::stable::to(ratios, type);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("box_iou_rotated", TORCH_BOX(&dcnzoo::box_iou_rotated_cpu));
}
