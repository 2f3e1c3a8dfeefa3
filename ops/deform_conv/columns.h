// The im2col columns of a tile: the sampled values [row][tap · channel of the block], in panels of kNR columns.
// Included by *_cpu_kernel.cpp only.
#pragma once

#include "../common/simd.h"
#include "deform_conv_cpu_kernel.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The distance from one panel to the next. The extra row keeps the rows of different panels out of the same L1 cache
// set.
template <typename T>
DCNZOO_INLINE int64_t panel_stride(const TileSizes& tile) {
  return (tile.rows + 1) * kNR<T>;
}

template <typename T>
DCNZOO_INLINE int64_t columns_size(const TileSizes& tile) {
  return tile.depth / kNR<T> * panel_stride<T>(tile);
}

// Calls run(channels), with a constant if the channels are those of one vector: then the loops of few channels have no
// branches.
template <typename T, typename Run>
DCNZOO_INLINE void with_channels(int64_t channels, const Run& run) {
  if (channels == kLanes<T>)
    run(std::integral_constant<int64_t, kLanes<T>>{});
  else
    run(channels);
}

// Visits the columns of one (row, tap): whole vectors if the channel count allows, else single elements.
// visit(zero, channel, column): `zero` has the type of the vector or element, `column` is its offset within the panels.
template <typename T, typename Channels, typename Visit>
DCNZOO_INLINE void each_column(int64_t tap, Channels channels, int64_t row, int64_t stride, Visit visit) {
  constexpr int lanes = kLanes<T>, panel = kNR<T>;
  int64_t column = tap * channels;
  if (channels % panel == 0) {
    int64_t at = column / panel * stride + row * panel;
    for (int64_t c = 0; c < channels; c += panel, at += stride) {
      visit(Vector<T>{}, c, at);
      visit(Vector<T>{}, c + lanes, at + lanes);
    }
  } else if (channels % lanes == 0) {
    for (int64_t c = 0; c < channels; c += lanes, column += lanes)
      visit(Vector<T>{}, c, column / panel * stride + row * panel + column % panel);
  } else {
    for (int64_t c = 0; c < channels; ++c, ++column)
      visit(T(0), c, column / panel * stride + row * panel + column % panel);
  }
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
