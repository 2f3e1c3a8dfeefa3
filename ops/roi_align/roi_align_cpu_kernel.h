// What roi_align_cpu.cpp (torch: checks, tables, threads) asks of roi_align_cpu_kernel.cpp (no torch:
// arithmetic, one copy per instruction set).
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"

namespace dcnzoo {

// A pixel's share, along one axis, in the average over a bin.
template <typename T>
struct RoiShare {
  int64_t pixel;
  T weight;
};

// An average is separable: bin (i, j) of a channel is the sum of y share · x share · pixel.
template <typename T>
struct RoiAverage {
  const RoiShare<T>*const *y, *const *x;  // bin i's shares are [y[i], y[i + 1])
  int64_t output_h, output_w;
  int64_t width, pixels;  // of a channel's map
  int64_t first, last;    // the columns that have an x share
  T count;                // what the sum is divided by
  T* row;                 // scratch, [width]
};

template <typename T>
struct RoiAlignKernels {
  // output: [channels][output_h][output_w], maps: [channels][pixels]; gradients likewise
  void (*forward)(const RoiAverage<T>&, const T* maps, int64_t channels, T* output);
  void (*backward)(const RoiAverage<T>&, const T* grad_output, int64_t channels, T* grad_maps);
};

DCNZOO_DECLARE_KERNELS(RoiAlignKernels<float>, roi_align_kernels_float)
DCNZOO_DECLARE_KERNELS(RoiAlignKernels<double>, roi_align_kernels_double)

}  // namespace dcnzoo
