#include "rotated_boxes_cpu_kernel.h"

#include "../common/simd.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

int64_t find_near(const RotatedBox& box, BoxCircles circles, int64_t begin, int64_t end, double least_ratio,
                  int64_t* places) {
  constexpr int64_t kBlock = 64;
  const double *x = circles.x, *y = circles.y, *radius = circles.radius, *area = circles.area;
  const double x0 = box.x, y0 = box.y, radius0 = box.radius, area0 = box.area;
  int64_t count = 0, far[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t size = end - first < kBlock ? end - first : kBlock;
    for (int64_t k = 0; k < size; ++k) {
      const int64_t j = first + k;
      const int64_t apart = circles_apart(x[j] - x0, y[j] - y0, radius[j] + radius0) ? 1 : 0;
      const int64_t larger = area0 < least_ratio * area[j] ? 1 : 0;
      const int64_t smaller = area[j] < least_ratio * area0 ? 1 : 0;
      far[k] = apart | larger | smaller;
    }
    for (int64_t k = 0; k < size; ++k) {
      places[count] = first + k;
      count += 1 - far[k];
    }
  }
  return count;
}

// No early exit for pairs whose circles are disjoint: find_near has removed most of them.
void overlaps(const RotatedPairs& pairs, int64_t count, bool over_first, double* ratios) {
  constexpr int64_t kStep = kLanes<double>;
  static_assert(kPairs % kStep == 0);
  for (int64_t k = 0; k < count; k += kStep) {
    const auto box_at = [&](const double (&field)[kRotatedBoxFields][kPairs]) {
      return RotatedBoxOf<Vector<double>>{load(field[0] + k), load(field[1] + k), load(field[2] + k),
                                          load(field[3] + k), load(field[4] + k), load(field[5] + k),
                                          load(field[6] + k), load(field[7] + k)};
    };
    const auto a = box_at(pairs.first), b = box_at(pairs.second);
    store(ratios + k, overlap_ratio(a.area, b.area, shared_area(a, b), over_first));
  }
}

}  // namespace

const RotatedBoxKernels& rotated_box_kernels() {
  static constexpr RotatedBoxKernels kernels{find_near, overlaps};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
