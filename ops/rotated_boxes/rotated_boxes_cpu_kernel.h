// The interface of the CPU kernels of rotated boxes.
#pragma once

#include "../common/cpu_capability.h"
#include "rotated_boxes_math.h"

namespace dcnzoo {

// The circles around boxes, one array per field. They are enough to rule out most pairs of boxes.
struct BoxCircles {
  const double *x, *y, *radius, *area;
};

// Pairs whose overlap is computed together, one array per field of RotatedBox.
constexpr int64_t kPairs = 64;
struct RotatedPairs {
  double first[kRotatedBoxFields][kPairs], second[kRotatedBoxFields][kPairs];
};

struct RotatedBoxKernels {
  // Writes the indices in [begin, end) of the boxes that may overlap `box`, and returns their number. A box is skipped
  // if the smaller of the two areas is less than `least_ratio` times the larger one.
  int64_t (*find_near)(const RotatedBox& box, BoxCircles circles, int64_t begin, int64_t end,
                       double least_ratio, int64_t* places);
  // Writes rotated_overlap of the first `count` pairs; the values after them are unspecified.
  void (*overlaps)(const RotatedPairs& pairs, int64_t count, bool over_first, double* ratios);
};

DCNZOO_DECLARE_KERNELS(RotatedBoxKernels, rotated_box_kernels)

}  // namespace dcnzoo
