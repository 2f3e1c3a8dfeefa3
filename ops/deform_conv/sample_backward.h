// The second step of the backward: samples the input again at the points of a tile, which gives the gradients of input,
// offset and mask, and the columns. Included by *_cpu_kernel.cpp only.
#pragma once

#include <cstring>

#include "samples.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

// What a pass over the samples of a tile computes: the gradient of the input, the gradients of offset and mask (over
// channels, their dots), and the columns.
struct SampleTargets {
  bool input, points, columns;
};

// The number of points for which sum_rows completes the dot products of gradient and pixels at once.
template <typename T, int Rank>
constexpr int64_t kTogether = kLanes<T> > kCorners<Rank> ? kLanes<T> / kCorners<Rank> : 1;

// The gradient of as many columns as a Value holds. With pixels of the type EvenOdd, it is needed in two orders: in
// memory order for the gradient of the input, and in the order of the pixels for their dot products.
template <typename T, typename Value>
struct ColumnGradient {
  using Part = std::conditional_t<std::is_same_v<Value, EvenOdd>, Vector<T>, Value>;
  Part parts[sizeof(Value) / sizeof(Part)];
  Value sorted;  // in the order of the pixels

  DCNZOO_INLINE explicit ColumnGradient(const T* from) {
    for (Part& part : parts) part = load_lanes<Part>(from), from += kLanes<T>;
    if constexpr (std::is_same_v<Value, Part>)
      sorted = parts[0];
    else
      split_pairs<T>(parts[0], parts[1], sorted.even, sorted.odd);
  }
  DCNZOO_INLINE void add_to(T* to, T factor, T rest = 1) const {
    for (const Part& part : parts)
      store_lanes(to, load_lanes<Part>(to) + factor * (part * rest)), to += kLanes<T>;
  }
};

// One tap of one output pixel, for the channels of a block. Input, Points and Columns are SampleTargets.
template <typename Panel, typename T, typename S, int Rank, bool Input, bool Points, bool Columns,
          typename Channels>
struct PointBackward {
  static constexpr int corners = kCorners<Rank>;
  static constexpr bool reads_input = Points || Columns;
  int64_t tap, row;
  Channels channels;
  T rest;                  // the mask if it is not finite, else 1
  int used;                // corners in the map; the arrays below hold only these
  const int* corner;       // their numbers
  const S* from[corners];  // the corners' pixels in the input
  T* to[corners];          // the same pixels in the input's gradient
  T modulated[corners];    // their weights, multiplied by the mask if it is finite

  // Adds a product of gradient and pixel to the sum over channels. The sum is a Vector, not a Value, because Clang 14
  // assumes that it is aligned, and Value loses this attribute.
  template <typename Value>
  static DCNZOO_INLINE void add_dot(Vector<T>& dot, Value product) {
    if constexpr (std::is_same_v<Value, EvenOdd>)
      dot += product.even, dot += product.odd;
    else if constexpr (std::is_arithmetic_v<Value>)
      dot += Vector<T>{product};
    else if constexpr (sizeof(Value) < kVectorBytes)
      dot += widened<T>(product);
    else
      dot += product;
  }

  // Points corner i to the pixel at `place` in the input and its gradient.
  DCNZOO_INLINE void locate(const BackwardParams<T, S>& p, int i, int64_t place) {
    if (reads_input) from[i] = p.input.data + place;
    if (Input) to[i] = p.grad_input + place;
  }

