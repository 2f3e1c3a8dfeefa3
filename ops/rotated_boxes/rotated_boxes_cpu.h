// Helpers that box_iou_rotated and nms_rotated share on the CPU.
#pragma once

#include "../common/parallel.h"
#include "rotated_boxes_checks.h"
#include "rotated_boxes_cpu_kernel.h"

namespace dcnzoo {

// Boxes in the layout that the kernels read, optionally reordered.
class RotatedBoxList {
 public:
  RotatedBoxList(const Tensor& boxes, bool clockwise, const int64_t* order = nullptr)
      : boxes_(boxes.size(0)), fields_(4 * boxes.size(0)) {
    const Tensor values = contiguous_as(boxes, ScalarType::Double);
    const double* value = values.const_data_ptr<double>();
    for (int64_t i = 0; i < size(); ++i) {
      const RotatedBox box = rotated_box(value + 5 * (order == nullptr ? i : order[i]), clockwise);
      boxes_[i] = box;
      field(0)[i] = box.x, field(1)[i] = box.y, field(2)[i] = box.radius, field(3)[i] = box.area;
    }
  }

  int64_t size() const { return int64_t(boxes_.size()); }
  const RotatedBox& operator[](int64_t i) const { return boxes_[i]; }
  BoxCircles circles() { return {field(0), field(1), field(2), field(3)}; }

 private:
  double* field(int f) { return fields_.data() + f * size(); }

  std::vector<RotatedBox> boxes_;
  std::vector<double> fields_;
};

// Collects pairs and computes their overlaps in batches of kPairs; then calls store(place, ratio) for each pair.
template <typename Store>
class PairQueue {
 public:
  PairQueue(bool over_first, const Store& store) : over_first_(over_first), store_(store) {}

  void add(const RotatedBox& first, const RotatedBox& second, int64_t place) {
    put(first, pairs_.first);
    put(second, pairs_.second);
    places_[count_++] = place;
    if (count_ == kPairs) flush();
  }

  void flush() {
    double ratios[kPairs];
    rotated_box_kernels_dispatched().overlaps(pairs_, count_, over_first_, ratios);
    for (int64_t i = 0; i < count_; ++i) store_(places_[i], ratios[i]);
    count_ = 0;
  }

 private:
  void put(const RotatedBox& box, double (&fields)[kRotatedBoxFields][kPairs]) {
    const double* values = &box.x;
    for (int f = 0; f < kRotatedBoxFields; ++f) fields[f][count_] = values[f];
  }

  RotatedPairs pairs_{};  // initialised, because the kernel also reads beyond the last pair
  int64_t places_[kPairs], count_ = 0;
  const bool over_first_;
  const Store& store_;
};

}  // namespace dcnzoo
