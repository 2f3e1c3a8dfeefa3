// Copies between maps, whose pixels or channels are neighbours in memory, and the layouts of a tile. Included by
// *_cpu_kernel.cpp only.
#pragma once

#include <cstring>

#include "tile_memory.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

static_assert(kForwardRows <= kStretch && kBackwardRows <= kStretch);  // tiles are copied at once

// [channels][stride] or, if channels_last, [pixels][stride] -> [pixels][width], pixels to_stride apart. Lanes without a
// channel become zero.
template <typename S>
void to_lanes(const LaneMap& map, const S* from, int64_t stride, bool channels_last, S* to, int64_t width,
              int64_t to_stride, int64_t pixels) {
  constexpr int64_t lanes = kLanes<S>;
  static const S zeros[kStretch] = {};
  const int64_t copied = channels_last && map.is_identity() ? map.groups * map.channels : 0;
  for (int64_t pixel = 0; copied > 0 && pixel < pixels; ++pixel)
    std::memcpy(to + pixel * to_stride, from + pixel * stride, copied * sizeof(S));
  for (int64_t first = copied; first < width; first += lanes) {
    const int64_t count = width - first < lanes ? width - first : lanes;
    const S* rows[lanes];
    bool has_channel[lanes];
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t channel = map.channel_of(first + lane);
      has_channel[lane] = channel >= 0;
      rows[lane] = channel < 0 ? zeros : from + channel * (channels_last ? 1 : stride);
    }
    int64_t pixel = 0;
    for (; !channels_last && count == lanes && pixel + lanes <= pixels; pixel += lanes)
      transpose_square<S>([&](int i) { return rows[i] + pixel; },
                          [&](int i) { return to + (pixel + i) * to_stride + first; });
    for (; pixel < pixels; ++pixel) {
      const int64_t at = pixel * (channels_last ? stride : 1);
      for (int64_t lane = 0; lane < count; ++lane)
        to[pixel * to_stride + first + lane] = has_channel[lane] ? rows[lane][at] : S(0);
    }
  }
}

// The reverse, rounded to S: [pixels][width] -> [channels][stride] or [pixels][stride]
template <typename T, typename S>
void from_lanes(const LaneMap& map, const T* from, int64_t width, int64_t from_stride, S* to, int64_t stride,
                bool channels_last, int64_t pixels) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr bool rounds = !std::is_same_v<T, S>;
  if (channels_last && map.is_identity()) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      store_row(from + pixel * from_stride, to + pixel * stride, map.groups * map.channels);
    return;
  }
  const int64_t channel_stride = channels_last ? 1 : stride, pixel_stride = channels_last ? stride : 1;
  T unused[(rounds ? lanes : 1) *
           kStretch];  // the rows that are rounded, or those of lanes without a channel
  int64_t first = 0;
  for (; !channels_last && first + lanes <= width; first += lanes) {
    T* rows[lanes];
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t channel = map.channel_of(first + lane);
      if constexpr (rounds)
        rows[lane] = unused + lane * kStretch;
      else
        rows[lane] = channel < 0 ? unused : to + channel * stride;
    }
    int64_t pixel = 0;
    for (; pixel + lanes <= pixels; pixel += lanes)
      transpose_square<T>([&](int i) { return from + (pixel + i) * from_stride + first; },
                          [&](int i) { return rows[i] + pixel; });
    for (; pixel < pixels; ++pixel)
      for (int64_t lane = 0; lane < lanes; ++lane)
        rows[lane][pixel] = from[pixel * from_stride + first + lane];
    for (int64_t lane = 0; rounds && lane < lanes; ++lane)
      if (const int64_t channel = map.channel_of(first + lane); channel >= 0)
        store_row(rows[lane], to + channel * stride, pixels);
  }
  for (; first < width; ++first) {
    const int64_t channel = map.channel_of(first);
    for (int64_t pixel = 0; channel >= 0 && pixel < pixels; ++pixel)
      store_lanes(to + channel * channel_stride + pixel * pixel_stride, from[pixel * from_stride + first]);
  }
}

// Loads a group's sums over the blocks of earlier passes. Only contiguous outputs of S = T have several passes, and
// only groups with a matrix product have several blocks.
template <typename T, typename S, int Rank>
void load_group(const ForwardParams<T, S>& p, const ChannelBlock& block,
                const ForwardMemory<T, S, Rank>& tile) {
  const int64_t padded = p.tile.outputs;
  if constexpr (std::is_same_v<S, T>)
    tile.rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
      transpose(p.output.at(p.shape, image, block.first_output, pixel), p.shape.out_pixels,
                tile.result + begin * padded, padded, block.outputs, end - begin);
    });
}

// Stores the sums of a block: narrow groups part by part. If those of a wide group are complete, the bias is added first.
template <typename T, typename S, int Rank>
void store_result(const ForwardParams<T, S>& p, const ChannelBlock& block,
                  const ForwardMemory<T, S, Rank>& tile) {
  const bool adds_bias = !block.is_narrow() && p.bias && block.closes_group;
  for (int64_t r = 0; adds_bias && r < tile.rows.count; ++r) {
    T* __restrict row = tile.result + r * p.tile.outputs;
    for (int64_t o = 0; o < block.outputs; ++o) row[o] += p.bias[block.first_output + o];
  }
  for (int64_t part = 0; part < block.parts(); ++part) {
    const LaneMap lanes = block.output_lanes(part);
    const int64_t width = round_up(lanes.groups * lanes.lanes, kLanes<T>);
    tile.rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
      from_lanes(lanes, tile.result + begin * p.tile.outputs + part * block.width, width, p.tile.outputs,
                 p.output.at(p.shape, image, block.first_output, pixel), p.output.stride(p.shape),
                 p.output.channels_last, end - begin);
    });
  }
}

// Copies the output's gradient for the tile, in the layout of BackwardMemory.gradient.
template <typename T, typename S, int Rank>
void gather_gradient(const BackwardParams<T, S>& p, const ChannelBlock& block,
                     const BackwardMemory<T, S, Rank>& tile) {
  const bool last = p.grad_output.channels_last;
  const int64_t stride = p.grad_output.stride(p.shape), outputs = block.outputs;
  tile.rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    const int64_t count = end - begin;
    const S* const from = p.grad_output.at(p.shape, image, block.first_output, pixel);
    if (block.is_narrow()) {
      const int64_t each = outputs / block.groups, groups = block.padded_groups(), row = block.gradient_row();
      for (int64_t o = 0; o < each; ++o)
        to_lanes(LaneMap{1, block.groups, each, o}, from, stride, last,
                 tile.gradient + begin * row + o * groups, groups, row, count);
    } else if (last) {
      transpose(from, stride, tile.gradient + begin, kBackwardRows, count, outputs);
    } else {
      for (int64_t o = 0; o < outputs; ++o)
        std::memcpy(tile.gradient + o * kBackwardRows + begin, from + o * stride, count * sizeof(S));
    }
  });
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
