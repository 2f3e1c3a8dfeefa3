// The products of a depthwise convolution: each channel has weights of its own, packed as
// [tap][channel of the block]. Included by *_cpu_kernel.cpp only.
#pragma once

#include "columns.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The packed weight of a block, its columns and its outputs (or their gradient) for `rows` rows of a tile.
// In the functions, T is the type of the computation and S the type of columns and weight.
struct DepthwiseTile {
  int64_t taps;
  int64_t channels;
  int64_t rows;
  int64_t panel_stride;   // of the columns
  int64_t output_stride;  // between rows of the outputs, [row][channel]
};

// Calls visit(zero, output, weight, column) with pointers to the matching elements. zero: as in each_column.
// Clear: sets the outputs to 0 first.
template <typename T, bool Clear, typename Output, typename Weight, typename Column, typename Visit>
DCNZOO_INLINE void each_depthwise(const DepthwiseTile& tile, Output* outputs, Weight* weight, Column* columns,
                                  Visit visit) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    Output* const row = outputs + r * tile.output_stride;
    if constexpr (Clear)
      for (int64_t c = 0; c < tile.channels; ++c) row[c] = 0;
    for (int64_t tap = 0; tap < tile.taps; ++tap) {
      Weight* const by = weight + tap * tile.channels;
      each_column<T>(tap, tile.channels, r, tile.panel_stride,
                     [&](auto zero, int64_t c, int64_t at) { visit(zero, row + c, by + c, columns + at); });
    }
  }
}

template <typename T, typename S>
void depthwise_forward(const DepthwiseTile& tile, const S* columns, const S* weight, T* output) {
  each_depthwise<T, true>(tile, output, weight, columns, [](auto zero, T* o, const S* w, const S* column) {
    using Value = decltype(zero);
    store_lanes(o, load_lanes<Value>(o) + load_lanes<Value>(column) * load_lanes<Value>(w));
  });
}

template <typename T>
void depthwise_columns_gradient(const DepthwiseTile& tile, const T* gradient, const T* weight, T* columns) {
  each_depthwise<T, false>(tile, gradient, weight, columns, [](auto zero, const T* g, const T* w, T* column) {
    using Value = decltype(zero);
    store_lanes(column, load_lanes<Value>(g) * load_lanes<Value>(w));
  });
}

template <typename T>
void depthwise_weight_gradient(const DepthwiseTile& tile, const T* gradient, const T* columns,
                               T* grad_weight) {
  each_depthwise<T, false>(
      tile, gradient, grad_weight, columns, [](auto zero, const T* g, T* w, const T* column) {
        using Value = decltype(zero);
        store_lanes(w, load_lanes<Value>(w) + load_lanes<Value>(g) * load_lanes<Value>(column));
      });
}

// Calls function(place, packed) for every weight of a block, with its index in the weight tensor, [channel][tap], and in the
// packed weight.
template <typename Function>
void each_depthwise_weight(int64_t taps, const ChannelBlock& block, Function function) {
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t c = 0; c < block.count; ++c)
      function((block.first + c) * taps + tap, block.weight_at + tap * block.count + c);
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
