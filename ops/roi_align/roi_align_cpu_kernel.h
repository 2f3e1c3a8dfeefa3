// The interface of roi_align_cpu_kernel.cpp (no torch: arithmetic, compiled once per instruction set) to
// roi_align_cpu.cpp (torch: checks, tables, threads).
#pragma once

#include "../common/cpu_capability.h"
#include "../common/roi_shares.h"

namespace dcnzoo {

// The most channels that are summed together, and the most bins of a tile unless a row of bins has more.
constexpr int64_t kRoiBlockChannels = 64, kRoiTileBins = 256;

// An average is separable: bin (i, j) of a channel is the sum of y weight · x weight · pixel, divided by `count`.
template <typename T>
struct RoiAverage {
  RoiShareTable<T> y, x;
  int64_t output_h, output_w;
  int64_t width, pixels;  // of a channel's map
  int64_t first, last;    // the columns that any bin reads
  T count;
  int64_t tile_rows;  // rows of bins that are transposed together
  // Scratch for kRoiBlockChannels: `row` for sums over y of these columns, `tile` for the bins of a tile, twice.
  T *row, *tile;
};

// S is the type of maps and bins: T, or bfloat16.
template <typename T, typename S = T>
struct RoiAlignKernels {
  // output: [channels][bins], maps: [channels][pixels]; gradients likewise
  void (*forward)(const RoiAverage<T>&, const S* maps, int64_t channels, S* output);
  void (*backward)(const RoiAverage<T>&, const S* grad_output, int64_t channels, T* grad_maps);
  // maps: [pixels][map_channels]. channels: at least a vector's lanes.
  void (*forward_by_pixel)(const RoiAverage<T>&, const S* maps, int64_t map_channels, int64_t channels,
                           S* output);
};

DCNZOO_DECLARE_KERNELS(StoredKernelTable<RoiAlignKernels>, roi_align_kernels)

}  // namespace dcnzoo
