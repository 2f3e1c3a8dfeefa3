// The im2col columns of a tile: the sampled values [row][tap · channel of the block], and the layouts that they have.
// Included by *_cpu_kernel.cpp only.
#pragma once

#include "../common/simd.h"
#include "deform_conv_cpu_kernel.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// Columns for matrix products, in panels: [column / kNR][row][kNR].
template <typename S>
struct Panels {
  S* data;
  int64_t stride;  // from one panel to the next

  // The extra row keeps the rows of different panels out of the same L1 cache set.
  Panels(S* data, const TileSizes& tile) : data(data), stride((tile.rows + 1) * kNR<S>) {}

  static int64_t size_of(const TileSizes& tile) { return tile.depth / kNR<S> * Panels(nullptr, tile).stride; }
  DCNZOO_INLINE S* at(int64_t row, int64_t column) const {
    return data + column / kNR<S> * stride + row * kNR<S> + column % kNR<S>;
  }
};

// Columns whose pixels are the lanes of samples: [column][rows].
template <typename T, int64_t rows>
struct Planes {
  T* data;

  DCNZOO_INLINE T* column(int64_t column) const { return data + column * rows; }

  void to_panels(const Panels<T>& panels, int64_t columns, int64_t count) const {
    for (int64_t first = 0; first < columns; first += kNR<T>)
      transpose(column(first), rows, panels.at(0, first), kNR<T>, columns_from(first, columns), count);
  }
  void from_panels(const Panels<T>& panels, int64_t columns, int64_t count) const {
    for (int64_t first = 0; first < columns; first += kNR<T>)
      transpose(panels.at(0, first), kNR<T>, column(first), rows, count, columns_from(first, columns));
  }

 private:
  static int64_t columns_from(int64_t first, int64_t columns) {
    return columns - first < kNR<T> ? columns - first : kNR<T>;
  }
};

// Calls function(channels). A number that is one of the constants is passed as a constant: loops over few channels then
// have no branches.
template <int64_t... constants, typename Function>
DCNZOO_INLINE void with_channels(int64_t channels, const Function& function) {
  if (!((channels == constants && (function(std::integral_constant<int64_t, constants>{}), true)) || ...))
    function(channels);
}

// The column of a channel of a block: in a panel of bfloat16, the even channels are stored first.
inline int64_t even_odd_column(int64_t channel) {
  constexpr int64_t panel = kNR<uint16_t>;
  return channel / panel * panel + channel % 2 * (panel / 2) + channel % panel / 2;
}

DCNZOO_INLINE void store_lanes(uint16_t* to, const EvenOdd& value) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)value.odd, (__m512)value.even));
#else
  store_lanes(to, value.even);
  store_lanes(to + kLanes<uint16_t>, value.odd);
#endif
}

// The type of the values in one step of a loop over whole panels
template <typename S>
using Whole = std::conditional_t<std::is_same_v<S, uint16_t>, EvenOdd, Vector<S>>;
inline bool has_whole_panels(const ChannelBlock& block, int64_t panel) {
  return block.count % panel == 0 && !block.is_narrow();
}

// Visits the columns of one (row, tap): panels, vectors or half vectors if the channel count allows, else single elements.
// visit(zero, channel, column): `zero` has the type of the vector or element, `column` is its offset within the panels.
template <typename T, typename Panel = Vector<T>, typename Channels, typename Visit>
DCNZOO_INLINE void each_column(int64_t tap, Channels channels, int64_t row, int64_t stride, Visit visit) {
  constexpr int lanes = kLanes<T>, half = lanes / 2, panel = kNR<T>;
  const int64_t first = tap * channels;
  const auto place = [=](uint64_t column) {  // unsigned: division by shifts alone
    return int64_t(column / panel) * stride + row * panel + int64_t(column % panel);
  };
  if (channels % panel == 0) {
    int64_t at = place(first);
    for (int64_t c = 0; c < channels; c += panel, at += stride) {
      visit(Panel{}, c, at);
      if constexpr (std::is_same_v<Panel, Vector<T>>) visit(Vector<T>{}, c + lanes, at + lanes);
    }
  } else if (channels % lanes == 0) {
    for (int64_t c = 0; c < channels; c += lanes) visit(Vector<T>{}, c, place(first + c));
  } else if (channels % half == 0) {
    for (int64_t c = 0; c < channels; c += half) visit(HalfVector<T>{}, c, place(first + c));
  } else {
    for (int64_t c = 0; c < channels; ++c) visit(T(0), c, place(first + c));
  }
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
