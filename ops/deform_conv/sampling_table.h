// The points at which a tile samples the input: pixels and interpolation weights, computed once for all
// channels that share them. Included by *_cpu_kernel.cpp only.
#pragma once

#include "../common/corners_simd.h"
#include "../common/integers.h"
#include "deform_conv_cpu_kernel.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// Divides a thread's scratch memory into pieces that start on separate cache lines.
struct Arena {
  char* next;
  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += round_up(count * int64_t(sizeof(T)), 64);
    return piece;
  }
};

// The bytes that Scratch takes from an arena, measured by laying it out at address 0.
template <typename Scratch, typename Params>
int64_t bytes_of(const Params& p) {
  Arena arena{nullptr};
  Scratch(arena, p);
  return reinterpret_cast<intptr_t>(arena.next);
}

template <int Rank>
constexpr int kCorners = 1 << Rank;

// The distances of a whole point's corners from its first corner.
template <int Rank>
struct CornerDistances {
  int64_t of[kCorners<Rank>] = {};

  CornerDistances(const DeformConvShapes& s, int64_t pixel_stride) {
    for (int corner = 0; corner < kCorners<Rank>; ++corner) {
      for (int axis = 0; axis < Rank; ++axis)
        of[corner] = of[corner] * s.in[axis] + ((corner >> (Rank - 1 - axis)) & 1);
      of[corner] *= pixel_stride;
    }
  }
};

// The points of a tile's taps. Every array is [tap][…][row], row being an output pixel of the tile.
template <typename T, int Rank, bool Backward>
struct SamplingTable {
  using Index = IntegerOf<T>;
  Index* index;  // [tap][corner][row] pixel, stored as in StoredCorners
  T* weight;     // [tap][corner][row]; multiplied by the factor in the forward only
  T* slope;      // [tap][axis · corners + corner][row]; backward only
  T* factor;     // [tap][row] the mask if it is finite, else 1; backward only
  T* rest;       // [tap][row] 1 if the mask is finite, else the mask

  static SamplingTable allocate(Arena& arena, int64_t taps, int64_t rows) {
    SamplingTable table{};
    table.index = arena.take<Index>(taps * kCorners<Rank> * rows);
    table.weight = arena.take<T>(taps * kCorners<Rank> * rows);
    table.rest = arena.take<T>(taps * rows);
    if (Backward) {
      table.slope = arena.take<T>(taps * Rank * kCorners<Rank> * rows);
      table.factor = arena.take<T>(taps * rows);
    }
    return table;
  }
};

// The rows of a tile: the image and the output pixel of each, and the position of its first tap.
template <typename T, int Rank>
struct Rows {
  int64_t count, stride;  // stride: rows of a full tile
  int64_t image, pixel;   // of the first row
  T* base[Rank];          // out · stride - padding, per row
  int64_t* map;           // start of the row's image in the input and in its gradient
  T *zeros, *ones;        // replace an absent offset and mask

  static Rows allocate(Arena& arena, int64_t rows) {
    Rows result{};
    result.stride = rows;
    for (int axis = 0; axis < Rank; ++axis) result.base[axis] = arena.take<T>(rows);
    result.map = arena.take<int64_t>(rows);
    result.zeros = arena.take<T>(rows);
    result.ones = arena.take<T>(rows);
    return result;
  }

  template <typename S>
  void set(const DeformConvShapes& s, const InputMaps<S>& input, int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) zeros[r] = T(0), ones[r] = T(1);
    count = rows;
    image = first / s.out_pixels;
    pixel = first % s.out_pixels;
    int64_t position[Rank];
    int64_t rest = pixel;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      position[axis] = rest % s.out[axis];
      rest /= s.out[axis];
    }
    const int64_t map_size = s.in_pixels * input.channels;
    int64_t place = image * map_size;
    for (int64_t r = 0; r < rows; ++r) {
      for (int axis = 0; axis < Rank; ++axis)
        base[axis][r] = T(position[axis] * s.stride[axis] - s.padding[axis]);
      map[r] = place;
      int axis = Rank - 1;
      while (axis >= 0 && ++position[axis] == s.out[axis]) position[axis--] = 0;
      if (axis < 0) place += map_size;
    }
  }

  // Calls run(row_begin, row_end, image, pixel) for each stretch of rows within one image.
  template <typename Run>
  void each_image(int64_t out_pixels, Run run) const {
    int64_t n = image, p = pixel;
    for (int64_t r = 0; r < count; p = 0, ++n) {
      const int64_t end = count - r < out_pixels - p ? count : r + out_pixels - p;
      run(r, end, n, p);
      r = end;
    }
  }
};

