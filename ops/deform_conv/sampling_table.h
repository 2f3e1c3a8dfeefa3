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

// The bytes that Memory takes from an arena, measured by laying it out at address 0.
template <typename Memory, typename Params>
int64_t bytes_of(const Params& p) {
  Arena arena{nullptr};
  Memory(arena, p);
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

// The points of one tap for all rows of a tile, a row being an output pixel. The constant distance between the arrays
// saves registers.
template <typename T, int Rank, int64_t rows>
struct TapPoints {
  using Index = IntegerOf<T>;
  Index index[kCorners<Rank>][rows];  // pixel, stored as in StoredCorners
  T weight[kCorners<Rank>][rows];     // multiplied by the factor in the forward only
  T rest[rows];                       // 1 if the mask is finite, else the mask
};

template <typename T, int Rank>
struct ForwardPoints : TapPoints<T, Rank, kForwardRows> {};

template <typename T, int Rank>
struct BackwardPoints : TapPoints<T, Rank, kBackwardRows> {
  T slope[Rank][kCorners<Rank>][kBackwardRows];
  T factor[kBackwardRows];  // the mask if it is finite, else 1
};

// The rows of a tile: the image and the output pixel of each, and the position of its first tap.
template <typename T, int Rank>
struct Rows {
  int64_t count;
  int64_t image, pixel;  // of the first row
  T* base[Rank];         // out · stride - padding, per row
  int64_t* map;          // start of the row's image in the input and in its gradient
  T *zeros, *ones;       // replace an absent offset and mask

  static Rows allocate(Arena& arena, int64_t rows) {
    Rows result{};
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
    int64_t position[Rank], rest = pixel;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      position[axis] = rest % s.out[axis];
      rest /= s.out[axis];
    }
    const int64_t map_size = input.image_size(s.in_pixels);
    int64_t place = image * map_size;
    for (int64_t r = 0, end; r < rows; r = end) {  // a stretch of the last axis
      end = r + s.out[Rank - 1] - position[Rank - 1] < rows ? r + s.out[Rank - 1] - position[Rank - 1] : rows;
      for (int axis = 0; axis < Rank; ++axis)
        for (int64_t i = r; i < end; ++i) {
          const int64_t at = position[axis] + (axis == Rank - 1 ? i - r : 0);
          base[axis][i] = T(at * s.stride[axis] - s.padding[axis]);
        }
      for (int64_t i = r; i < end; ++i) map[i] = place;
      position[Rank - 1] += end - r;
      for (int axis = Rank - 1; axis > 0 && position[axis] == s.out[axis]; --axis)
        position[axis] = 0, ++position[axis - 1];
      if (position[0] == s.out[0]) position[0] = 0, place += map_size;
    }
  }

  // Calls function(row_begin, row_end, image, pixel) for each stretch of rows within one image.
  template <typename Function>
  void each_image(int64_t out_pixels, Function function) const {
    int64_t n = image, p = pixel;
    for (int64_t r = 0; r < count; p = 0, ++n) {
      const int64_t end = count - r < out_pixels - p ? count : r + out_pixels - p;
      function(r, end, n, p);
      r = end;
    }
  }
};

// One tap of a stretch of rows.
template <typename T, int Rank, typename Points>
struct TapSampling {
  using Index = IntegerOf<T>;
  static constexpr bool backward = std::is_same_v<Points, BackwardPoints<T, Rank>>;
  Index size[Rank];
  T extent[Rank], shift[Rank];
  const T *base[Rank], *offset[Rank], *mask;
  Points* points;
  int64_t begin;  // the stretch's first row

