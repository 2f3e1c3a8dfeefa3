// The interface of roi_align_rotated_cpu_kernel.cpp (no torch: arithmetic, compiled once per instruction set) to
// roi_align_rotated_cpu.cpp (torch: checks, tables, threads).
#pragma once

#include "../common/cpu_capability.h"
#include "../common/roi_shares.h"

namespace dcnzoo {

// A bin of a channel is the sum of weight · pixel over the bin's shares, divided by `count`.
template <typename T>
struct RotatedRoiAverage {
  RoiShareTable<T> shares;
  int64_t bins, pixels;  // of a channel's output and map
  T count;
};

template <typename T>
struct RoiAlignRotatedKernels {
  // output: [channels][bins], maps: [channels][pixels]; gradients likewise
  void (*forward)(const RotatedRoiAverage<T>&, const T* maps, int64_t channels, T* output);
  void (*backward)(const RotatedRoiAverage<T>&, const T* grad_output, int64_t channels, T* grad_maps);
};

DCNZOO_DECLARE_KERNELS(KernelTable<RoiAlignRotatedKernels>, roi_align_rotated_kernels)

}  // namespace dcnzoo
