// What deform_conv_cpu.cpp (torch: checks, allocation, threads) asks of deform_conv_cpu_kernel.cpp
// (no torch: arithmetic, one copy per instruction set).
#pragma once

#include "../common/cpu_capability.h"
#include "deform_conv_math.h"

namespace dcnzoo {

// Channels that read at the same points and belong to one convolution group, few enough that their
// columns for a tile stay in the second-level cache.
struct ChannelSlice {
  int64_t group, first, count;
  int64_t offset_group, mask_group;
  int64_t depth;   // taps · count, rounded up to whole panels
  int64_t weight;  // where its packed weight begins, in elements
  bool opens_group;     // first slice of its convolution group
  bool shares_points;   // other slices read at the same offset group and mask group
};

template <typename T>
struct DeformConvCpu {
  int rank;
  int64_t in[3], out[3], kernel[3], stride[3], padding[3], dilation[3];
  int64_t images, channels, out_channels, groups, offset_groups, mask_groups;
  int64_t taps, in_pixels, out_pixels;
  int64_t tile_rows;  // output pixels of a tile; tiles run on across images
  const ChannelSlice* slices;
  int64_t slice_count;
  const T* input;   // [images][in_pixels][channels]
  const T* offset;  // [images][offset_groups · taps · rank][out_pixels], or null
  const T* mask;    // [images][mask_groups · taps][out_pixels], or null

  // forward
  const T* weight;  // packed by pack_forward
  const T* bias;    // [out_channels], or null
  T* output;        // [images][out_channels][out_pixels], or channels last
  bool output_channels_last;

  // backward
  const T* grad_output;  // like output
  bool grad_output_channels_last;
  const T* weight_backward;  // packed by pack_backward
  T* grad_input;             // [images][in_pixels][channels], accumulated, or null
  T* grad_weight;            // packed like weight_backward's columns, accumulated, or null
  T* grad_offset;            // like offset, or null
  T* grad_mask;              // like mask, or null
  T* grad_fields;            // [slice][taps · (rank + 1)][images · out_pixels], where points are shared
};

template <typename T>
struct DeformConvKernels {
  int64_t panel;            // columns of a GEMM panel
  int64_t row_block;        // rows of a GEMM block: tile_rows is a multiple of it
  int64_t (*forward_scratch)(const DeformConvCpu<T>&);   // elements that a thread needs
  int64_t (*backward_scratch)(const DeformConvCpu<T>&);
  void (*pack_forward)(const DeformConvCpu<T>&, const T* weight, T* packed, int64_t slice_begin,
                       int64_t slice_end);
  void (*pack_backward)(const DeformConvCpu<T>&, const T* weight, T* packed, int64_t slice_begin,
                        int64_t slice_end);
  // tiles [begin, end) of the output
  void (*forward)(const DeformConvCpu<T>&, int64_t begin, int64_t end, T* scratch);
  // images [begin, end), one slice: no two slices write the same memory
  void (*backward)(const DeformConvCpu<T>&, int64_t slice, int64_t begin, int64_t end, T* scratch);
  void (*unpack_weight_gradient)(const DeformConvCpu<T>&, const T* packed, T* grad_weight,
                                 int64_t slice, bool accumulate);
  // Sums grad_fields over the slices that share points, for rows [begin, end) of images · out_pixels.
  void (*reduce_fields)(const DeformConvCpu<T>&, int64_t begin, int64_t end);
  // [rows][columns] -> [columns][rows], for the rows [begin, end) of the source
  void (*transpose)(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
                    int64_t columns);
};

DCNZOO_DECLARE_KERNELS(DeformConvKernels<float>, deform_conv_kernels_float)
DCNZOO_DECLARE_KERNELS(DeformConvKernels<double>, deform_conv_kernels_double)

}  // namespace dcnzoo
