// Packs the weight into the layout that the matrix products read. Included by *_cpu_kernel.cpp only.
#pragma once

#include <cstring>

#include "../common/simd.h"
#include "depthwise.h"
#include "narrow_groups.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The number of rows of a panel of a group's packed weight. If a block has several groups, each of their taps is a product.
template <typename T, typename S>
int64_t packed_depth(const DeformConvShapes& s, const ChannelBlock& block) {
  const int64_t depth = s.taps * (block.count / block.groups);
  return block.groups == 1 ? round_up(depth, kDepthStep<T, S>) : depth;
}

// Stores one row of a pair of rows, [panel][2]: the first row in the lower halves of 32-bit lanes, the second one in the
// upper halves.
DCNZOO_INLINE void store_row_of_pair(const uint16_t* row, uint16_t* to, bool second) {
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));
  constexpr int lanes = kLanes<uint16_t>;
  for (int i = 0; i < 2; ++i) {
    const Wide bits = (Wide)load_lanes<Vector<float>>(row + i * lanes);
    Wide& pairs = *reinterpret_cast<Wide*>(to + i * 2 * lanes);
    pairs = second ? (pairs & 0xffff) | bits : (pairs & 0xffff0000) | bits >> 16;
  }
}

// weight -> panels of outputs, each [tap · channel of the block][kNR], bfloat16 in pairs of rows
template <typename T, typename S>
void pack_forward(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                  const WeightOf<const S>& weight, S* packed) {
  if (s.is_depthwise()) {
    if (piece.index == 0)
      each_depthwise_weight(s.taps, block, [=](int64_t from, int64_t to) { packed[to] = weight.data[from]; });
    return;
  }
  if (narrow_channels<T>(s, block)) return pack_narrow(s, block, piece, weight, packed + block.weight_at);
  constexpr int64_t panel = kNR<S>, pair = sizeof(S) == sizeof(T) ? 1 : 2, stretch = 64;
  S turned[stretch * panel];
  const int64_t outputs = s.out_channels / s.groups, group_channels = s.channels / s.groups;
  const int64_t inner = block.first - block.group * group_channels;
  const int64_t channels = block.count / block.groups, depth = packed_depth<T, S>(s, block);
  const int64_t panels = ceil_div(outputs, panel), all_panels = block.groups * panels;
  const bool sorts = pair > 1 && has_whole_panels(s, block, panel);
  for (int64_t i = piece.begin_of(all_panels); i < piece.end_of(all_panels); ++i) {
    const int64_t group = block.group + i / panels, o0 = i % panels * panel;
    S* const to = packed + block.weight_at + i * depth * panel;
    const int64_t width = outputs - o0 < panel ? outputs - o0 : panel;
    if (width < panel || depth > s.taps * channels) std::memset(to, 0, depth * panel * sizeof(S));
    if (width < panel) std::memset(turned, 0, sizeof turned);
    const int64_t from_stride = group_channels * s.taps;
    const S* const from = weight.data + (group * outputs + o0) * from_stride + inner * weight.channel_stride;
    // (channel, tap) pairs in the order of memory: all of them, or all channels of a tap
    const bool last = weight.channel_stride == 1;
    const int64_t all = channels * s.taps, run = last ? channels : all;
    for (int64_t first = 0, count; first < all; first += count) {
      const int64_t left = run - first % run;
      count = left < stretch ? left : stretch;
      int64_t tap = last ? first / run : first % s.taps, channel = last ? first % run : first / s.taps;
      transpose(from + channel * weight.channel_stride + tap * weight.tap_stride, from_stride, turned, panel,
                width, count);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = tap * channels + (sorts ? even_odd_column(channel) : channel);
        S* const row_to = to + row / pair * panel * pair;
        const S* const row_from = turned + r * panel;
        if constexpr (pair == 2)
          store_row_of_pair(row_from, row_to, row % 2);
        else if (width == panel)  // a fixed size, which is copied in vectors
          std::memcpy(row_to, row_from, panel * sizeof(S));
        else
          for (int64_t o = 0; o < width; ++o) row_to[o] = row_from[o];
        if (last || ++tap == s.taps) tap = last ? tap : 0, ++channel;
      }
    }
  }
}