  // Writes dots, whose lanes still have to be added, as [corner][point of kTogether][kLanes]. whole: all corners are
  // used, and the mask is finite.
  template <bool whole>
  DCNZOO_INLINE void add(const Panels<T>& gradients, S* columns, T* dots) {
    const Panels<T> panels = gradients;  // a local copy: the compiler would read it again after every store
    alignas(kVectorBytes) Vector<T> dot[corners] = {};
    each_column<T, Panel>(tap, channels, row, panels, [&](auto value, int64_t c, int64_t at) {
      using Value = decltype(value);
      const ColumnGradient<T, Value> gradient(panels.data + at);
      for (int i = 0; i < (whole ? corners : used); ++i) {
        if constexpr (reads_input) {
          const Value pixel = load_lanes<Value>(from[i] + c);
          if (Columns) value += modulated[i] * pixel;
          if (Points) add_dot<Value>(dot[whole ? i : corner[i]], gradient.sorted * pixel);
        }
        if (Input && !whole) gradient.add_to(to[i] + c, modulated[i], rest);
      }
      if (Points && !whole && used == 0) add_dot<Value>(dot[0], gradient.sorted * T(0));
      if constexpr (Columns) {
        if constexpr (!whole) value = value * rest;
        store_lanes(columns + at, value);
      }
      for (int i = 0; Input && whole && i < corners; ++i) gradient.add_to(to[i] + c, modulated[i]);
    });
    for (int i = 0; Points && i < corners; ++i) store(dots + i * kTogether<T, Rank> * kLanes<T>, dot[i]);
  }
};

// Computes the columns (if they are needed) from their gradient, adds to the input's gradient and writes `dots`.
template <typename Panel, typename T, typename S, int Rank, bool Input, bool Points, bool Columns>
void sample_backward(const BackwardParams<T, S>& p, const ChannelBlock& block,
                     const BackwardMemory<T, S, Rank>& tile) {
  constexpr int corners = kCorners<Rank>;
  const Panels<T> gradients = tile.gradients;
  const Rows<T, Rank>& rows = tile.rows;
  // Computes at once a row's taps or, for bfloat16, a tap's rows: their gradients and columns are neighbours in memory.
  constexpr bool by_rows = kPair<T, S> > 1;
  constexpr int64_t lanes = kLanes<T>, together = kTogether<T, Rank>;
  constexpr int64_t row_step = by_rows ? together : 1, tap_step = together / row_step;
  T dots[together * corners * lanes] = {}, sums[lanes];
  const int64_t start = p.input.place_of(block, p.shape.in_pixels), stride = p.input.pixel_stride(block);
  const CornerDistances<Rank> distance(p.shape, stride);
  const auto differentiate = [&](auto channels, int64_t r, int64_t tap, T* point_dots) {
    PointBackward<Panel, T, S, Rank, Input, Points, Columns, decltype(channels)> point;
    const BackwardPoints<T, Rank>& points = tile.table[tap];
    const T factor = points.factor[r];
    point.tap = tap, point.row = r, point.rest = points.rest[r], point.channels = channels;
    if (points.index[0][r] >= 0) {
      const int64_t at = start + rows.map[r] + points.index[0][r] * stride;
      for (int corner = 0; corner < corners; ++corner) {
        point.locate(p, corner, at + distance.of[corner]);
        point.modulated[corner] = factor * points.weight[corner][r];
      }
      point.template add<true>(gradients, tile.columns.data, point_dots);
    } else {
      const InsideCorners<corners> inside([&](int c) { return points.index[c][r]; });
      point.used = inside.count, point.corner = inside.corner;
      for (int i = 0; i < inside.count; ++i) {
        point.locate(p, i, start + rows.map[r] + inside.index[i] * stride);
        point.modulated[i] = factor * points.weight[inside.corner[i]][r];
      }
      point.template add<false>(gradients, tile.columns.data, point_dots);
    }
  };
  constexpr int64_t pair = kPair<T, S>;  // blocks of bfloat16 usually are one or two panels
  with_channels<lanes, pair * lanes, pair * pair * lanes>(block.width, [&](auto channels) {
    for (int64_t r = 0; r < rows.count; r += row_step)
      for (int64_t tap = 0; tap < p.shape.taps; tap += tap_step) {
        const int64_t left = by_rows ? rows.count - r : p.shape.taps - tap;
        for (int64_t i = 0; i < together && i < left; ++i)
          differentiate(channels, r + i % row_step, tap + i % tap_step, dots + i * lanes);
        for (int64_t i = 0; Points && i < together * corners; i += lanes) {
          store(sums, sum_rows(dots + i * lanes));
          for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t point = (i + lane) % together, corner = (i + lane) / together;
            T* const to = tile.dots_of(tap + point % tap_step) + corner * kBackwardRows + r;
            if (by_rows || point < left) to[point % row_step] = sums[lane];  // rows are padded
          }
        }
      }
  });
}

