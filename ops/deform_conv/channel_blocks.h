// Divides the channels of deform_conv on the CPU into blocks and passes.
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

// On small maps, the backward's tiles have fewer rows, down to kLeastRows, so that all blocks together have kEnoughTiles:
// kThreadTasks for each of 64 threads.
constexpr int64_t kEnoughTiles = 256, kLeastRows = 96;

// With at most this many outputs, sampling takes most of the backward's time. With two threads, input_apart reduces this
// time to .7 for 8 and 16 channels, and to .9 for 32 and 64 channels.
constexpr int64_t kFewOutputs = 64;

// Each of the backward's weight_parts has at least this many outputs: more than two micro-kernels of 12 rows.
constexpr int64_t kLeastOutputs = 32;

// The most channels of a block, in bytes. With kForwardRows, 9 taps of 64 channels of float, or of 128 of bfloat16, are
// 216 KiB, less than half of the smallest L2 cache of CPUs with AVX-512 (512 KiB). The backward has more rows, and
// narrower blocks, so that its copies of a block need less memory.
constexpr int64_t kForwardBlockBytes = 64 * sizeof(float), kBackwardBlockBytes = 32 * sizeof(float);

class ChannelBlocking {
 public:
  ChannelBlocking(const DeformConvShapes& s, int64_t most_channels, int64_t panel)
      : shape_(s), depthwise_(s.is_depthwise()), panel_(panel) {
    for (int64_t channel = 0; channel < s.channels; channel += blocks.back().count)
      blocks.push_back(block_from(channel, most_channels));
    // The blocks of an offset group or a mask group are neighbours.
    for (size_t i = 1; i < blocks.size(); ++i) {
      ChannelBlock &before = blocks[i - 1], &block = blocks[i];
      if (before.offset_group == block.offset_group || before.mask_group == block.mask_group)
        before.shares_points = block.shares_points = true;
    }
  }

  int64_t count() const { return int64_t(blocks.size()); }

  // Sets the start of every block's packed weight, which has weights_of(block) elements for each of the block's
  // columns. Returns the total number of elements.
  template <typename WeightsOf>
  int64_t place_weights(const WeightsOf& weights_of) {
    int64_t total = 0;
    for (ChannelBlock& block : blocks) {
      block.weight_at = total;
      total += block.depth * (depthwise_ ? 1 : weights_of(block));
    }
    return total;
  }

  TileSizes tile(int64_t rows) const {
    TileSizes tile{rows, 0, 0};
    for (const ChannelBlock& block : blocks) {
      const int64_t last_group = block.outputs / block.groups;  // written in whole panels
      const int64_t outputs = block.outputs - last_group + round_up(last_group, panel_);
      tile.depth = std::max(tile.depth, block.depth);
      tile.outputs = std::max(tile.outputs, round_up(outputs, panel_));
    }
    return tile;
  }

  // The end of the pass that begins with block `begin`: at least one block, at most `most_bytes` of input.
  int64_t end_of_pass(int64_t begin, int64_t channel_bytes, int64_t most_bytes) const {
    int64_t end = begin + 1, bytes = blocks[begin].count * channel_bytes;
    while (end < count() && (bytes += blocks[end].count * channel_bytes) <= most_bytes) ++end;
    return end;
  }

  std::vector<ChannelBlock> blocks;

 private:
  int64_t group_of(int64_t channel, int64_t groups) const {
    return groups ? channel / (shape_.channels / groups) : 0;
  }
  int64_t end_of_group(int64_t channel, int64_t groups) const {
    return groups ? (group_of(channel, groups) + 1) * (shape_.channels / groups) : shape_.channels;
  }

  ChannelBlock block_from(int64_t channel, int64_t most_channels) const {
    const DeformConvShapes& s = shape_;
    const int64_t groups = depthwise_ ? 1 : s.groups;
    const int64_t group_channels = s.channels / groups, group_outputs = s.out_channels / groups;
    // at least two channels, because bfloat16 is multiplied in pairs
    const bool narrow = group_channels > 1 && group_channels < panel_ && panel_ % group_channels == 0;
    ChannelBlock block{};
    block.group = channel / group_channels;
    block.first = channel;
    block.offset_group = group_of(channel, s.offset_groups);
    block.mask_group = group_of(channel, s.mask_groups);
    const int64_t most = std::min({end_of_group(channel, s.offset_groups),
                                   end_of_group(channel, s.mask_groups), channel + most_channels}) -
                         channel;
    const int64_t whole_panels = most / panel_ * panel_;
    const bool joins = narrow && channel % group_channels == 0 && whole_panels > 0;
    block.count = joins ? whole_panels : std::min(most, (block.group + 1) * group_channels - channel);
    block.groups = joins ? block.count / group_channels : 1;
    block.opens_group = depthwise_ || channel % group_channels == 0;
    block.closes_group = depthwise_ || (channel + block.count) % group_channels == 0;
    block.outputs = depthwise_ ? block.count : block.groups * group_outputs;
    block.first_output = depthwise_ ? channel : block.group * group_outputs;
    block.panel_outputs = joins ? panel_ / group_channels * group_outputs : block.outputs;
    block.depth = round_up(s.taps * block.count, panel_);
    return block;
  }

  const DeformConvShapes& shape_;
  bool depthwise_;
  int64_t panel_;
};

}  // namespace dcnzoo
