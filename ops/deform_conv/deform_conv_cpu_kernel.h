// What deform_conv_cpu.cpp (torch: checks, allocation, threads) asks of deform_conv_cpu_kernel.cpp
// (no torch: arithmetic, one copy per instruction set).
#pragma once

#include "../common/cpu_capability.h"
#include "../common/corners.h"

namespace dcnzoo {

// Channels that read at the same points, few enough that their columns for a tile stay in the second-level
// cache: of one convolution group, or of several that are narrow, whole and fill panels of columns evenly.
// A depthwise convolution's slices are of any channels and give their own outputs.
struct ChannelSlice {
  int64_t group, groups;  // the first convolution group, and how many
  int64_t first, count;
  int64_t first_output, outputs;  // of the convolution groups
  int64_t offset_group, mask_group;
  int64_t depth;                   // taps · count, rounded up to whole panels
  int64_t panel_outputs;           // that a panel of columns contributes to
  int64_t weight;                  // where its packed weight begins, in elements
  bool opens_group, closes_group;  // first and last slice of its convolution group
  bool shares_points;              // other slices read at the same offset group and mask group
};

// T: what is computed in. S: what maps, weights and columns are stored in: T, or bfloat16 (as its bits)
// where the machine multiplies it.
template <typename T, typename S = T>
struct DeformConvParams {
  int rank;
  int64_t in[3], out[3], kernel[3], stride[3], padding[3], dilation[3];
  int64_t images, channels, out_channels, groups, offset_groups, mask_groups;
  int64_t taps, in_pixels, out_pixels;
  bool depthwise;     // as many groups as channels and outputs
  int64_t tile_rows;  // output pixels of a tile; tiles run on across images

  // All slices, and those of this pass: memory for all of them at a time might be too much.
  const ChannelSlice* slices;
  int64_t slice_begin, slice_end;
  int64_t most_depth, padded_outputs;  // of any slice; outputs in whole panels

  // [images][in_pixels][input_channels], from first_image and first_channel on; the backward reads it for
  // any gradient but its own
  const S* input;
  int64_t first_image, input_channels, first_channel;
  const T* offset;  // [images][offset_groups · taps · rank][out_pixels], or null
  const T* mask;    // [images][mask_groups · taps][out_pixels], or null

  // forward
  const S* weight;  // packed by pack
  const T* bias;    // [out_channels], or null
  S* output;        // [images][out_channels][out_pixels], or channels last
  bool output_channels_last;

  // backward
  const T* grad_output;  // like output
  bool grad_output_channels_last;
  const T* weight_backward;  // packed by pack
  T* grad_input;             // like input, accumulated, or null
  T* grad_weight;            // packed like weight_backward's columns, accumulated, or null
  T* grad_offset;            // like offset, or null
  T* grad_mask;              // like mask, or null
  T* grad_fields;  // [slice of the pass][taps · (rank + 1)][images · out_pixels], where points are shared
};

template <typename T, typename S = T>
struct DeformConvForward {
  int64_t panel;                                            // columns of a GEMM panel
  int64_t (*scratch_bytes)(const DeformConvParams<T, S>&);  // that a thread needs
  void (*pack)(const DeformConvParams<T, S>&, const S* weight, S* packed, int64_t slice);
  // a tile of the output
  void (*run)(const DeformConvParams<T, S>&, int64_t tile, char* scratch);
  // [rows][columns] -> [columns][rows]
  void (*transpose)(const S* from, int64_t from_stride, S* to, int64_t to_stride, int64_t rows,
                    int64_t columns);
};

template <typename T>
struct DeformConvBackward {
  int64_t (*scratch_bytes)(const DeformConvParams<T>&);
  void (*pack)(const DeformConvParams<T>&, const T* weight, T* packed, int64_t slice);
  // images [begin, end), one slice: no two slices write the same memory
  void (*run)(const DeformConvParams<T>&, int64_t slice, int64_t begin, int64_t end, char* scratch);
  void (*unpack_weight_gradient)(const DeformConvParams<T>&, const T* packed, T* grad_weight, int64_t slice,
                                 bool accumulate);
  // Sums one of an image's grad_fields over the slices that share points.
  void (*reduce_fields)(const DeformConvParams<T>&, int64_t image, int64_t field);
};

using BFloat16Bits = uint16_t;

template <typename T>
using DeformConvSameTypeForward = DeformConvForward<T, T>;

struct DeformConvKernels {
  KernelTable<DeformConvSameTypeForward> forward;
  DeformConvForward<float, BFloat16Bits> forward_bfloat16;  // null where the machine has no such product
  KernelTable<DeformConvBackward> backward;
};

DCNZOO_DECLARE_KERNELS(DeformConvKernels, deform_conv_kernels)

}  // namespace dcnzoo
