// The memory of a tile, and the layouts of its columns (as in im2col): the sampled values [row][tap · channel of the
// block]. Included by *_cpu_kernel.cpp only.
#pragma once

#include "sampling_table.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// Columns for matrix products, in panels: [column / kNR][row][kNR].
template <typename S>
struct Panels {
  S* data;
  int64_t stride;  // from one panel to the next

  // The extra row keeps the rows of different panels out of the same L1 cache set.
  Panels(S* data, const TileSizes& tile) : data(data), stride((tile.rows + 1) * kNR<S>) {}

  DCNZOO_INLINE int64_t place(int64_t row, uint64_t column) const {  // unsigned: division by shifts alone
    return int64_t(column / kNR<S>) * stride + row * kNR<S> + int64_t(column % kNR<S>);
  }
  DCNZOO_INLINE S* at(int64_t row, int64_t column) const { return data + place(row, column); }
  DCNZOO_INLINE int64_t panel_stride() const { return stride; }

  static Panels take(Arena& arena, const TileSizes& tile) {
    return Panels(arena.take<S>(tile.depth / kNR<S> * Panels(nullptr, tile).stride), tile);
  }
};

// The rows whose columns of a tap are computed together, if there are few channels or if the columns are used at once
constexpr int64_t kRowsTogether = 16;

// Columns of narrow groups, of kRowsTogether rows, which the L1 cache holds: [row][tap · width of the block].
template <typename T>
struct NarrowColumns {
  struct Point {
    const T* from;
    template <typename Value>
    DCNZOO_INLINE Value read(int64_t lane) const {
      return load_lanes<Value>(from + lane);
    }
  };
  static constexpr int most_lanes = kLanes<T>;  // of groups whose product reads them
  T* data;
  int64_t stride, width;

  DCNZOO_INLINE int64_t place(int64_t row, int64_t column) const {
    return row % kRowsTogether * stride + column;
  }
  DCNZOO_INLINE int64_t panel_stride() const { return kNR<T>; }
  // As in SampledColumns
  NarrowColumns from(int64_t lane) const { return {data + lane, stride, width}; }
  DCNZOO_INLINE Point at(int64_t tap, int64_t row) const { return {data + place(row, tap * width)}; }
};

// Columns of samples over pixels: [column][rows].
template <typename T, int64_t rows>
struct Planes {
  T* data;

  DCNZOO_INLINE T* column(int64_t column) const { return data + column * rows; }

