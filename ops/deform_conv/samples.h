// Samples of the input in the forward: over channels, whose vectors are read at the corners of one point, or over
// pixels, whose points are a vector. Included by *_cpu_kernel.cpp only.
#pragma once

#include <cstring>

#include "tile_memory.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// One point of a row. whole: all points of the table are whole.
template <typename T, typename S, int Rank, bool whole>
struct SampledPoint {
  static constexpr int corners = kCorners<Rank>;
  const S* from[corners];
  T weight[corners];
  int used = corners;
  T rest = 1;

  // The samples of as many channels, from `channel` on, as a Value holds
  template <typename Value>
  DCNZOO_INLINE Value read(int64_t channel) const {
    // not the first product: the compiler could then round another product than for other points
    Value value{};
    for (int i = 0; i < (whole ? corners : used); ++i)
      value += weight[i] * load_lanes<Value>(from[i] + channel);
    return whole ? value : value * rest;
  }
};

// The columns of a tile for a block of channels, sampled where they are read.
template <typename T, typename S, int Rank, bool whole>
struct SampledColumns {
  using Point = SampledPoint<T, S, Rank, whole>;
  static constexpr int most_lanes = kUnstoredLanes;  // of groups whose product reads them
  const ForwardPoints<T, Rank>* table;
  const S* maps;
  const int64_t* starts;
  int64_t pixel_stride;
  CornerDistances<Rank> distance;

  SampledColumns(const ForwardParams<T, S>& p, const ChannelBlock& block,
                 const ForwardMemory<T, S, Rank>& tile)
      : table(tile.table),
        maps(p.input.data + p.input.place_of(block, p.shape.in_pixels)),
        starts(tile.rows.map),
        pixel_stride(p.input.pixel_stride(block)),
        distance(p.shape, pixel_stride) {}

  // The columns from column `lane` of each tap on
  SampledColumns from(int64_t lane) const {
    SampledColumns result = *this;
    result.maps += lane;
    return result;
  }

  DCNZOO_INLINE Point at(int64_t tap, int64_t row) const {
    const ForwardPoints<T, Rank>& points = table[tap];
    const S* const map = maps + starts[row];
    Point point;
    if constexpr (whole) {
      const S* const first = map + int64_t(points.index[0][row]) * pixel_stride;
      for (int corner = 0; corner < Point::corners; ++corner) {  // the corners of a pair need one register
        point.from[corner] = first + distance.of[corner & ~1] + (corner & 1) * pixel_stride;
        point.weight[corner] = points.weight[corner][row];
      }
    } else {
      const InsideCorners<Point::corners> inside([&](int c) { return points.index[c][row]; });
      point.used = inside.count;
      point.rest = points.rest[row];
      for (int i = 0; i < inside.count; ++i) {
        point.from[i] = map + inside.index[i] * pixel_stride;
        point.weight[i] = points.weight[inside.corner[i]][row];
      }
    }
    return point;
  }
};

// The distance of the pixels that are fetched into the L1 cache
constexpr int64_t kPixelsAhead = 8;

// Computes the columns of rows [begin, end) for the `width` channels or lanes of a block, over channels. For few channels, the
// inner loop is over several rows of a tap: their columns have the same place in each row. Layout: Panels or NarrowColumns.
template <typename Panel, typename T, typename S, int Rank, bool whole, typename Layout>
void sample(const SampledColumns<T, S, Rank, whole>& all, const DeformConvShapes& s, int64_t width,
            const Layout& layout, int64_t begin, int64_t end) {
  with_channels<kLanes<T> / 2, kLanes<T>, kNR<T>, 4 * kNR<T>>(width, [&](auto channels) {
    // local variables: the compiler would read others again after every store
    const SampledColumns<T, S, Rank, whole> sampled = all;
    const Layout to = layout;
    auto* const __restrict columns = to.data;
    const int64_t taps = s.taps, ahead = kPixelsAhead * s.stride[Rank - 1] * sampled.pixel_stride;
    constexpr bool few = !whole || is_at_most<decltype(channels), kNR<T>>;
    constexpr int64_t step = few ? kRowsTogether : 1;
    for (int64_t first = begin; first < end; first += step)
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t last = few && end - first < step ? end : first + step;
        for (int64_t r = first; r < last; ++r) {
          const auto point = sampled.at(tap, r);
          const S* const fetched = few ? nullptr : point.from[kCorners<Rank> - 1] + ahead;
          each_column<T, Panel>(tap, channels, r, to, [&](auto value, int64_t c, int64_t at) {
            store_lanes(columns + at, point.template read<decltype(value)>(c));
            // not for single channels: the compiler would not vectorise the loop
            if constexpr (!few && !std::is_arithmetic_v<decltype(value)>)
              __builtin_prefetch(fetched + c, 0, 3);
          });
        }
      }
  });
}

