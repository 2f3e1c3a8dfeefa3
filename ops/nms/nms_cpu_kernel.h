// The CPU kernel of nms: what the torch side hands over.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/cpu_capability.h"

namespace dcnzoo {

// One array per coordinate, so that a loop over boxes vectorises; sorted by descending score.
template <typename T>
struct BoxList {
  const T *x1, *y1, *x2, *y2, *area;
  int64_t count;
};

// As wide as the boxes' type: a narrower one would have to be packed in every step.
template <typename T>
using NmsFlag = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <typename T>
struct NmsKernels {
  // Writes 1 where a kept box before this one overlaps it, else 0.
  void (*suppress)(BoxList<T> boxes, T threshold, T offset, NmsFlag<T>* suppressed);
};

DCNZOO_DECLARE_KERNELS(KernelTable<NmsKernels>, nms_kernels)

}  // namespace dcnzoo
