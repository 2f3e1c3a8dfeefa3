// Packs the weight into the layout that the matrix products read. Included by *_cpu_kernel.cpp only.
#pragma once

#include <cstring>

#include "../common/simd.h"
#include "depthwise.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// weight [out][channel of the group][tap] -> panels of outputs, each [tap · channel of the block][kNR],
// bfloat16 in pairs of rows
template <typename T, typename S>
void pack_forward(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece, const S* weight,
                  S* packed) {
  if (s.is_depthwise()) {
    if (piece.index == 0)
      each_depthwise_weight(s.taps, block, [=](int64_t from, int64_t to) { packed[to] = weight[from]; });
    return;
  }
  constexpr int64_t panel = kNR<S>, pair = sizeof(S) == sizeof(T) ? 1 : 2, stretch = 64;
  S turned[stretch * panel];
  const int64_t outputs = s.out_channels / s.groups, group_channels = s.channels / s.groups;
  const int64_t inner = block.first - block.group * group_channels;
  const int64_t channels = block.count / block.groups, depth = block.depth / block.groups;
  const int64_t panels = ceil_div(outputs, panel), all_panels = block.groups * panels;
  for (int64_t i = piece.begin_of(all_panels); i < piece.end_of(all_panels); ++i) {
    const int64_t group = block.group + i / panels, o0 = i % panels * panel;
    S* const to = packed + block.weight_at + i * depth * panel;
    const int64_t width = outputs - o0 < panel ? outputs - o0 : panel;
    if (width < panel || depth > s.taps * channels) std::memset(to, 0, depth * panel * sizeof(S));
    const S* from = weight + ((group * outputs + o0) * group_channels + inner) * s.taps;
    const int64_t from_stride = group_channels * s.taps, all = channels * s.taps;
    for (int64_t first = 0; first < all; first += stretch) {  // (channel, tap) pairs in the order of weight
      const int64_t count = all - first < stretch ? all - first : stretch;
      transpose(from + first, from_stride, turned, panel, width, count);
      int64_t tap = first % s.taps, channel = first / s.taps;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = tap * channels + channel;
        S* const row_to = to + row / pair * panel * pair + row % pair;
        const S* const row_from = turned + r * panel;
        if (pair == 1 && width == panel) {  // a fixed size, which is copied in vectors
          std::memcpy(row_to, row_from, panel * sizeof(S));
        } else {
          for (int64_t o = 0; o < width; ++o) row_to[o * pair] = row_from[o];
        }
        if (++tap == s.taps) tap = 0, ++channel;
      }
    }
  }
}

// Calls run(place, packed, count) for runs of weights in a piece of a block, which is some rows of every panel. A run
// starts at `place` in weight, where its elements are s.taps apart. It starts at `packed` in the backward's panels of
// columns (tap · channel of the block), each [panel_outputs][kNR], where its elements are contiguous.
template <typename T, typename Run>
void each_backward_run(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece, Run run) {
  if (s.is_depthwise()) {
    if (piece.index == 0)
      each_depthwise_weight(s.taps, block,
                            [=](int64_t place, int64_t packed) { run(place, packed, int64_t(1)); });
    return;
  }
  const int64_t outputs = s.out_channels / s.groups, group_channels = s.channels / s.groups;
  const int64_t inner = block.first - block.group * group_channels, channels = block.count / block.groups;
  const int64_t rows = block.panel_outputs, begin = piece.begin_of(rows), end = piece.end_of(rows);
  for (int64_t i = 0; i < block.outputs / rows * (end - begin); ++i) {
    const int64_t row = begin + i % (end - begin), o = i / (end - begin) * rows + row, group = o / outputs;
    const int64_t from = ((block.group * outputs + o) * group_channels + inner) * s.taps;
    for (int64_t tap = 0; tap < s.taps; ++tap)
      for (int64_t c = 0, count; c < channels; c += count) {
        const int64_t column = tap * block.count + group * channels + c, lane = column % kNR<T>;
        count = channels - c < kNR<T> - lane ? channels - c : kNR<T> - lane;
        run(from + c * s.taps + tap, block.weight_at + (column / kNR<T> * rows + row) * kNR<T> + lane, count);
      }
  }
}

template <typename T>
void pack_backward(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece, const T* weight,
                   T* packed) {
  const int64_t outputs = block.panel_outputs, begin = piece.begin_of(outputs), end = piece.end_of(outputs);
  for (int64_t panel = 0; !s.is_depthwise() && panel < block.depth / kNR<T>; ++panel)
    std::memset(packed + block.weight_at + (panel * outputs + begin) * kNR<T>, 0,
                (end - begin) * kNR<T> * sizeof(T));
  const int64_t apart = s.taps;
  each_backward_run<T>(s, block, piece, [=](int64_t from, int64_t to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) packed[to + i] = weight[from + i * apart];
  });
}

template <typename T>
void unpack_weight_gradient(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                            const T* packed, T* grad_weight, bool accumulate) {
  const int64_t apart = s.taps;
  each_backward_run<T>(s, block, piece, [=](int64_t to, int64_t from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      T* const value = grad_weight + to + i * apart;
      *value = accumulate ? *value + packed[from + i] : packed[from + i];
    }
  });
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
