// RoIAlign's maximum mode, on top of common/roi_math.h, for host and device.
#pragma once

#include "../common/roi_math.h"

namespace dcnzoo {

// The maximum over a bin's samples and its position. Samples outside the map are zero. NaN counts as the largest value.
template <typename T>
struct RoiMaximum {
  T value, y, x;
};

constexpr double kOutsideMap = -2;  // a coordinate whose sample receives no gradient

template <typename T, typename Value, typename Samples>  // RoiSamples<T>, or a struct like it
DCNZOO_HD RoiMaximum<T> roi_maximum(const Value* map, const Samples& y, const Samples& x) {
  RoiMaximum<T> best{T(0), T(kOutsideMap), T(kOutsideMap)};
  const RoiSpan ys = y.span, xs = x.span;
  bool found = false;
  const auto offer = [&](T value, T y, T x) {
    const bool larger = value > best.value || (value != value && best.value == best.value);
    if (found && !larger) return;  // of equal values the first in row-major order wins
    best = {value, y, x};
    found = true;
  };
  const auto offer_outside = [&] { offer(T(0), T(kOutsideMap), T(kOutsideMap)); };
  if (y.axis.samples == 0 || x.axis.samples == 0) return best;
  if (ys.begin > 0 || xs.begin > 0 || ys.begin == ys.end || xs.begin == xs.end) offer_outside();
  for (int64_t iy = ys.begin; iy < ys.end; ++iy) {
    const Lerp<T> row = y.lerp(iy);
    for (int64_t ix = xs.begin; ix < xs.end; ++ix)
      offer(roi_sample(map, row, x.lerp(ix), x.size), y.coordinate(iy), x.coordinate(ix));
    if (xs.end < x.axis.samples) offer_outside();
  }
  if (ys.end < y.axis.samples) offer_outside();
  return best;
}

}  // namespace dcnzoo