// One tap of a stretch of rows: its points, and its part of the table.
template <typename T, int Rank, bool Backward>
struct TapSampling {
  using Index = IntegerOf<T>;
  Index size[Rank];
  T extent[Rank], shift[Rank];
  const T *base[Rank], *offset[Rank], *mask;
  int64_t stride;
  Index* index;
  T *weight, *slope, *factor, *rest;

  // Computes as many rows, from r on, as Value has lanes (a scalar has one).
  template <typename Value, typename IndexValue>
  DCNZOO_INLINE void at(int64_t r) const {
    constexpr int corners = kCorners<Rank>;
    using On = VecTraitsOf<Value>;
    const auto read = [r](const T* from) { return load_lanes<Value>(from + r); };
    const auto write = [r](auto* to, auto value) { store_lanes(to + r, value); };
    Value point[Rank];
    for (int axis = 0; axis < Rank; ++axis) point[axis] = read(base[axis]) + shift[axis] + read(offset[axis]);
    const auto found = corners_at<Value, IndexValue, Rank, On>(point, extent, size);
    const auto stored = store_corners<Value, IndexValue, Rank>(found, read(mask));
    for (int corner = 0; corner < corners; ++corner) {
      const Value share = found.valid[corner] * corner_weight<Value, Rank>(corner, found.fraction);
      write(index + corner * stride, stored.index[corner]);
      write(weight + corner * stride, Backward ? share : share * stored.factor);
      if (Backward) {
        for (int axis = 0; axis < Rank; ++axis) {
          const Value steepness =
              found.valid[corner] * corner_slope<Value, Rank>(corner, axis, found.fraction);
          write(slope + (axis * corners + corner) * stride, steepness);
        }
      }
    }
    if (Backward) write(factor, stored.factor);
    write(rest, stored.rest);
  }

  void run(int64_t count) const {
    int64_t r = 0;
    for (; r + kLanes<T> <= count; r += kLanes<T>) at<Vector<T>, Vector<Index>>(r);
    for (; r < count; ++r) at<T, Index>(r);
  }
};

template <typename T, int Rank, bool Backward>
void compute_sampling_table(const DeformConvShapes& s, const OffsetMask<const T>& given,
                            const ChannelBlock& block, const Rows<T, Rank>& rows,
                            SamplingTable<T, Rank, Backward>& table) {
  constexpr int corners = kCorners<Rank>;
  using Tap = TapSampling<T, Rank, Backward>;
  rows.each_image(s.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      Tap part;
      int64_t rest = tap;
      for (int axis = Rank - 1; axis >= 0; --axis) {
        part.size[axis] = static_cast<IntegerOf<T>>(s.in[axis]);
        part.extent[axis] = T(s.in[axis]);
        part.shift[axis] = T((rest % s.kernel[axis]) * s.dilation[axis]);
        rest /= s.kernel[axis];
        part.base[axis] = rows.base[axis] + begin;
        const int64_t channel =
            (image * s.offset_groups + block.offset_group) * s.taps * Rank + tap * Rank + axis;
        part.offset[axis] = given.offset ? given.offset + channel * s.out_pixels + pixel : rows.zeros;
      }
      const int64_t channel = (image * s.mask_groups + block.mask_group) * s.taps + tap;
      part.mask = given.mask ? given.mask + channel * s.out_pixels + pixel : rows.ones;
      part.stride = rows.stride;
      part.index = table.index + tap * corners * rows.stride + begin;
      part.weight = table.weight + tap * corners * rows.stride + begin;
      part.rest = table.rest + tap * rows.stride + begin;
      if (Backward) {
        part.slope = table.slope + tap * Rank * corners * rows.stride + begin;
        part.factor = table.factor + tap * rows.stride + begin;
      }
      part.run(end - begin);
    }
  });
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
