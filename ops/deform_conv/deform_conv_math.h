// Deformable convolution's arithmetic at one point, for host and device: no torch, no SIMD, no memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace dcnzoo {

template <int Rank>
struct ConvGeometry {
  int64_t in[Rank], out[Rank], kernel[Rank];
  int64_t stride[Rank], padding[Rank], dilation[Rank];
};

// The 2^Rank pixels around a point: bit a of a corner's number says low (0) or high (1) on axis a,
// axis Rank-1 (x) being bit 0.
template <typename T, typename Index, int Rank>
struct Corners {
  static constexpr int count = 1 << Rank;
  Index index[count];  // flat pixel, always inside the map, also where valid is 0
  T valid[count];      // 1 where the pixel is inside the map, else 0
  T fraction[Rank];    // the point's distance from the low corner
  bool inside;         // DCNv2's border rule: every coordinate in (-1, size)
};

// Branch-free, so that a loop over it vectorises.
template <typename T, typename Index, int Rank>
DCNZOO_HD Corners<T, Index, Rank> corners_at(const T* point, const Index* size) {
  Corners<T, Index, Rank> corners;
  bool inside = true;
  for (int axis = 0; axis < Rank; ++axis)
    inside = inside & (point[axis] > T(-1)) & (point[axis] < T(size[axis]));  // false for NaN
  corners.inside = inside;
  for (int corner = 0; corner < corners.count; ++corner) {
    corners.index[corner] = 0;
    corners.valid[corner] = inside ? T(1) : T(0);
  }
  for (int axis = 0; axis < Rank; ++axis) {
    const T coordinate = inside ? point[axis] : T(0);  // before the cast: NaN has no integer
    const T floor = std::floor(coordinate);
    corners.fraction[axis] = coordinate - floor;
    const Index low = Index(floor), high = low + 1;
    const bool low_ok = low >= 0, high_ok = high < size[axis];
    const Index low_index = low_ok ? low : Index(0);
    const Index high_index = high_ok ? high : low_index;
    for (int corner = 0; corner < corners.count; ++corner) {
      const bool is_high = (corner >> (Rank - 1 - axis)) & 1;
      corners.index[corner] = corners.index[corner] * size[axis] + (is_high ? high_index : low_index);
      corners.valid[corner] = (is_high ? high_ok : low_ok) ? corners.valid[corner] : T(0);
    }
  }
  return corners;
}

// A corner's share of the interpolated value, before `valid`.
template <typename T, int Rank>
DCNZOO_HD T corner_weight(int corner, const T* fraction) {
  T weight = T(1);
  for (int axis = 0; axis < Rank; ++axis) {
    const bool is_high = (corner >> (Rank - 1 - axis)) & 1;
    weight *= is_high ? fraction[axis] : T(1) - fraction[axis];
  }
  return weight;
}

// d corner_weight / d point[axis]
template <typename T, int Rank>
DCNZOO_HD T corner_slope(int corner, int axis, const T* fraction) {
  T slope = ((corner >> (Rank - 1 - axis)) & 1) ? T(1) : T(-1);
  for (int other = 0; other < Rank; ++other) {
    if (other == axis) continue;
    const bool is_high = (corner >> (Rank - 1 - other)) & 1;
    slope *= is_high ? fraction[other] : T(1) - fraction[other];
  }
  return slope;
}

}  // namespace dcnzoo
