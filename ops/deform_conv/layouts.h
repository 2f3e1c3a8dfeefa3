// Blocks of channels and layouts of memory, on which the part of deform_conv with torch (deform_conv_*_cpu.cpp) and the
// kernels agree. The layouts of a thread's own memory are in tile_memory.h.
#pragma once

#include "../common/cpu_capability.h"
#include "../common/integers.h"
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

// The way of a call's blocks from samples to products. choose_way in channel_blocks.h chooses it, and has the reasons.
enum class Way {
  // matrix product
  matrix,              // samples over channels, stored as Panels
  matrix_over_pixels,  // samples over pixels, stored as Planes, which become Panels
  // product of narrow groups
  narrow,              // samples over channels, stored as NarrowColumns of a few rows
  narrow_unstored,     // samples over channels, computed where the product needs them
  narrow_over_pixels,  // samples over pixels, stored as Planes, which become NarrowColumns
};

DCNZOO_HD bool is_over_pixels(Way way) {
  return way == Way::matrix_over_pixels || way == Way::narrow_over_pixels;
}
DCNZOO_HD bool is_narrow(Way way) { return way != Way::matrix && way != Way::matrix_over_pixels; }

// The most lanes of a group whose way is narrow_unstored
constexpr int64_t kUnstoredLanes = 2;

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

// The layout of the packed weight of narrow groups: [part][tap][vector of the columns][output of the part][lane]. A
// part has as many outputs of each group as the group has lanes.
struct NarrowWeights {
  int64_t taps, parts;
  int64_t width, lanes;  // of a block, of a group

  DCNZOO_HD int64_t size() const { return parts * tap_stride() * taps; }
  DCNZOO_HD int64_t tap_stride() const { return width * lanes; }
  // The weights of a vector of columns, from `column` on, and of an output of each group
  DCNZOO_HD int64_t place(int64_t tap, int64_t column, int64_t output, int64_t vector_lanes) const {
    return (output / lanes * taps + tap) * tap_stride() + column * lanes + output % lanes * vector_lanes;
  }
};

// Channels that are computed together, few enough that a tile of their columns stays in the L2 cache. They are sampled
// at the same points, except over pixels. They belong to one convolution group, or to several narrow groups.
struct ChannelBlock {
  Way way;               // the same for all blocks of a call
  int64_t groups;        // convolution groups
  int64_t first, count;  // channels
  int64_t each;          // channels of a convolution group that are in the block
  int64_t first_output, outputs;
  PointGroup points;          // of the first channel
  int64_t sharing;            // over pixels: neighbouring channels with the same points
  int64_t lanes;              // of a group: a power of two if it is narrow, else the channels
  int64_t width;              // columns of a tap: the channels or, of narrow groups, whole vectors of lanes
  int64_t stored_at, stored;  // the first of its elements in a pixel of a staged map, and their number
  int64_t columns, depth;     // taps · width; the same, rounded up to whole panels
  int64_t weight_at;          // start of its packed weight, in elements
  bool opens_group, closes_group;  // first and last block of its convolution group
  bool shares_points;              // another block has the same offset group or mask group

  DCNZOO_HD bool is_narrow() const { return dcnzoo::is_narrow(way); }
  // The lane of a channel of the block, and the column of a tap and a lane
  DCNZOO_HD int64_t lane_of(int64_t channel) const { return channel / each * lanes + channel % each; }
  DCNZOO_HD int64_t column(int64_t tap, int64_t lane) const { return tap * width + lane; }
  // The first channel, counted within its convolution group
  DCNZOO_HD int64_t first_in_group(const DeformConvShapes& s) const { return first % s.group_channels(); }
  DCNZOO_HD LaneMap input_lanes() const { return {lanes, groups, each}; }

  // The result of narrow groups is computed in parts, [part][width]: see NarrowWeights. A matrix product has one part.
  DCNZOO_HD int64_t parts() const { return is_narrow() ? ceil_div(outputs / groups, lanes) : 1; }
  DCNZOO_HD LaneMap output_lanes(int64_t part) const {
    return is_narrow() ? LaneMap{lanes, groups, outputs / groups, part * lanes}
                       : LaneMap{outputs, 1, outputs};
  }
  DCNZOO_HD NarrowWeights narrow_weights(int64_t taps) const { return {taps, parts(), width, lanes}; }

