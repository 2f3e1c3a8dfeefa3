#include <limits>

#include "../common/parallel.h"
#include "rotated_boxes_checks.h"
#include "rotated_boxes_cpu_kernel.h"

namespace dcnzoo {
namespace {

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

constexpr int64_t kRowPairs = 1024;  // pairs of a row per task

template <typename T>
void overlaps_of_all_pairs(RotatedBoxList& rows, RotatedBoxList& columns, bool over_first, T* ratios) {
  const BoxCircles circles = columns.circles();
  const int64_t width = columns.size(), blocks = ceil_div(width, kRowPairs);
  const auto find_near = rotated_box_kernels_dispatched().find_near;
  parallel_for(rows.size() * blocks, 32, [&](int64_t begin, int64_t end) {
    const auto store = [&](int64_t place, double ratio) { ratios[place] = T(ratio); };
    PairQueue<decltype(store)> queue(over_first, store);
    int64_t near[kRowPairs];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / blocks, first = task % blocks * kRowPairs;
      const int64_t last = std::min(first + kRowPairs, width);
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

Tensor box_iou_rotated_cpu(const Tensor& boxes1, const Tensor& boxes2, bool over_first, bool aligned,
                           bool clockwise) {
  check_box_iou_rotated(boxes1, boxes2, aligned);
  const ScalarType type = boxes1.scalar_type(), wide = accumulate_type(type);
  Tensor ratios = torch::stable::new_empty(boxes1, overlap_sizes(boxes1, boxes2, aligned), wide);
  RotatedBoxList boxes(boxes1, clockwise), others(boxes2, clockwise);
  const auto compute = [&](auto* to) {
    if (aligned)
      overlaps_of_aligned_pairs(boxes, others, over_first, to);
    else
      overlaps_of_all_pairs(boxes, others, over_first, to);
  };
  is_double(ratios) ? compute(ratios.mutable_data_ptr<double>()) : compute(ratios.mutable_data_ptr<float>());
  return torch::stable::to(ratios, type);
}

constexpr int64_t kBlock = 64;            // boxes that one thread processes in order, before the others
constexpr int64_t kColumns = 256;         // boxes with lower scores per task
constexpr int64_t kLeastPairs = 1 << 17;  // per thread; fewer take less time than waking the thread

// Greedy suppression. Overlaps and the threshold are compared after both are rounded to T: in float64, an overlap of
// 0.3 could exceed a threshold of 0.3 by its last bit.
template <typename T>
class Suppression {
 public:
  Suppression(RotatedBoxList& boxes, double threshold)
      : boxes_(boxes), circles_(boxes.circles()), threshold_(T(threshold)), suppressed_(boxes.size()) {}

  const std::vector<uint8_t>& suppress() {
    const int64_t count = boxes_.size();
    for (int64_t first = 0; first < count; first += kBlock) {
      const int64_t end = std::min(first + kBlock, count);
      std::vector<int64_t> kept;
      for (int64_t i = first; i < end; ++i) {
        if (suppressed_[i]) continue;
        kept.push_back(i);
        suppress(&kept.back(), 1, i + 1, end);
      }
      const int64_t pairs = kColumns * std::max<int64_t>(int64_t(kept.size()), 1);
      parallel_for(
          ceil_div(count - end, kColumns), ceil_div(kLeastPairs, pairs), [&](int64_t begin, int64_t finish) {
            for (int64_t block = begin; block < finish; ++block) {
              const int64_t column = end + block * kColumns;
              suppress(kept.data(), int64_t(kept.size()), column, std::min(column + kColumns, count));
            }
          });
    }
    return suppressed_;
  }

 private:
  // Marks the boxes in [begin, end), at most kColumns, that overlap a kept box.
  void suppress(const int64_t* kept, int64_t count, int64_t begin, int64_t end) {
    const auto store = [&](int64_t place, double ratio) { suppressed_[place] |= T(ratio) > threshold_; };
    PairQueue<decltype(store)> queue(false, store);
    const auto find_near = rotated_box_kernels_dispatched().find_near;
    // An overlap is at most the ratio of the areas. The margin is for the rounding to T.
    const double least_ratio = double(threshold_) * (1 - 1e-6);
    int64_t near[kColumns];
    for (int64_t i = 0; i < count; ++i) {
      const RotatedBox& box = boxes_[kept[i]];
      RotatedBox around = box;
      // With a threshold below zero, boxes that do not overlap are suppressed too.
      if (threshold_ < T(0)) around.radius = std::numeric_limits<double>::infinity();
      const int64_t found = find_near(around, circles_, begin, end, least_ratio, near);
      for (int64_t k = 0; k < found; ++k)
        if (!suppressed_[near[k]]) queue.add(box, boxes_[near[k]], near[k]);
    }
    queue.flush();
  }

  const RotatedBoxList& boxes_;
  const BoxCircles circles_;
  const T threshold_;
  std::vector<uint8_t> suppressed_;
};

Tensor nms_rotated_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold, bool clockwise) {
  check_nms_rotated(boxes, scores, iou_threshold);
  const Tensor order = descending_order(scores);
  RotatedBoxList sorted(boxes, clockwise, order.const_data_ptr<int64_t>());
  return is_double(boxes) ? kept_of(order, Suppression<double>(sorted, iou_threshold).suppress())
                          : kept_of(order, Suppression<float>(sorted, iou_threshold).suppress());
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("box_iou_rotated", TORCH_BOX(&dcnzoo::box_iou_rotated_cpu));
  m.impl("nms_rotated", TORCH_BOX(&dcnzoo::nms_rotated_cpu));
}
