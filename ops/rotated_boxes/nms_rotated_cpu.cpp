#include <limits>

#include "rotated_boxes_cpu.h"

namespace dcnzoo {
namespace {

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

  const std::vector<uint8_t>& run() {
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
  const int64_t* rank = order.const_data_ptr<int64_t>();
  RotatedBoxList sorted(boxes, clockwise, rank);
  const auto keep = [&](auto suppression) {
    const std::vector<uint8_t>& suppressed = suppression.run();
    const int64_t kept = std::count(suppressed.begin(), suppressed.end(), 0);
    Tensor result = torch::stable::new_empty(order, {kept});
    int64_t* out = result.mutable_data_ptr<int64_t>();
    for (size_t i = 0; i < suppressed.size(); ++i)
      if (!suppressed[i]) *out++ = rank[i];
    return result;
  };
  return boxes.scalar_type() == ScalarType::Double ? keep(Suppression<double>(sorted, iou_threshold))
                                                   : keep(Suppression<float>(sorted, iou_threshold));
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) { m.impl("nms_rotated", TORCH_BOX(&dcnzoo::nms_rotated_cpu)); }
