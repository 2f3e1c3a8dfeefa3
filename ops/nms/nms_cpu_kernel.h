// The CPU kernel of nms: what the torch side hands over.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"

namespace dcnzoo {

// One array per coordinate, so that a loop over boxes vectorises; sorted by descending score.
template <typename T>
struct BoxList {
  const T *x1, *y1, *x2, *y2, *area;
  int64_t count;
};

struct NmsKernels {
  // Writes 1 where a kept box before this one overlaps it, else 0. Flags are as wide as the boxes'
  // type: narrower ones would have to be packed in every step.
  void (*suppress_float)(BoxList<float> boxes, float threshold, float offset, int32_t* suppressed);
  void (*suppress_double)(BoxList<double> boxes, double threshold, double offset, int64_t* suppressed);
};

DCNZOO_DECLARE_KERNELS(NmsKernels, nms_kernels)

}  // namespace dcnzoo
