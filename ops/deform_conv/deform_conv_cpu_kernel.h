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

// The offset group and the mask group of a channel. Channels with the same ones are sampled at the same points.
struct PointGroup {
  int64_t offset, mask;
  DCNZOO_HD bool operator==(const PointGroup& other) const {
    return offset == other.offset && mask == other.mask;
  }
};

DCNZOO_HD PointGroup points_of(const DeformConvShapes& s, int64_t channel) {
  return {channel * s.offset_groups / s.channels, channel * s.mask_groups / s.channels};
}

// The number of channels that are sampled at the same points, if groups of offsets and masks do not cut one another.
DCNZOO_HD int64_t channels_of_points(const DeformConvShapes& s) {
  const int64_t groups = s.offset_groups > s.mask_groups ? s.offset_groups : s.mask_groups;
  return groups > 0 ? s.channels / groups : s.channels;
}

// Which channel a lane holds, where the lanes of vectors are divided evenly among groups of channels.
struct LaneMap {
  int64_t lanes;             // of a group
  int64_t groups, channels;  // channels: of a group
  int64_t first = 0;         // lane i of a group holds the group's channel first + i

  // The channel, counted over the groups; -1 if the lane holds none.
  DCNZOO_HD int64_t channel_of(int64_t lane) const {
    const int64_t group = lane / lanes, channel = first + lane % lanes;
    return group < groups && channel < channels ? group * channels + channel : -1;
  }
  DCNZOO_HD bool is_identity() const { return lanes == channels && first == 0; }
};

// A map of channels that are all in use, in their order.
DCNZOO_HD LaneMap identity_map(int64_t channels) { return {1, channels, 1}; }

// Channels that are computed together, few enough that a tile of their columns stays in the L2 cache. They are sampled at
// the same points, except where pixels are the lanes. They belong to one convolution group, or to several narrow groups.
struct ChannelBlock {
  int64_t group, groups;  // the first convolution group, and their number
  int64_t first, count;   // channels
  int64_t first_output, outputs;
  PointGroup points;          // of the first channel
  int64_t lanes;              // of a narrow group: a power of two; 0 for a matrix product
  int64_t width;              // columns of a tap: the channels or, of narrow groups, whole vectors of lanes
  int64_t stored_at, stored;  // the first of its elements in a pixel of a staged map, and their number
  int64_t depth;              // taps · width, rounded up to whole panels
  int64_t weight_at;          // start of its packed weight, in elements
  bool opens_group, closes_group;  // first and last block of its convolution group
  bool shares_points;              // another block has the same offset group or mask group

  DCNZOO_HD bool is_narrow() const { return lanes > 0; }
  // The column of a channel of the block, of tap 0
  DCNZOO_HD int64_t column_of(int64_t channel) const {
    const int64_t channels = count / groups;
    return is_narrow() ? channel / channels * lanes + channel % channels : channel;
  }
  // The lanes of the input, and those of the outputs from `first` on of each narrow group
  DCNZOO_HD LaneMap input_lanes() const {
    return is_narrow() ? LaneMap{lanes, groups, count / groups} : identity_map(count);
  }
  DCNZOO_HD LaneMap output_lanes(int64_t first) const { return {lanes, groups, outputs / groups, first}; }
  // A part has as many outputs of each narrow group as the group has lanes.
  DCNZOO_HD int64_t parts() const { return (outputs / groups + lanes - 1) / lanes; }
  DCNZOO_HD int64_t narrow_weights(int64_t taps) const { return width * parts() * lanes * taps; }
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

// The pixels that are copied or transposed at a time. They fit the L1 cache.
constexpr int64_t kStretch = 256;

// The size of a thread's working memory.
struct TileSizes {
  int64_t rows;     // output pixels; tiles continue across images
  int64_t depth;    // the largest depth of a block
  int64_t outputs;  // the most outputs of a block, in whole panels
};

// The part of the input that starts at element `first` of a pixel: [images][in_pixels][channels], or block by block,
// [images][blocks][in_pixels][stored elements of the block]. Where pixels are the lanes, the block's part is
// [channels][in_pixels].
template <typename S>
struct InputMaps {
  const S* data;
  int64_t first, channels;
  bool by_block;

  DCNZOO_HD int64_t place_of(const ChannelBlock& block, int64_t in_pixels) const {
    return (block.stored_at - first) * (by_block ? in_pixels : 1);
  }
  DCNZOO_HD int64_t pixel_stride(const ChannelBlock& block) const {
    return by_block ? block.stored : channels;
  }
};

// [images][out_channels][out_pixels], or channels last
template <typename T>
struct OutputMaps {
  T* data;
  bool channels_last;