// Computes tile.offset_mask for a tap, from its points and its dots, [corner][row].
template <typename T, typename S, int Rank>
void offset_mask_gradients(const BackwardParams<T, S>& p, const BackwardMemory<T, S, Rank>& tile, int64_t tap,
                           const BackwardPoints<T, Rank>& points, const T* dots) {
  constexpr int corners = kCorners<Rank>;
  constexpr int64_t rows = kBackwardRows;
  const PointChannels channels = point_channels(p.shape);
  for (int64_t r = 0; r < tile.rows.count; r += kLanes<T>) {  // rows are padded to whole vectors
    const Vector<T> factor = load(points.factor + r), rest = load(points.rest + r);
    Vector<T> gradient[Rank + 1] = {};
    auto index = load(points.index[0] + r);
    for (int corner = 0; corner < corners; ++corner) {
      const Vector<T> dot = load(dots + corner * rows + r);
      index &= load(points.index[corner] + r);
      for (int axis = 0; axis < Rank; ++axis)
        gradient[axis] += factor * rest * load(points.slope[axis][corner] + r) * dot;
      gradient[Rank] += load(points.weight[corner] + r) * dot;
    }
    // Outside the map, the offset's gradient is zero. The mask's is gradient · 0, which is NaN for Inf.
    const Vector<T> zero{};
    for (int axis = 0; axis < Rank; ++axis)
      store(tile.point_gradient(channels.offset(tap, axis)) + r, index == -1 ? zero : gradient[axis]);
    store(tile.point_gradient(channels.mask(tap)) + r, gradient[Rank]);
  }
}

// One of PointChannels of an image in block i's own gradients, if blocks share points.
template <typename T, typename S>
T* own_point_gradient(const BackwardParams<T, S>& p, int64_t i, int64_t image, int64_t channel) {
  const int64_t channels = point_channels(p.shape).count();
  return p.grad_offset_mask_of_blocks +
         (((i - p.blocks.begin) * channels + channel) * p.images + image) * p.shape.out_pixels;
}

// Stores a tile's gradients of offset and mask at some points of block i.
template <typename T, typename S, int Rank>
void store_offset_mask(const BackwardParams<T, S>& p, int64_t i, const PointGroup& points,
                       const BackwardMemory<T, S, Rank>& tile) {
  tile.rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    for (int64_t channel = 0; channel < point_channels(p.shape).count(); ++channel) {
      T* to = p.grad_offset_mask.at(p.shape, image, points, channel);
      if (to == nullptr) continue;
      if (p.blocks.data[i].shares_points) to = own_point_gradient(p, i, image, channel);
      std::memcpy(to + pixel, tile.point_gradient(channel) + begin, (end - begin) * sizeof(T));
    }
  });
}

template <typename T, typename S>
void sum_offset_mask(const BackwardParams<T, S>& p, int64_t image, int64_t channel) {
  const bool of_mask = point_channels(p.shape).is_mask(channel);
  const auto group_of = [&](const ChannelBlock& block) {
    return of_mask ? block.points.mask : block.points.offset;
  };
  for (int64_t i = p.blocks.begin; i < p.blocks.end; ++i) {
    const ChannelBlock& block = p.blocks.data[i];
    T* __restrict to = p.grad_offset_mask.at(p.shape, image, block.points, channel);
    if (to == nullptr || !block.shares_points) continue;
    const bool first = i == 0 || group_of(p.blocks.data[i - 1]) != group_of(block);
    const T* __restrict from = own_point_gradient(p, i, image, channel);
    for (int64_t pixel = 0; pixel < p.shape.out_pixels; ++pixel)
      to[pixel] = first ? from[pixel] : to[pixel] + from[pixel];
  }
}

