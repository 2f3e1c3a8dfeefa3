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

template <typename T>
struct RoiSample {
  T coordinate;
  Lerp<T> lerp;
};

// The samples of a bin along one axis, computed on access.
template <typename T>
struct RoiSamples {
  RoiAxis<T> axis;
  int64_t bin, size;
  RoiSpan span;

  DCNZOO_HD RoiSamples(const RoiAxis<T>& axis, int64_t bin, int64_t size)
      : axis(axis), bin(bin), size(size), span(roi_span(axis, bin, size)) {}
  DCNZOO_HD int64_t count() const { return axis.samples; }
  DCNZOO_HD RoiSample<T> operator[](int64_t sample) const {
    const T coordinate = roi_coordinate(axis, bin, sample);
    return {coordinate, lerp_at(coordinate, size)};
  }
};

// Samples: RoiSamples, or a table of them.
template <typename T, typename Value, typename Samples>
DCNZOO_HD RoiMaximum<T> roi_maximum(const Value* map, int64_t width, const Samples& y, const Samples& x) {
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
    const RoiSample<T> row = y[iy];
    for (int64_t ix = xs.begin; ix < xs.end; ++ix) {
      const RoiSample<T> column = x[ix];
      offer(roi_sample(map, row.lerp, column.lerp, width), row.coordinate, column.coordinate);
    }
    if (xs.end < x.count()) offer_outside();
  }
  if (ys.end < y.count()) offer_outside();
  return best;
}

}  // namespace dcnzoo
