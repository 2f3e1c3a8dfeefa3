// The interface of the CPU kernel of nms.
#pragma once

#include "../common/cpu_capability.h"

namespace dcnzoo {

// One array per coordinate, so that a loop over boxes vectorises; sorted by descending score.
template <typename T>
struct BoxList {
  const T *x1, *y1, *x2, *y2, *area;
  int64_t count;
};

template <typename T>
struct NmsKernels {
  // Writes 1 for boxes that an earlier kept box overlaps, else 0. The flags are as wide as T, because a narrower type
  // would have to be converted in every step.
  void (*suppress)(BoxList<T> boxes, T threshold, T offset, IntegerOf<T>* suppressed);
};

DCNZOO_DECLARE_KERNELS(KernelTable<NmsKernels>, nms_kernels)

}  // namespace dcnzoo