  void to_panels(const Panels<T>& panels, int64_t columns, int64_t count) const {
    for (int64_t first = 0; first < columns; first += kNR<T>)
      transpose(column(first), rows, panels.at(0, first), kNR<T>, columns_from(first, columns), count);
  }
  void to_rows(const NarrowColumns<T>& to, int64_t columns, int64_t begin, int64_t end) const {
    transpose(data + begin, rows, to.data, to.stride, columns, end - begin);
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

template <typename T, typename S>
using ForwardParams = DeformConvForwardParams<T, S>;
template <typename T, typename S>
using BackwardParams = DeformConvBackwardParams<T, S>;

// bfloat16 is multiplied in pairs of rows of the right operand: see gemm.h.
template <typename T, typename S>
constexpr int64_t kPair = sizeof(T) / sizeof(S);
static_assert(kNR<BFloat16Bits> ==
              kNR<float>);  // panels of columns and of their gradient have the same columns

template <typename T, typename S, int Rank>
struct ForwardMemory {
  Rows<T, Rank> rows;
  ForwardPoints<T, Rank>* table;   // [tap]
  Panels<S> columns;               // of matrix products
  T* narrow;                       // those of narrow groups: see NarrowColumns
  Planes<T, kForwardRows> planes;  // samples over pixels, before they become panels or NarrowColumns
  T* result;                       // [row][ChannelBlock::result_row, padded to whole panels]
  T* bias;                         // of narrow groups, in the lanes of the result

  ForwardMemory(Arena& arena, const ForwardParams<T, S>& p)
      : rows(Rows<T, Rank>::allocate(arena, p.tile.rows)),
        table(arena.take<ForwardPoints<T, Rank>>(p.shape.taps)),
        columns(Panels<S>::take(arena, p.tile)),
        narrow(arena.take<T>(is_narrow(p.way()) ? p.tile.depth * kRowsTogether : 0)),
        planes{arena.take<T>(is_over_pixels(p.way()) ? p.tile.depth * kForwardRows : 0)},
        result(arena.take<T>(p.tile.outputs * p.tile.rows)),
        bias(arena.take<T>(p.tile.outputs)) {}
};

template <typename T, typename S, int Rank>
struct BackwardMemory {
  Rows<T, Rank> rows;
  BackwardPoints<T, Rank>* table;   // [tap]
  Panels<T> gradients;              // of the columns
  Panels<S> columns;                // in the same memory unless the type differs
  S* gradient;                      // of the output, [output][row] or, of narrow groups, [row][gradient_row]
  S* pairs;                         // bfloat16: `gradient` as [row][output], rows pair_stride apart
  T* dots;                          // Σ over channels of gradient · pixel, [tap][corner][row]
  T* offset_mask;                   // gradients of offset and mask, [PointChannels][row]
  Planes<T, kBackwardRows> planes;  // samples over pixels: `gradients`

  BackwardMemory(Arena& arena, const BackwardParams<T, S>& p)
      : rows(Rows<T, Rank>::allocate(arena, kBackwardRows)),
        table(arena.take<BackwardPoints<T, Rank>>(p.shape.taps)),
        gradients(Panels<T>::take(arena, p.tile)),
        columns(kPair<T, S> == 1 ? Panels<S>(reinterpret_cast<S*>(gradients.data), p.tile)
                                 : Panels<S>::take(arena, p.tile)),
        gradient(
            arena.take<S>(p.tile.outputs * kBackwardRows + kLanes<S>)),  // the last load reads a whole vector
        pairs(arena.take<S>(kPair<T, S> == 1 ? 0 : pair_stride(p) * kBackwardRows)),
        dots(arena.take<T>(p.shape.taps * kCorners<Rank> * kBackwardRows)),
        offset_mask(arena.take<T>(point_channels(p.shape).count() * kBackwardRows)),
        planes{arena.take<T>(is_over_pixels(p.way()) ? p.tile.depth * kBackwardRows : 0)} {}

  // The rows of a tap's dots, [corner][row]
  T* dots_of(int64_t tap) const { return dots + tap * kCorners<Rank> * kBackwardRows; }
  // The rows of the gradient of one of PointChannels
  T* point_gradient(int64_t channel) const { return offset_mask + channel * kBackwardRows; }

  // The padding keeps rows out of the same L1 cache set.
  static int64_t pair_stride(const BackwardParams<T, S>& p) { return p.tile.outputs + kNR<S>; }
};

// Whether a number of channels is a constant that is at most `most`.
template <typename Channels, int64_t most>
constexpr bool is_at_most = false;
template <int64_t channels, int64_t most>
constexpr bool is_at_most<std::integral_constant<int64_t, channels>, most> = channels <= most;

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

// Whether the columns of a block are in the order of even_odd_column. Its samples are computed in whole panels then.
template <typename S>
bool columns_are_even_odd(const ChannelBlock& block) {
  return std::is_same_v<S, uint16_t> && block.count % kNR<S> == 0 && !block.is_narrow();
}
// The type of the values in one step of a loop over such panels
template <typename S>
using Whole = std::conditional_t<std::is_same_v<S, uint16_t>, EvenOdd, Vector<S>>;

// Visits the columns of one (row, tap): panels, vectors or half vectors if the channel count allows, else single elements.
// visit(zero, channel, place): `zero` has the type of the vector or element, `place` is its offset in a layout of columns.
template <typename T, typename Panel = Vector<T>, typename Layout, typename Channels, typename Visit>
DCNZOO_INLINE void each_column(int64_t tap, Channels channels, int64_t row, const Layout& layout,
                               Visit visit) {
  constexpr int lanes = kLanes<T>, half = lanes / 2, panel = kNR<T>;
  const int64_t first = tap * channels;
  if (channels % panel == 0) {
    int64_t at = layout.place(row, first);
    for (int64_t c = 0; c < channels; c += panel, at += layout.panel_stride()) {
      visit(Panel{}, c, at);
      if constexpr (std::is_same_v<Panel, Vector<T>>) visit(Vector<T>{}, c + lanes, at + lanes);
    }
  } else if (channels % lanes == 0) {
    for (int64_t c = 0; c < channels; c += lanes) visit(Vector<T>{}, c, layout.place(row, first + c));
  } else if (channels % half == 0) {
    for (int64_t c = 0; c < channels; c += half) visit(HalfVector<T>{}, c, layout.place(row, first + c));
  } else {
    for (int64_t c = 0; c < channels; ++c) visit(T(0), c, layout.place(row, first + c));
  }
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