// Calls function(place, packed, count) for runs of weights in a piece of a block, which is some rows of every panel. A run
// starts at `place` in weight, where its elements are channel_stride apart. It starts at `packed` in the backward's
// panels of columns (tap · channel of the block), each [rows][kNR] or, of bfloat16, [rows / 2][kNR][2], where its elements are
// 1 or 2 apart. The rows are panel_outputs, rounded up to kDepthStep.
template <typename T, typename S, typename Weight, typename Function>
void each_backward_run(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                       const Weight& weight, Function function) {
  constexpr int64_t pair = sizeof(T) / sizeof(S);
  if (s.is_depthwise()) {
    if (piece.index == 0)
      each_depthwise_weight(s.taps, block,
                            [=](int64_t place, int64_t packed) { function(place, packed, int64_t(1)); });
    return;
  }
  const int64_t outputs = s.out_channels / s.groups, group_channels = s.channels / s.groups;
  const int64_t inner = block.first - block.group * group_channels, channels = block.count / block.groups;
  const int64_t rows = block.panel_outputs, depth = round_up(rows, kDepthStep<T, S>);
  const int64_t begin = piece.begin_of(depth / pair) * pair, last = piece.end_of(depth / pair) * pair;
  const int64_t end = last < rows ? last : rows;
  for (int64_t i = 0; i < block.outputs / rows * (end - begin); ++i) {
    const int64_t row = begin + i % (end - begin), o = i / (end - begin) * rows + row, group = o / outputs;
    const int64_t from =
        (block.group * outputs + o) * group_channels * s.taps + inner * weight.channel_stride;
    for (int64_t tap = 0; tap < s.taps; ++tap)
      for (int64_t c = 0, count; c < channels; c += count) {
        const int64_t column = tap * block.count + group * channels + c, lane = column % kNR<T>;
        const int64_t packed_row = column / kNR<T> * depth + row / pair * pair;
        count = channels - c < kNR<T> - lane ? channels - c : kNR<T> - lane;
        function(from + c * weight.channel_stride + tap * weight.tap_stride,
                 block.weight_at + packed_row * kNR<T> + lane * pair + row % pair, count);
      }
  }
}

template <typename T, typename S>
void pack_backward(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                   const WeightOf<const S>& weight, S* packed) {
  constexpr int64_t pair = sizeof(T) / sizeof(S);
  const int64_t depth = round_up(block.panel_outputs, kDepthStep<T, S>);
  const int64_t begin = piece.begin_of(depth / pair) * pair, end = piece.end_of(depth / pair) * pair;
  for (int64_t panel = 0; !s.is_depthwise() && panel < block.depth / kNR<T>; ++panel)
    std::memset(packed + block.weight_at + (panel * depth + begin) * kNR<T>, 0,
                (end - begin) * kNR<T> * sizeof(S));
  const int64_t apart = weight.channel_stride;
  each_backward_run<T, S>(s, block, piece, weight, [=](int64_t from, int64_t to, int64_t count) {
    if (apart == 1 && pair == 1) {
      std::memcpy(packed + to, weight.data + from, count * sizeof(S));
    } else {
      for (int64_t i = 0; i < count; ++i) packed[to + i * pair] = weight.data[from + i * apart];
    }
  });
}

template <typename T, typename S>
void unpack_weight_gradient(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                            const T* packed, const WeightOf<S>& grad_weight) {
  const int64_t apart = grad_weight.channel_stride;
  const bool sorted = std::is_same_v<Whole<S>, EvenOdd> && block.count % kNR<T> == 0;  // as the columns are
  each_backward_run<T, T>(s, block, piece, grad_weight, [=](int64_t to, int64_t from, int64_t count) {
    const T* row = packed + from;
    Vector<T> joined[2];
    if (sorted) {
      const T* const panel = row - from % kNR<T>;
      join_pairs<T>(load(panel), load(panel + kLanes<T>), joined[0], joined[1]);
      row = reinterpret_cast<const T*>(joined) + from % kNR<T>;
    }
    S stored[kNR<T>];  // a run has at most this many elements; in a depthwise convolution, it has one
    store_row(row, stored, count);
    for (int64_t i = 0; i < count; ++i) grad_weight.data[to + i * apart] = stored[i];
  });
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
