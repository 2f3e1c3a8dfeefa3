// Packs the weight into the layout that the matrix products read. Included by *_cpu_kernel.cpp only.
#pragma once

#include <cstring>

#include "../common/simd.h"
#include "narrow.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The rows of a panel of a block's packed weight: in the forward the columns, in the backward the outputs
template <typename T, typename S>
int64_t forward_depth(const ChannelBlock& block) {
  return round_up(block.columns, kDepthStep<T, S>);
}
template <typename T, typename S>
int64_t backward_depth(const ChannelBlock& block) {
  return round_up(block.outputs, kDepthStep<T, S>);
}

// Stores one row of a pair of rows, [panel][2]: the first row in the lower halves of 32-bit lanes, the second one in
// the upper halves.
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
  if (block.is_narrow()) return pack_narrow<T>(s, block, piece, weight, packed);
  constexpr int64_t panel = kNR<S>, pair = kPair<T, S>, stretch = 64;
  S turned[stretch * panel];
  const ChannelBlock b = block;  // a local copy: the compiler would read members again after every store
  const int64_t outputs = b.outputs, channels = b.count, depth = forward_depth<T, S>(b);
  const int64_t panels = ceil_div(outputs, panel), inner = b.first_in_group(s), taps = s.taps;
  const bool sorts = columns_are_even_odd<S>(block);
  for (int64_t i = piece.begin_of(panels); i < piece.end_of(panels); ++i) {
    const int64_t o0 = i * panel;
    S* const to = packed + b.weight_at + i * depth * panel;
    const int64_t width = outputs - o0 < panel ? outputs - o0 : panel;
    if (width < panel || depth > b.columns) std::memset(to, 0, depth * panel * sizeof(S));
    if (width < panel) std::memset(turned, 0, sizeof turned);
    // (channel, tap) pairs in the order of memory: all of them, or all channels of a tap
    const bool last = weight.channel_stride == 1;
    const int64_t run = last ? channels : b.columns;
    for (int64_t first = 0, count; first < b.columns; first += count) {
      const int64_t left = run - first % run;
      count = left < stretch ? left : stretch;
      int64_t tap = last ? first / run : first % taps, channel = last ? first % run : first / taps;
      transpose(weight.at(b.first_output + o0, inner + channel, tap), weight.output_stride, turned, panel,
                width, count);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = b.column(tap, sorts ? even_odd_column(channel) : channel);
        S* const row_to = to + row / pair * panel * pair;
        const S* const row_from = turned + r * panel;
        if constexpr (pair == 2)
          store_row_of_pair(row_from, row_to, row % 2);
        else if (width == panel)  // a fixed size, which is copied in vectors
          std::memcpy(row_to, row_from, panel * sizeof(S));
        else
          for (int64_t o = 0; o < width; ++o) row_to[o] = row_from[o];
        if (last || ++tap == taps) tap = last ? tap : 0, ++channel;
      }
    }
  }
}

// Calls function(run, packed, count) for runs of weights in a piece of a block, which is some rows of every panel. A
// run starts at the pointer `run` into weight, where its elements are channel_stride apart. It starts at `packed` in
// the backward's panels of columns (tap · channel of the block), each [rows][kNR] or, of bfloat16, [rows / 2][kNR][2],
// where its elements are 1 or 2 apart. The rows are the outputs, rounded up to kDepthStep.
template <typename T, typename S, typename Weight, typename Function>
void each_backward_run(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                       const Weight& weight, Function function) {
  constexpr int64_t pair = kPair<T, S>;
  const int64_t rows = block.outputs, depth = backward_depth<T, S>(block);
  const int64_t begin = piece.begin_of(depth / pair) * pair, last = piece.end_of(depth / pair) * pair;
  const int64_t end = last < rows ? last : rows;
  // local copies: the compiler would read members again after every store
  const ChannelBlock b = block;
  const int64_t taps = s.taps, inner = b.first_in_group(s), apart = weight.channel_stride;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t tap = 0; tap < taps; ++tap) {
      auto* const channels = weight.at(b.first_output + row, inner, tap);
      for (int64_t c = 0, count; c < b.count; c += count) {
        const int64_t column = b.column(tap, c), lane = column % kNR<T>;
        const int64_t packed_row = column / kNR<T> * depth + row / pair * pair;
        count = b.count - c < kNR<T> - lane ? b.count - c : kNR<T> - lane;
        function(channels + c * apart, b.weight_at + packed_row * kNR<T> + lane * pair + row % pair, count);
      }
    }
}

template <typename T, typename S>
void pack_backward(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                   const WeightOf<const S>& weight, S* packed) {
  if (block.is_narrow()) return pack_narrow<T>(s, block, piece, weight, packed);
  constexpr int64_t pair = kPair<T, S>;
  const int64_t depth = backward_depth<T, S>(block);
  const int64_t begin = piece.begin_of(depth / pair) * pair, end = piece.end_of(depth / pair) * pair;
  for (int64_t panel = 0; panel < block.depth / kNR<T>; ++panel)
    std::memset(packed + block.weight_at + (panel * depth + begin) * kNR<T>, 0,
                (end - begin) * kNR<T> * sizeof(S));
  const int64_t apart = weight.channel_stride;
  each_backward_run<T, S>(s, block, piece, weight, [=](const S* run, int64_t to, int64_t count) {
    if (apart == 1 && pair == 1) {
      std::memcpy(packed + to, run, count * sizeof(S));
    } else {
      for (int64_t i = 0; i < count; ++i) packed[to + i * pair] = run[i * apart];
    }
  });
}

template <typename T, typename S>
void unpack_weight_gradient(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                            const T* packed, const WeightOf<S>& grad_weight) {
  if (block.is_narrow())
    return each_narrow_weight<T>(
        s, block, piece, [=](int64_t from, int64_t output, int64_t channel, int64_t tap) {
          if (output >= 0) store_lanes(grad_weight.at(output, channel, tap), packed[block.weight_at + from]);
        });
  const int64_t apart = grad_weight.channel_stride;
  const bool sorted = columns_are_even_odd<S>(block);
  each_backward_run<T, T>(s, block, piece, grad_weight, [=](S* run, int64_t from, int64_t count) {
    const T* row = packed + from;
    Vector<T> joined[2];
    if (sorted) {
      const T* const panel = row - from % kNR<T>;
      join_pairs<T>(load(panel), load(panel + kLanes<T>), joined[0], joined[1]);
      row = reinterpret_cast<const T*>(joined) + from % kNR<T>;
    }
    S stored[kNR<T>];  // a run has at most this many elements
    store_row(row, stored, count);
    for (int64_t i = 0; i < count; ++i) run[i * apart] = stored[i];
  });
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