// Over pixels: the corners of as many points as a Value has lanes. Corners outside the map (index < 0) are
// zeros. whole: all points are whole, and only the index of the first corner is read.
template <int Rank, typename Value, typename Index, typename T>
DCNZOO_INLINE void gather_corners(const T* plane, const Index* index, const CornerDistances<Rank>& distance,
                                  bool whole, Value* pixels) {
  using On = VecTraitsOf<Value>;
  const Value zero{};
  for (int corner = 0; whole && corner < kCorners<Rank>; corner += 2)
    gather_pairs(plane + distance.of[corner], index[0], pixels[corner], pixels[corner + 1]);
  for (int corner = 0; !whole && corner < kCorners<Rank>; ++corner) {
    const auto inside = index[corner] >= 0;
    const Index place = On::blend(inside, index[corner], Index{});
    pixels[corner] = On::blend(inside, gather<Value>(plane, place), zero);
  }
}

// Adds to the pixels at index, except for those outside the map. Lanes may have the same pixel.
template <typename T, typename Index, typename Value>
DCNZOO_INLINE void scatter_inside(T* plane, Index index, Value values) {
  if constexpr (std::is_arithmetic_v<Value>) {
    if (index >= 0) plane[index] += values;
  } else {
    for (int lane = 0; lane < kLanes<T>; ++lane)
      if (index[lane] >= 0) plane[index[lane]] += values[lane];
  }
}

// Adds to the pixels at index and at index + 1, two elements at a time. All are inside the map.
template <typename T, typename Index>
DCNZOO_INLINE void scatter_pairs(T* plane, Index index, Vector<T> first, Vector<T> second) {
  Vector<T> joined[2];
  join_pairs<T>(first, second, joined[0], joined[1]);
  const T* const values = reinterpret_cast<const T*>(joined);
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    Vector<T, 2>& pixels = *reinterpret_cast<Vector<T, 2>*>(plane + index[lane]);
    pixels += *reinterpret_cast<const Vector<T, 2>*>(values + 2 * lane);
  }
}

// Whether all points are whole, from the stored index of their first corner.
template <typename T, typename Index>
DCNZOO_INLINE bool all_whole(Index index) {
  if constexpr (std::is_arithmetic_v<Index>)
    return index >= 0;
  else
    return all_zero<T>((Vector<T>)(index < 0));
}

// Calls function(Value{}, row) for the rows [begin, end): vectors, then single rows.
template <typename T, typename Function>
DCNZOO_INLINE void each_row(int64_t begin, int64_t end, const Function& function) {
  int64_t row = begin;
  for (; row + kLanes<T> <= end; row += kLanes<T>) function(Vector<T>{}, row);
  for (; row < end; ++row) function(T(0), row);
}

template <typename T, typename Value>
using IndexOf = std::conditional_t<std::is_arithmetic_v<Value>, IntegerOf<T>, Vector<IntegerOf<T>>>;

// Computes the columns of a tile over pixels.
template <typename T, int Rank, bool whole>
void sample_over_pixels(const ForwardParams<T, T>& p, const ChannelBlock& block,
                        const ForwardMemory<T, T, Rank>& tile) {
  constexpr int corners = kCorners<Rank>;
  ForwardPoints<T, Rank>& points = *tile.table;  // of one tap
  const DeformConvShapes& s = p.shape;
  const CornerDistances<Rank> distance(s, 1);
  // One channel of a tap, for the rows [begin, end) of an image.
  const auto sample = [&](const T* plane, int64_t begin, int64_t end, T* to) {
    each_row<T>(begin, end, [&](auto value, int64_t row) {
      using Value = decltype(value);
      using Index = IndexOf<T, Value>;
      Index index[corners];
      Value pixels[corners];
      for (int corner = 0; corner < (whole ? 1 : corners); ++corner)
        index[corner] = load_lanes<Index>(points.index[corner] + row);
      if (!whole) index[0] = first_index(index[0]);
      gather_corners<Rank>(plane, index, distance, whole, pixels);
      for (int corner = 0; corner < corners; ++corner)
        value += load_lanes<Value>(points.weight[corner] + row) * pixels[corner];
      if (!whole) value *= load_lanes<Value>(points.rest + row);
      store_lanes(to + row, value);
    });
  };
  // the weights of lanes without a channel are zero, but the columns must not be NaN
  for (int64_t column = 0; block.is_narrow() && column < block.columns; ++column)
    if (block.input_lanes().channel_of(column % block.width) < 0)
      std::memset(tile.planes.column(column), 0, kForwardRows * sizeof(T));
  const int64_t sharing = block.sharing;
  for (int64_t first = 0; first < block.count; first += sharing)
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      compute_points(s, p.offset_mask, points_of(s, block.first + first), tile.rows, tap, points, whole);
      for (int64_t channel = first; channel < first + sharing; ++channel) {
        const T* const plane = p.input.data + p.input.place_of(block, s.in_pixels) + channel * s.in_pixels;
        T* const to = tile.planes.column(block.column(tap, block.lane_of(channel)));
        tile.rows.each_image(s.out_pixels, [&](int64_t begin, int64_t end, int64_t, int64_t) {
          sample(plane + tile.rows.map[begin], begin, end, to);
        });
      }
    }
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