  // The elements of a row of the result, and of the outputs' gradient: [output of a group][group, padded to whole vectors]
  DCNZOO_HD int64_t result_row() const { return is_narrow() ? parts() * width : outputs; }
  DCNZOO_HD int64_t padded_groups() const { return width / lanes; }
  DCNZOO_HD int64_t gradient_row() const { return outputs / groups * padded_groups(); }
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
  int64_t output_stride, channel_stride, tap_stride;

  DCNZOO_HD S* at(int64_t output, int64_t channel, int64_t tap) const {
    return data + output * output_stride + channel * channel_stride + tap * tap_stride;
  }
};

// All blocks of a call, and the range of this pass: several passes limit the memory in use.
struct ChannelBlocks {
  const ChannelBlock* data;
  int64_t begin, end;
};

// The most output pixels of a tile. Arrays of points, and matrices of the backward, always have room for so many:
// constant distances save registers.
constexpr int64_t kForwardRows = 96, kBackwardRows = 192;

// The pixels that are copied or transposed at a time. They fit the L1 cache.
constexpr int64_t kStretch = 256;

// The size of a thread's working memory.
struct TileSizes {
  int64_t rows;     // output pixels; tiles continue across images
  int64_t depth;    // the largest depth of a block
  int64_t outputs;  // the most outputs of a block, in whole panels
};

// Where the kernels read the input, and add to its gradient, for all passes of a call. ChannelBlocking::input_layout chooses it.
enum class MapLayout {
  in_place,  // the caller's map, channels last: [images][in_pixels][channels]
  blocks,    // a copy of the pass's blocks: [images][blocks][in_pixels][stored elements of the block]
  planes,    // a copy for samples over pixels: [images][channels of the pass][in_pixels]
};

// The input of a pass's blocks, or the layout of its gradient
template <typename S>
struct InputMaps {
  const S* data;
  MapLayout layout;
  int64_t first, stored;  // the elements of a pixel, over the blocks: the first one and their number

  DCNZOO_HD int64_t image_size(int64_t in_pixels) const { return stored * in_pixels; }
  DCNZOO_HD int64_t place_of(const ChannelBlock& block, int64_t in_pixels) const {
    return (block.stored_at - first) * (layout == MapLayout::in_place ? 1 : in_pixels);
  }
  DCNZOO_HD int64_t pixel_stride(const ChannelBlock& block) const {
    return layout == MapLayout::in_place ? stored : layout == MapLayout::blocks ? block.stored : 1;
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

// The channels of offset and mask at the points of a group, in one order: [tap][axis] of the offset, then [tap] of the mask.
struct PointChannels {
  int64_t taps, rank;

  DCNZOO_HD int64_t count() const { return taps * (rank + 1); }
  DCNZOO_HD int64_t offset(int64_t tap, int64_t axis) const { return tap * rank + axis; }
  DCNZOO_HD int64_t mask(int64_t tap) const { return taps * rank + tap; }
  DCNZOO_HD bool is_mask(int64_t channel) const { return channel >= taps * rank; }
};

DCNZOO_HD PointChannels point_channels(const DeformConvShapes& s) { return {s.taps, s.rank}; }

// Offset and mask, or their gradients
template <typename T>
struct OffsetMask {
  T* offset;  // [images][offset_groups · taps · rank][out_pixels], or null
  T* mask;    // [images][mask_groups · taps][out_pixels], or null

  DCNZOO_HD bool any() const { return offset || mask; }
  // The pixels of one of PointChannels, or null
  DCNZOO_HD T* at(const DeformConvShapes& s, int64_t image, const PointGroup& group, int64_t channel) const {
    const bool of_mask = point_channels(s).is_mask(channel);
    T* const from = of_mask ? mask : offset;
    const int64_t offsets = s.taps * s.rank;
    const int64_t at = of_mask ? (image * s.mask_groups + group.mask) * s.taps + channel - offsets
                               : (image * s.offset_groups + group.offset) * offsets + channel;
    return from ? from + at * s.out_pixels : nullptr;
  }
  // Those from image `first` on
  DCNZOO_HD OffsetMask from_image(const DeformConvShapes& s, int64_t first) const {
    return {at(s, first, {0, 0}, 0), at(s, first, {0, 0}, point_channels(s).mask(0))};
  }
};

// Offset and mask as they are read: each is in `values` or, as bfloat16, in `bits`, or null in both.
template <typename T>
struct StoredOffsetMask {
  OffsetMask<const T> values;
  OffsetMask<const BFloat16Bits> bits;

  DCNZOO_HD StoredOffsetMask from_image(const DeformConvShapes& s, int64_t first) const {
    return {values.from_image(s, first), bits.from_image(s, first)};
  }
};

}  // namespace dcnzoo
