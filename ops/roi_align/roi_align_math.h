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

// The samples of a bin along one axis.
template <typename T>
struct RoiSamples {
  RoiAxis<T> axis;
  int64_t bin, size;
  RoiSpan span;

  DCNZOO_HD RoiSamples(const RoiAxis<T>& axis, int64_t bin, int64_t size)
      : axis(axis), bin(bin), size(size), span(roi_span(axis, bin, size)) {}
  DCNZOO_HD int64_t count() const { return axis.samples; }
  DCNZOO_HD T coordinate(int64_t sample) const { return roi_coordinate(axis, bin, sample); }
};

template <typename T, typename Value>
DCNZOO_HD RoiMaximum<T> roi_maximum(const Value* map, const RoiSamples<T>& y, const RoiSamples<T>& x) {
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
  if (y.count() == 0 || x.count() == 0) return best;
  if (ys.begin > 0 || xs.begin > 0 || ys.begin == ys.end || xs.begin == xs.end) offer_outside();
  for (int64_t iy = ys.begin; iy < ys.end; ++iy) {
    const T row = y.coordinate(iy);
    const Lerp<T> row_lerp = lerp_at(row, y.size);
    for (int64_t ix = xs.begin; ix < xs.end; ++ix) {
      const T column = x.coordinate(ix);
      offer(roi_sample(map, row_lerp, lerp_at(column, x.size), x.size), row, column);
    }
    if (xs.end < x.count()) offer_outside();
  }
  if (ys.end < y.count()) offer_outside();
  return best;
}

}  // namespace dcnzoo
