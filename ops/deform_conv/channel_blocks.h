// How deform_conv on the CPU computes a call: the Way, the blocks of channels, their passes, and whether maps are copied.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/integers.h"
#include "deform_conv_cpu_kernel.h"

namespace dcnzoo {

// The limit on the bytes of input that are copied to channels last at a time, whatever im2col_step is: the input of a
// ResNet's layer at 800×1344, with strides of 1, fits. Above it, a pass takes fewer images, then fewer channels of one
// image. Exception: bfloat16 is copied as whole images, because the output would round the partial sums between passes.
constexpr int64_t kStagingBytes = int64_t(20) << 20;

// As many images are processed at a time as an L2 cache of 2 MiB can hold. The backward counts the copies of a block and of
// its gradient. The forward counts the copies of all channels, in half of the cache: the rest is for columns and weight.
constexpr int64_t kImagesBytes = int64_t(2) << 20;

// Tasks per thread that keep all threads busy.
constexpr int64_t kThreadTasks = 4;

// The backward's limit on the bytes for copies of blocks and of their gradients, and for the gradients of points that
// blocks share. All blocks of a ResNet's c3 fit.
inline int64_t backward_staging_bytes(int64_t threads) { return (24 + threads) << 20; }

// On small maps, the backward's tiles have fewer rows, down to kLeastRows, so that all blocks together have
// kEnoughTiles: kThreadTasks for each of 64 threads.
constexpr int64_t kEnoughTiles = 256, kLeastRows = 96;

// With at most this many outputs, sampling takes most of the backward's time. With two threads, input_apart reduces
// this time to .7 for 8 and 16 channels, and to .9 for 32 and 64 channels.
constexpr int64_t kFewOutputs = 64;

// Each of the backward's weight_parts has at least this many outputs: more than two micro-kernels of 12 rows.
constexpr int64_t kLeastOutputs = 32;

// The most channels of a block, in bytes. With kForwardRows, 9 taps of 64 channels of float, or of 128 of bfloat16, are
// 216 KiB, less than half of the smallest L2 cache of CPUs with AVX-512 (512 KiB). The backward has more rows, and
// narrower blocks, so that its copies of a block need less memory.
constexpr int64_t kForwardBlockBytes = 64 * sizeof(float), kBackwardBlockBytes = 32 * sizeof(float);

// With at most this many channels for each point, samples are computed over pixels. More channels fill a half vector.
constexpr int64_t kFewChannels = 3;

// The most elements of a map that is copied as a whole image. Larger ones are read in place if they are channels last.
constexpr int64_t kMostCopied = int64_t(1) << 27;

// Whether samples are computed over pixels. Then points have no gradients from several blocks, and no convolution group
// cuts the channels of a point.
inline bool samples_over_pixels(const DeformConvShapes& s) {
  const int64_t sharing = channels_of_points(s);
  const bool same_groups = s.offset_groups == s.mask_groups || s.offset_groups == 0 || s.mask_groups == 0;
  return sharing <= kFewChannels && same_groups && s.group_channels() % sharing == 0 &&
         s.channels * s.in_pixels <= kMostCopied;
}

// The lanes of a narrow group: a power of two
inline int64_t lanes_of_group(int64_t channels) {
  int64_t lanes = 1;
  while (lanes < channels) lanes *= 2;
  return lanes;
}

// Whether vectors of `lanes` hold the channels of several convolution groups, and each of their outputs has a vector of
// sums.
inline bool has_narrow_groups(const DeformConvShapes& s, int64_t lanes) {
  const int64_t channels = s.group_channels();
  const auto cut_by = [&](int64_t groups) { return groups > 0 && s.channels / groups % channels != 0; };
  return s.groups > 1 && lanes_of_group(channels) <= lanes && s.group_outputs() <= lanes &&
         s.channels * s.in_pixels <= kMostCopied &&
         (samples_over_pixels(s) || !(cut_by(s.offset_groups) || cut_by(s.mask_groups)));
}

// The way of a call. lanes: of a vector. If few channels share a point, samples are computed over pixels: over channels, each
// point would be computed for one value. Narrow groups are no matrix product: it would have few rows and columns of weight.
// Each vector of them has as many sums as a group has lanes. If those are few, registers hold the sums of several vectors,
// which share a point, and samples are computed where they are needed. If not, the columns of some rows are stored first.
inline Way choose_way(const DeformConvShapes& s, int64_t lanes) {
  const bool over_pixels = samples_over_pixels(s);
  if (!has_narrow_groups(s, lanes)) return over_pixels ? Way::matrix_over_pixels : Way::matrix;
  if (over_pixels) return Way::narrow_over_pixels;
  return lanes_of_group(s.group_channels()) <= kUnstoredLanes ? Way::narrow_unstored : Way::narrow;
}

class ChannelBlocking {
 public:
  // panel: the columns of a panel, two vectors
  ChannelBlocking(const DeformConvShapes& s, Way way, int64_t most_channels, int64_t panel)
      : way_(way), shape_(s), panel_(panel) {
    for (int64_t channel = 0; channel < s.channels; channel += blocks.back().count) {
      const int64_t at = blocks.empty() ? 0 : blocks.back().stored_at + blocks.back().stored;
      blocks.push_back(block_from(channel, most_channels));
      blocks.back().stored_at = at;
    }
    if (is_over_pixels(way)) return;
    // The blocks of an offset group or a mask group are neighbours.
    for (size_t i = 1; i < blocks.size(); ++i) {
      ChannelBlock &before = blocks[i - 1], &block = blocks[i];
      if ((s.offset_groups > 0 && before.points.offset == block.points.offset) ||
          (s.mask_groups > 0 && before.points.mask == block.points.mask))
        before.shares_points = block.shares_points = true;
    }
  }

