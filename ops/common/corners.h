// The pixels around a sampling point and their interpolation weights, for host and device. Does not depend on torch or
// SIMD and does not access memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace dcnzoo {

// Scalar versions of the operations that the arithmetic below needs. The CPU kernels pass vectors and SimdTraits
// (common/corners_simd.h) instead, so that GPU threads and SIMD lanes share one formula.
template <typename Value>
struct VecTraits {
  template <typename V>
  static DCNZOO_HD V blend(bool condition, V yes, V no) {
    return condition ? yes : no;
  }
  static DCNZOO_HD Value floor(Value value) { return std::floor(value); }
  template <typename Index>
  static DCNZOO_HD Index to_index(Value value) {
    return static_cast<Index>(value);
  }
};

// The 2^Rank pixels around a point. Each bit of a corner's number selects the low (0) or high (1) pixel on one axis;
// bit 0 is axis Rank-1 (x).
template <typename Value, typename Index, int Rank>
struct Corners {
  static constexpr int count = 1 << Rank;
  Index index[count];    // flat pixel, always inside the map, even if valid is 0
  Value valid[count];    // 1 if the pixel is inside the map and the point counts, else 0
  Index low[Rank];       // of the low corner
  Value fraction[Rank];  // the point's distance from it
  decltype(Value{} > Value{}) inside;
};

// Border rule of DCNv2: a point counts if every coordinate is in (-1, size). extent: size, converted to the point's
// type. If points are vectors, extent and size may be vectors too.
template <typename Value, typename Index, int Rank, typename On = VecTraits<Value>, typename T, typename Size>
DCNZOO_HD Corners<Value, Index, Rank> corners_at(const Value* point, const T* extent, const Size* size) {
  Corners<Value, Index, Rank> corners;
  const Value zero{}, one = zero + 1;
  const Index nowhere{};
  auto inside = (point[0] > -1) & (point[0] < extent[0]);  // false for NaN
  for (int axis = 1; axis < Rank; ++axis) inside = inside & (point[axis] > -1) & (point[axis] < extent[axis]);
  corners.inside = inside;
  for (int corner = 0; corner < corners.count; ++corner) {
    corners.index[corner] = nowhere;
    corners.valid[corner] = On::blend(inside, one, zero);
  }
  for (int axis = 0; axis < Rank; ++axis) {
    const Value coordinate = On::blend(inside, point[axis], zero);  // the cast of NaN is undefined
    const Value floor = On::floor(coordinate);
    corners.fraction[axis] = coordinate - floor;
    const Index low = On::template to_index<Index>(floor), high = low + 1;
    corners.low[axis] = low;
    const auto low_ok = low >= 0;
    const auto high_ok = high < size[axis];
    const Index low_index = On::blend(low_ok, low, nowhere);
    const Index high_index = On::blend(high_ok, high, low_index);
    for (int corner = 0; corner < corners.count; ++corner) {
      const bool is_high = (corner >> (Rank - 1 - axis)) & 1;
      corners.index[corner] = corners.index[corner] * size[axis] + (is_high ? high_index : low_index);
      corners.valid[corner] = is_high ? On::blend(high_ok, corners.valid[corner], zero)
                                      : On::blend(low_ok, corners.valid[corner], zero);
    }
  }
  return corners;
}

template <typename T, typename Index, int Rank>
DCNZOO_HD Corners<T, Index, Rank> corners_at(const T* point, const Index* size) {
  T extent[Rank];
  for (int axis = 0; axis < Rank; ++axis) extent[axis] = T(size[axis]);
  return corners_at<T, Index, Rank>(point, extent, size);
}

// A corner's interpolation weight, not yet multiplied by `valid`.
template <typename Value, int Rank>
DCNZOO_HD Value corner_weight(int corner, const Value* fraction) {
  const Value zero{};
  Value weight = zero + 1;
  for (int axis = 0; axis < Rank; ++axis) {
    const bool is_high = (corner >> (Rank - 1 - axis)) & 1;
    weight *= is_high ? fraction[axis] : 1 - fraction[axis];
  }
  return weight;
}

// d corner_weight / d point[axis]
template <typename Value, int Rank>
DCNZOO_HD Value corner_slope(int corner, int axis, const Value* fraction) {
  const Value zero{}, one = zero + 1;
  Value slope = ((corner >> (Rank - 1 - axis)) & 1) ? one : -one;
  for (int other = 0; other < Rank; ++other) {
    if (other == axis) continue;
    const bool is_high = (corner >> (Rank - 1 - other)) & 1;
    slope *= is_high ? fraction[other] : 1 - fraction[other];
  }
  return slope;
}

}  // namespace dcnzoo