// Over pixels: one tap of one channel for the rows [row, row + lanes of a Value). Returns the columns.
template <typename T, int Rank, typename Value>
DCNZOO_INLINE Value differentiate_pixels(const BackwardPoints<T, Rank>& points, int64_t row,
                                         const CornerDistances<Rank>& distance, const T* plane, T* grad_plane,
                                         T* dots, bool adds, Value gradient) {
  constexpr int corners = kCorners<Rank>;
  using Index = IndexOf<T, Value>;
  Value column{}, pixels[corners], modulated[corners];
  Index index[corners];
  const Value factor = load_lanes<Value>(points.factor + row), rest = load_lanes<Value>(points.rest + row);
  for (int corner = 0; corner < corners; ++corner) {
    index[corner] = load_lanes<Index>(points.index[corner] + row);
    modulated[corner] = factor * load_lanes<Value>(points.weight[corner] + row);
  }
  const bool whole = all_whole<T>(index[0]);
  index[0] = first_index(index[0]);
  if (plane) gather_corners<Rank>(plane, index, distance, whole, pixels);
  for (int corner = 0; plane && corner < corners; ++corner) column += modulated[corner] * pixels[corner];
  for (int corner = 0; dots && corner < corners; ++corner) {
    T* const to = dots + corner * kBackwardRows + row;
    Value dot = gradient * pixels[corner];
    store_lanes(to, adds ? load_lanes<Value>(to) + dot : dot);
  }
  gradient *= rest;
  for (int corner = 0; grad_plane && corner < corners; corner += 2) {
    if constexpr (!std::is_arithmetic_v<Value>)
      if (whole) {
        scatter_pairs(grad_plane + distance.of[corner], index[0], modulated[corner] * gradient,
                      modulated[corner + 1] * gradient);
        continue;
      }
    for (int i = corner; i < corner + 2; ++i) scatter_inside(grad_plane, index[i], modulated[i] * gradient);
  }
  return column * rest;
}

// Over pixels: replaces the columns' gradient, in tile.planes, by the columns, and computes the gradients of input,
// offset and mask.
template <typename T, int Rank>
void sample_backward_over_pixels(const BackwardParams<T, T>& p, int64_t index,
                                 const BackwardMemory<T, T, Rank>& tile, SampleTargets targets) {
  const bool input = targets.input, points = targets.points, columns = targets.columns;
  const DeformConvShapes& s = p.shape;
  const ChannelBlock& block = p.blocks.data[index];
  const Rows<T, Rank>& rows = tile.rows;
  BackwardPoints<T, Rank>& table = *tile.table;  // of one tap
  const CornerDistances<Rank> distance(s, 1);
  const int64_t sharing = block.sharing, start = p.input.place_of(block, s.in_pixels);
  for (int64_t first = 0; first < block.count; first += sharing) {
    const PointGroup group = points_of(s, block.first + first);
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      compute_points(s, p.offset_mask, group, rows, tap, table);
      for (int64_t channel = first; channel < first + sharing; ++channel) {
        T* const plane = tile.planes.column(block.column(tap, block.lane_of(channel)));
        rows.each_image(s.out_pixels, [&](int64_t begin, int64_t end, int64_t, int64_t) {
          const int64_t at = start + rows.map[begin] + channel * s.in_pixels;
          const T* const pixels = points || columns ? p.input.data + at : nullptr;
          T* const grad_pixels = input ? p.grad_input + at : nullptr;
          each_row<T>(begin, end, [&](auto zero, int64_t row) {
            const auto gradient = load_lanes<decltype(zero)>(plane + row);
            const auto value =
                differentiate_pixels<T, Rank>(table, row, distance, pixels, grad_pixels,
                                              points ? tile.dots : nullptr, channel > first, gradient);
            if (columns) store_lanes(plane + row, value);
          });
        });
      }
      if (points) offset_mask_gradients(p, tile, tap, table, tile.dots);
    }
    if (points) store_offset_mask(p, index, group, tile);
  }
}

}  // namespace
}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
