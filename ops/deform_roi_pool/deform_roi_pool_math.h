// Bins that an offset moves, on top of common/roi_math.h, for host and device.
#pragma once

#include "../common/roi_math.h"

namespace dcnzoo {

template <typename T>
struct DeformRoiAxis {
  RoiAxis<T> grid;
  T reach;  // how far an offset of 1 moves a bin, in pixels of the map

  // The axis of a bin that `offset` moves. It has no samples if the new position is not finite.
  DCNZOO_HD RoiAxis<T> moved(T offset) const {
    RoiAxis<T> result = grid;
    result.start += reach * offset;
    if (!is_finite(result.start)) result.samples = 0;
    return result;
  }
};

template <typename T>
DCNZOO_HD DeformRoiAxis<T> deform_roi_axis(T low, T high, T scale, T gamma, int64_t bins,
                                           int64_t sampling_ratio) {
  DeformRoiAxis<T> axis{roi_axis(low, high, scale, true, bins, sampling_ratio), T(0)};
  const T reach = gamma * (high * scale - T(0.5) - (low * scale - T(0.5)));
  if (is_finite(reach))
    axis.reach = reach;
  else
    axis.grid.samples = 0;
  return axis;
}

}  // namespace dcnzoo
