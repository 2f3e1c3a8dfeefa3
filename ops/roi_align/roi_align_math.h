// RoIAlign's arithmetic beyond that of common/roi_math.h, for host and device.
#pragma once

#include "../common/roi_math.h"

namespace dcnzoo {

// The maximum over a bin's samples and where it is. Samples outside the map are zeros. NaN is larger than any number.
template <typename T>
struct RoiMaximum {
  T value, y, x;
};

constexpr double kOutsideMap = -2;  // a coordinate from which no gradient flows

template <typename T, typename Value>
DCNZOO_HD RoiMaximum<T> roi_maximum(const Value* map, int64_t height, int64_t width, const RoiAxis<T>& y_axis,
                                    const RoiAxis<T>& x_axis, int64_t y_bin, int64_t x_bin) {
  RoiMaximum<T> best{T(0), T(kOutsideMap), T(kOutsideMap)};
  const RoiSpan ys = roi_span(y_axis, y_bin, height), xs = roi_span(x_axis, x_bin, width);
  bool found = false;
  const auto offer = [&](T value, T y, T x) {
    const bool larger = value > best.value || (value != value && best.value == best.value);
    if (found && !larger) return;  // the first of equals wins, in order of rows
    best = {value, y, x};
    found = true;
  };
  const auto offer_outside = [&] { offer(T(0), T(kOutsideMap), T(kOutsideMap)); };
  if (y_axis.samples == 0 || x_axis.samples == 0) return best;
  if (ys.begin > 0 || xs.begin > 0 || ys.begin == ys.end || xs.begin == xs.end) offer_outside();
  for (int64_t iy = ys.begin; iy < ys.end; ++iy) {
    const T y = roi_coordinate(y_axis, y_bin, iy);
    const Lerp<T> vertical = lerp_at(y, height);
    for (int64_t ix = xs.begin; ix < xs.end; ++ix) {
      const T x = roi_coordinate(x_axis, x_bin, ix);
      offer(roi_sample(map, vertical, lerp_at(x, width), width), y, x);
    }
    if (xs.end < x_axis.samples) offer_outside();
  }
  if (ys.end < y_axis.samples) offer_outside();
  return best;
}

}  // namespace dcnzoo
