// The interface of roi_align_cpu_kernel.cpp (no torch: arithmetic, compiled once per instruction set) to
// roi_align_cpu.cpp (torch: checks, tables, threads).
#pragma once

#include "../common/cpu_capability.h"
#include "../common/roi_shares.h"

namespace dcnzoo {

// An average is separable: bin (i, j) of a channel is the sum of y weight · x weight · pixel, divided by `count`.
template <typename T>
struct RoiAverage {
  RoiShareTable<T> y, x;
  int64_t output_h, output_w;
  int64_t width, pixels;  // of a channel's map
  int64_t first, last;    // the columns that any bin reads
  T count;
  T* row;  // scratch, [width]
};

// For a rotated RoI, a bin of a channel is the sum of weight · pixel over the bin's shares, divided by `count`.
template <typename T>
struct RotatedRoiAverage {
  RoiShareTable<T> shares;
  int64_t bins, pixels;  // of a channel's output and map
  T count;
};

template <typename T, typename Average>
struct RoiAverageKernels {
  // output: [channels][bins], maps: [channels][pixels]; gradients likewise
  void (*forward)(const Average&, const T* maps, int64_t channels, T* output);
  void (*backward)(const Average&, const T* grad_output, int64_t channels, T* grad_maps);
};

template <typename T>
struct RoiAlignKernels {
  RoiAverageKernels<T, RoiAverage<T>> upright;
  RoiAverageKernels<T, RotatedRoiAverage<T>> rotated;
};

DCNZOO_DECLARE_KERNELS(KernelTable<RoiAlignKernels>, roi_align_kernels)

}  // namespace dcnzoo
