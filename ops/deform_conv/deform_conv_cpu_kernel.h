// The interface of the CPU kernels (no torch, compiled once per instruction set) to deform_conv_*_cpu.cpp
// (torch: checks, memory, threads).
//
// T is the type of the computation. S is the storage type of maps, weights and columns: T, or bfloat16 (as its bits) if
// the CPU can multiply it.
#pragma once

#include <functional>

#include "../common/cpu_capability.h"
#include "deform_conv_shapes.h"

namespace dcnzoo {

// Channels that are sampled at the same points, few enough that a tile of their columns stays in the L2 cache. They
// belong to one convolution group, or to several narrow groups that fill panels of columns evenly. In a depthwise
// convolution, a block may have any channels, and each channel produces its own output.
struct ChannelBlock {
  int64_t group, groups;  // the first convolution group, and their number
  int64_t first, count;   // channels
  int64_t first_output, outputs;
  int64_t offset_group, mask_group;
  int64_t depth;                   // taps · count, rounded up to whole panels
  int64_t panel_outputs;           // outputs that a panel of columns contributes to
  int64_t weight_at;               // start of its packed weight, in elements
  bool opens_group, closes_group;  // first and last block of its convolution group
  bool shares_points;              // another block has the same offset group or mask group
};

// One of `count` pieces of a block's weight, which are packed in parallel.
struct Piece {
  int64_t index, count;
  DCNZOO_HD int64_t begin_of(int64_t size) const { return size * index / count; }
  DCNZOO_HD int64_t end_of(int64_t size) const { return size * (index + 1) / count; }
};

// The convolution's weight or its gradient, [out_channels][channels of the group][taps], contiguous or channels last.
template <typename S>
struct WeightOf {
  S* data;
  int64_t channel_stride, tap_stride;
};

// All blocks of a call, and the range of this pass: several passes limit the memory in use.
struct ChannelBlocks {
  const ChannelBlock* data;
  int64_t begin, end;
};

// The most output pixels of a tile. Arrays of points, and matrices of the backward, always have room for so many: constant
// distances save registers.
constexpr int64_t kForwardRows = 96, kBackwardRows = 192;

// The size of a thread's working memory.
struct TileSizes {
  int64_t rows;     // output pixels; tiles continue across images
  int64_t depth;    // the largest depth of a block
  int64_t outputs;  // the most outputs of a block, in whole panels
};

// The part of the input that starts at first_channel: [images][in_pixels][channels], or block by block,
// [images][blocks][in_pixels][channels of the block].
template <typename S>
struct InputMaps {
  const S* data;
  int64_t first_channel, channels;
  bool by_block;

  DCNZOO_HD int64_t place_of(const ChannelBlock& block, int64_t in_pixels) const {
    return (block.first - first_channel) * (by_block ? in_pixels : 1);
  }
  DCNZOO_HD int64_t pixel_stride(const ChannelBlock& block) const {
    return by_block ? block.count : channels;
  }
};

// [images][out_channels][out_pixels], or channels last
template <typename T>
struct OutputMaps {
  T* data;
  bool channels_last;
};

// Offset and mask, or their gradients
template <typename T>
struct OffsetMask {
  T* offset;  // [images][offset_groups · taps · rank][out_pixels], or null
  T* mask;    // [images][mask_groups · taps][out_pixels], or null
};

// Offset and mask as they are read: each is in `values` or, as bfloat16, in `bits`, or null in both.
template <typename T>
struct StoredOffsetMask {
  OffsetMask<const T> values;
  OffsetMask<const BFloat16Bits> bits;
};

template <typename T, typename S = T>
struct DeformConvParams {
  DeformConvShapes shape;
  int64_t images;  // of this pass
  ChannelBlocks blocks;
  TileSizes tile;
  InputMaps<S> input;  // the backward reads it for all gradients except the input's
  StoredOffsetMask<T> offset_mask;
};

template <typename T, typename S = T>
struct DeformConvForwardParams : DeformConvParams<T, S> {
  const S* weight;  // packed
  const T* bias;    // [out_channels], or null
  OutputMaps<S> output;
};

template <typename T, typename S = T>
struct DeformConvBackwardParams : DeformConvParams<T, S> {
  const S* weight;  // packed
  OutputMaps<const S> grad_output;
  T* grad_input;         // like input, accumulated, or null
  S* stored_grad_input;  // the result, laid out like the map from which input was copied, or null
  T* grad_weight;        // like weight, accumulated, or null
  OffsetMask<T> grad_offset_mask;
  // With several threads per block, a separate loop adds to the input's gradient, and the weight's gradient is added in
  // parts of the outputs (1 if depthwise). Both shorten the steps that the threads do in turn.
  bool input_apart;
  int64_t weight_parts;
  // If blocks share points, each writes its own gradients: [block of the pass][taps · (rank + 1)][images · out_pixels]
  T* grad_offset_mask_of_blocks;
};

// A tile of the backward, and its memory.
struct BackwardTile {
  int64_t block;
  int64_t first, rows;  // output pixels, counted over the images
  char* memory;         // tile_bytes
};

// The invariant of the backward: no two blocks write the same element of the gradients of input and weight, and the tiles of
// a block add to them in the order of the tiles. So the sums have the same bits for every number of threads. AddInTurn does
// a step of a tile after the same step of the previous tile: step 0 adds to the input's gradient, 1 + i to part i of the
// weight's.
using AddInTurn = std::function<void(int64_t step, const std::function<void()>& add)>;

template <typename T, typename S = T>
struct DeformConvForward {
  int64_t panel;                                                   // columns of a GEMM panel
  bool (*suits)(int64_t channels);                                 // whether S is faster than float
  int64_t (*scratch_bytes)(const DeformConvForwardParams<T, S>&);  // per thread
  void (*pack)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const WeightOf<const S>&,
               S* packed);
  // Computes output pixels [first, first + rows), counted over the images.
  void (*compute_tile)(const DeformConvForwardParams<T, S>&, int64_t first, int64_t rows, char* scratch);
  // [rows][columns] -> [columns][rows]
  void (*transpose)(const S* from, int64_t from_stride, S* to, int64_t to_stride, int64_t rows,
                    int64_t columns);
};

template <typename T, typename S = T>
struct DeformConvBackward {
  int64_t depth_step;  // the depth of a GEMM is a multiple of it
  int64_t (*tile_bytes)(const DeformConvBackwardParams<T, S>&);
  void (*pack)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const WeightOf<const S>&,
               S* packed);
  // Adds a tile's part to all gradients.
  void (*compute_tile)(const DeformConvBackwardParams<T, S>&, const BackwardTile&, const AddInTurn&);
  void (*unpack_weight_gradient)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const T* packed,
                                 const WeightOf<S>& grad_weight);
  // Stores [pixels][channels], as [pixels][to_stride] or, if not channels_last, as [channels][to_stride].
  void (*store_map)(const T* from, int64_t pixels, int64_t channels, S* to, int64_t to_stride,
                    bool channels_last);
  // Sums channel `index` of an image's grad_offset_mask_of_blocks over the blocks that share points.
  void (*sum_offset_mask)(const DeformConvBackwardParams<T, S>&, int64_t image, int64_t index);
};

// The kernels of bfloat16 are null if the CPU cannot multiply it; in the backward, they do not support depthwise
// convolutions.
DCNZOO_DECLARE_MATRIX_KERNELS(StoredKernelTable<DeformConvForward>, deform_conv_forward_kernels)
DCNZOO_DECLARE_MATRIX_KERNELS(StoredKernelTable<DeformConvBackward>, deform_conv_backward_kernels)

}  // namespace dcnzoo