  int64_t count() const { return int64_t(blocks.size()); }

  // The elements of a pixel of a map that is staged
  int64_t stored() const { return blocks.back().stored_at + blocks.back().stored; }

  // Where the kernels read the input. A channels-last map is read in place if its pixels have all lanes of the blocks.
  // In the backward, it must be one block: samples of 32 of many channels would be far apart in memory.
  MapLayout input_layout(bool channels_last, bool backward) const {
    if (is_over_pixels(way_)) return MapLayout::planes;
    const bool in_place = channels_last && stored() == shape_.channels && !(backward && count() > 1);
    return in_place ? MapLayout::in_place : MapLayout::blocks;
  }

  // Sets the start of every block's packed weight, which has weights_of(block) elements for each column of a matrix
  // product, and `narrow_elements` for each weight of a narrow group. Returns the total number of elements.
  template <typename WeightsOf>
  int64_t place_weights(int64_t narrow_elements, const WeightsOf& weights_of) {
    int64_t total = 0;
    for (ChannelBlock& block : blocks) {
      block.weight_at = total;
      total += block.is_narrow() ? narrow_elements * block.narrow_weights(shape_.taps).size()
                                 : block.depth * weights_of(block);
    }
    return total;
  }

  // row: ChannelBlock::result_row or gradient_row
  TileSizes tile(int64_t rows, int64_t (ChannelBlock::*row)() const) const {
    TileSizes tile{rows, 0, 0};
    for (const ChannelBlock& block : blocks) {
      tile.depth = std::max(tile.depth, block.depth);
      tile.outputs = std::max(tile.outputs, round_up((block.*row)(), panel_));
    }
    return tile;
  }

  // The end of the pass that begins with block `begin`: at least one block, at most `most_bytes` of input.
  int64_t end_of_pass(int64_t begin, int64_t element_bytes, int64_t most_bytes) const {
    int64_t end = begin + 1, bytes = blocks[begin].stored * element_bytes;
    while (end < count() && (bytes += blocks[end].stored * element_bytes) <= most_bytes) ++end;
    return end;
  }

  std::vector<ChannelBlock> blocks;

 private:
  ChannelBlock block_from(int64_t channel, int64_t most_channels) const {
    const DeformConvShapes& s = shape_;
    const int64_t group_channels = s.group_channels(), sharing = channels_of_points(s);
    const auto left_of = [&](int64_t channels) { return channels - channel % channels; };
    const bool over_pixels = is_over_pixels(way_);
    ChannelBlock block{};
    block.way = way_;
    block.first = channel;
    block.points = points_of(s, channel);
    int64_t most = s.channels - channel;
    if (!over_pixels && s.offset_groups) most = std::min(most, left_of(s.channels / s.offset_groups));
    if (!over_pixels && s.mask_groups) most = std::min(most, left_of(s.channels / s.mask_groups));
    if (is_narrow(way_)) {
      block.lanes = lanes_of_group(group_channels);
      block.groups = std::min(most / group_channels, most_channels / block.lanes);
      block.count = block.groups * group_channels;
      block.width = round_up(block.groups * block.lanes, panel_ / 2);
    } else {
      block.groups = 1;
      const int64_t least = over_pixels ? sharing : 1;
      block.count = std::min({most, std::max(most_channels, least), left_of(group_channels)}) / least * least;
      block.lanes = block.width = block.count;
    }
    block.each = block.count / block.groups;
    block.sharing = sharing;
    block.stored = over_pixels ? block.count : block.width;
    block.opens_group = channel % group_channels == 0;
    block.closes_group = (channel + block.count) % group_channels == 0;
    block.outputs = block.groups * s.group_outputs();
    block.first_output = channel / group_channels * s.group_outputs();
    block.columns = s.taps * block.width;
    block.depth = round_up(block.columns, panel_);
    return block;
  }

  const Way way_;
  const DeformConvShapes& shape_;
  const int64_t panel_;
};

}  // namespace dcnzoo