  DCNZOO_HD T* at(const DeformConvShapes& s, int64_t image, int64_t channel, int64_t pixel) const {
    const int64_t place = channels_last ? pixel * s.out_channels + channel : channel * s.out_pixels + pixel;
    return data + image * s.out_channels * s.out_pixels + place;
  }
  // From one pixel or, if not channels last, from one channel to the next
  DCNZOO_HD int64_t stride(const DeformConvShapes& s) const {
    return channels_last ? s.out_channels : s.out_pixels;
  }
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
  bool over_pixels;  // whether the lanes of samples are pixels, not channels
  bool narrow;       // whether convolution groups are narrow
  int64_t images;    // of this pass
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
  T* grad_input;   // like input, accumulated, or null
  T* grad_weight;  // like weight, accumulated, or null
  OffsetMask<T> grad_offset_mask;
  // With several threads per block, a separate loop adds to the input's gradient, and the weight's gradient is added in
  // parts of the outputs (1 if groups are narrow). Both shorten the steps that the threads do in turn.
  bool input_apart;
  int64_t weight_parts;
  // If blocks share points, each writes its own gradients: [block of the pass][taps · (rank + 1)][images · out_pixels]
  T* grad_offset_mask_of_blocks;
};

// Some output pixels, counted over the images, of a block
struct TileOfBlock {
  int64_t block;
  int64_t first, rows;
};

// The invariant of the backward: no two blocks write the same element of the gradients of input and weight, and the tiles of
// a block add to them in the order of the tiles. So the sums have the same bits for every number of threads. AddInTurn does
// a step of a tile after the same step of the previous tile: step 0 adds to the input's gradient, 1 + i to part i of the
// weight's.
using AddInTurn = std::function<void(int64_t step, const std::function<void()>& add)>;

template <typename T, typename S = T>
struct DeformConvForward {
  int64_t panel;                                                // columns of a GEMM panel
  bool (*suits)(int64_t channels);                              // whether S is faster than float
  int64_t (*tile_bytes)(const DeformConvForwardParams<T, S>&);  // the memory of a tile
  void (*pack)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const WeightOf<const S>&,
               S* packed);
  // Computes output pixels [first, first + rows), counted over the images.
  void (*compute_tile)(const DeformConvForwardParams<T, S>&, int64_t first, int64_t rows, char* memory);
  // [rows][columns] -> [columns][rows]
  void (*transpose)(const S* from, int64_t from_stride, S* to, int64_t to_stride, int64_t rows,
                    int64_t columns);
  // Copies at most kStretch pixels of a map, [channels][stride] or [pixels][stride], to [pixels][width], to_stride apart.
  void (*to_lanes)(const LaneMap& lanes, const S* from, int64_t stride, bool channels_last, S* to,
                   int64_t width, int64_t to_stride, int64_t pixels);
};

template <typename T, typename S = T>
struct DeformConvBackward {
  int64_t depth_step;  // the depth of a GEMM is a multiple of it
  int64_t (*tile_bytes)(const DeformConvBackwardParams<T, S>&);
  void (*pack)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const WeightOf<const S>&,
               S* packed);
  // Adds a tile's part to all gradients.
  void (*compute_tile)(const DeformConvBackwardParams<T, S>&, const TileOfBlock&, char* memory,
                       const AddInTurn&);
  void (*unpack_weight_gradient)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const T* packed,
                                 const WeightOf<S>& grad_weight);
  // Stores at most kStretch pixels, [pixels][width], from_stride apart, as [channels][stride] or [pixels][stride].
  void (*from_lanes)(const LaneMap& lanes, const T* from, int64_t width, int64_t from_stride, S* to,
                     int64_t stride, bool channels_last, int64_t pixels);
  // Sums channel `index` of an image's grad_offset_mask_of_blocks over the blocks that share points.
  void (*sum_offset_mask)(const DeformConvBackwardParams<T, S>&, int64_t image, int64_t index);
};

// The kernels of bfloat16 are null if the CPU cannot multiply it. They do not support pixels as lanes and, in the backward,
// narrow groups.
DCNZOO_DECLARE_MATRIX_KERNELS(StoredKernelTable<DeformConvForward>, deform_conv_forward_kernels)
DCNZOO_DECLARE_MATRIX_KERNELS(StoredKernelTable<DeformConvBackward>, deform_conv_backward_kernels)

}  // namespace dcnzoo