  // Computes as many rows, from `begin` + r on, as Value has lanes (a scalar has one). whole: stores all points as whole
  // ones: they move into the map, and pixels that are not corners get weight 0. Finite maps and masks yield equal samples.
  template <typename Value, typename IndexValue>
  DCNZOO_INLINE void at(int64_t r, bool whole) const {
    const auto read = [r](const T* from) { return load_lanes<Value>(from + r); };
    const auto write = [row = begin + r](auto* to, auto value) { store_lanes(to + row, value); };
    Value point[Rank];
    for (int axis = 0; axis < Rank; ++axis) point[axis] = read(base[axis]) + shift[axis] + read(offset[axis]);
    const auto found = corners_at<Value, IndexValue, Rank, VecTraitsOf<Value>>(point, extent, size);
    if (!backward && whole) {
      Value weight[kCorners<Rank>];
      write(points->index[0], whole_corners(found, size, weight));
      for (int corner = 0; corner < kCorners<Rank>; ++corner)
        write(points->weight[corner], weight[corner] * read(mask));
      return;
    }
    const auto stored = store_corners<Value, IndexValue, Rank>(found, read(mask));
    for (int corner = 0; corner < kCorners<Rank>; ++corner) {
      const Value share = found.valid[corner] * corner_weight<Value, Rank>(corner, found.fraction);
      write(points->index[corner], stored.index[corner]);
      write(points->weight[corner], backward ? share : share * stored.factor);
      if constexpr (backward)
        for (int axis = 0; axis < Rank; ++axis)
          write(points->slope[axis][corner],
                found.valid[corner] * corner_slope<Value, Rank>(corner, axis, found.fraction));
    }
    if constexpr (backward) write(points->factor, stored.factor);
    write(points->rest, stored.rest);
  }

  void fill(int64_t count, bool whole) const {
    const TapSampling part = *this;  // a local copy: the compiler would read members again after every store
    int64_t r = 0;
    for (; r + kLanes<T> <= count; r += kLanes<T>) part.template at<Vector<T>, Vector<Index>>(r, whole);
    for (; r < count; ++r) part.template at<T, Index>(r, whole);
  }
};

// Computes the points of a tap. whole: as in TapSampling.
template <typename T, int Rank, typename Points>
void compute_points(const DeformConvShapes& s, const StoredOffsetMask<T>& stored, const PointGroup& group,
                    const Rows<T, Rank>& rows, int64_t tap, Points& points, bool whole = false) {
  static_assert(kForwardRows <= kBackwardRows);
  T converted[Rank + 1][kBackwardRows];
  TapSampling<T, Rank, Points> part;
  part.points = &points;
  for (int64_t axis = Rank - 1, rest = tap; axis >= 0; rest /= s.kernel[axis--]) {
    part.size[axis] = static_cast<IntegerOf<T>>(s.in[axis]);
    part.extent[axis] = T(s.in[axis]);
    part.shift[axis] = T((rest % s.kernel[axis]) * s.dilation[axis]);
  }
  rows.each_image(s.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    // Returns a channel of offset or mask for these rows: in place if its type is T, as a copy if bfloat16, or
    // `absent`. tap_step: the channels from one tap to the next
    const auto read = [&](int64_t channel, int64_t tap_step, T* copy, const T* absent) -> const T* {
      if constexpr (std::is_same_v<T, float>)
        if (const BFloat16Bits* const bits = stored.bits.at(s, image, group, channel)) {
          load_row(bits + pixel, copy, end - begin);
          return copy;
        }
      const T* const values = stored.values.at(s, image, group, channel);
      if (values == nullptr) return absent;
      // the same rows of the next tap: channels are too far apart for the CPU to fetch them by itself
      for (int64_t i = 0; i < end - begin; i += 64 / int64_t(sizeof(T)))
        __builtin_prefetch(values + pixel + tap_step * s.out_pixels + i);
      return values + pixel;
    };
    const PointChannels channels = point_channels(s);
    part.begin = begin;
    for (int axis = 0; axis < Rank; ++axis) {
      part.base[axis] = rows.base[axis] + begin;
      part.offset[axis] = read(channels.offset(tap, axis), Rank, converted[axis], rows.zeros);
    }
    part.mask = read(channels.mask(tap), 1, converted[Rank], rows.ones);
    part.fill(end - begin, whole);
  });
}

// table: [tap]. For samples over channels; those over pixels compute the points of one tap after another.
template <typename T, int Rank, typename Points>
void compute_sampling_table(const DeformConvShapes& s, const StoredOffsetMask<T>& stored,
                            const PointGroup& group, const Rows<T, Rank>& rows, Points* table,
                            bool whole = false) {
  for (int64_t tap = 0; tap < s.taps; ++tap) compute_points(s, stored, group, rows, tap, table[tap], whole);
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
