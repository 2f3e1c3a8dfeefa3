// RoI pooling along one axis, for host and device. The samples of a bin form a grid, so that their coordinates, the
// border rule and the interpolation weights are separable.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace dcnzoo {

constexpr int64_t kMaxSamplingRatio = 1 << 22;

template <typename T>
struct RoiAxis {
  T start, bin;     // the start of the RoI and the length of a bin, in pixels of the map
  int64_t samples;  // per bin; 0 if the RoI is empty, not finite or unreasonably large
};

// Does not test value - value: if the value is a product, a compiler that fuses multiplications into additions computes
// its rounding error.
template <typename T>
DCNZOO_HD bool is_finite(T value) {
  return value * T(0) == T(0);  // NaN for Inf and NaN
}

template <typename T>
DCNZOO_HD RoiAxis<T> roi_axis_from(T start, T length, int64_t bins, int64_t sampling_ratio) {
  RoiAxis<T> axis;
  axis.start = start;
  axis.bin = length / T(bins);
  const T samples = sampling_ratio > 0 ? T(sampling_ratio) : std::ceil(axis.bin);
  axis.samples =
      is_finite(axis.start) && is_finite(axis.bin) && samples > T(0) && samples <= T(kMaxSamplingRatio)
          ? int64_t(samples)
          : 0;
  return axis;
}

template <typename T>
DCNZOO_HD RoiAxis<T> roi_axis(T low, T high, T scale, bool aligned, int64_t bins, int64_t sampling_ratio) {
  const T shift = aligned ? T(0.5) : T(0), start = low * scale - shift;
  T length = high * scale - shift - start;
  if (!aligned && length < T(1)) length = T(1);  // RoIAlign before the half-pixel correction
  return roi_axis_from(start, length, bins, sampling_ratio);
}

template <typename T>
DCNZOO_HD T roi_coordinate(const RoiAxis<T>& axis, int64_t bin, int64_t sample) {
  return axis.start + T(bin) * axis.bin + (T(sample) + T(0.5)) * axis.bin / T(axis.samples);
}

template <typename T>
DCNZOO_HD bool roi_inside(T coordinate, int64_t size) {
  return coordinate >= T(-1) && coordinate <= T(size);  // false for NaN
}

// The samples of a bin that lie on the map. The others are zero and are skipped, because a RoI far larger than the map
// has too many of them to visit.
struct RoiSpan {
  int64_t begin, end;
};

// The samples of a bin between two coordinates, computed by division: at most two too many at each end, never too few.
template <typename T>
DCNZOO_HD RoiSpan roi_span_between(const RoiAxis<T>& axis, int64_t bin, T low, T high) {
  RoiSpan span{0, axis.samples};
  const T step = axis.bin / T(axis.samples);
  if (axis.samples > 0 && step > T(0)) {
    const T count = T(axis.samples), origin = axis.start + T(bin) * axis.bin;
    const T begin = std::floor((low - origin) / step - T(0.5)) - T(1);
    const T end = std::ceil((high - origin) / step - T(0.5)) + T(2);
    span.begin = begin > T(0) ? (begin < count ? int64_t(begin) : axis.samples) : 0;
    span.end = end < count ? (end > T(0) ? int64_t(end) : 0) : axis.samples;
  }
  return span;
}

template <typename T>
DCNZOO_HD RoiSpan roi_span(const RoiAxis<T>& axis, int64_t bin, int64_t size) {
  RoiSpan span = roi_span_between(axis, bin, T(-1), T(size));
  while (span.begin < span.end && !roi_inside(roi_coordinate(axis, bin, span.begin), size)) ++span.begin;
  while (span.begin < span.end && !roi_inside(roi_coordinate(axis, bin, span.end - 1), size)) --span.end;
  return span;
}

// The two pixels beside a coordinate and their weights. From the centre of a border pixel to one pixel outside the map,
// only the border pixel is read, and high equals low. This is RoIAlign's rule; deformable convolution has a different
// one.
template <typename T>
struct Lerp {
  int64_t low, high;
  T low_weight, high_weight;

  DCNZOO_HD bool reads_two() const { return high > low; }
};

template <typename T>
DCNZOO_HD Lerp<T> lerp_at(T coordinate, int64_t size) {
  if (coordinate < T(0)) return {0, 0, T(1), T(0)};
  const int64_t low = int64_t(coordinate);
  if (low >= size - 1) return {size - 1, size - 1, T(1), T(0)};
  const T fraction = coordinate - T(low);
  return {low, low + 1, T(1) - fraction, fraction};
}

// Calls visit(pixel, weight) for each pixel that a sample reads. At a border, weights of zero are skipped, not
// multiplied: the pixel may be Inf.
template <typename T, typename Visit>
DCNZOO_HD void each_pixel(const Lerp<T>& y, const Lerp<T>& x, int64_t width, const Visit& visit) {
  const int64_t low = y.low * width, high = y.high * width;
  visit(low + x.low, y.low_weight * x.low_weight);
  if (x.reads_two()) visit(low + x.high, y.low_weight * x.high_weight);
  if (!y.reads_two()) return;
  visit(high + x.low, y.high_weight * x.low_weight);
  if (x.reads_two()) visit(high + x.high, y.high_weight * x.high_weight);
}

template <typename T, typename Value>
DCNZOO_HD T roi_sample(const Value* map, const Lerp<T>& y, const Lerp<T>& x, int64_t width) {
  T sum = T(0);
  each_pixel(y, x, width, [&](int64_t pixel, T weight) { sum += weight * T(map[pixel]); });
  return sum;
}

// The divisor of an average: all samples count, including those outside the map.
template <typename T>
DCNZOO_HD T roi_count(const RoiAxis<T>& y, const RoiAxis<T>& x) {
  const T count = T(y.samples) * T(x.samples);
  return count > T(1) ? count : T(1);
}

// The samples of a bin along one axis of a map. `span`: those on the map.
template <typename T>
struct RoiSamples {
  RoiAxis<T> axis;
  int64_t bin, size;
  RoiSpan span;

  DCNZOO_HD RoiSamples(const RoiAxis<T>& axis, int64_t bin, int64_t size)
      : axis(axis), bin(bin), size(size), span(roi_span(axis, bin, size)) {}
  DCNZOO_HD T coordinate(int64_t sample) const { return roi_coordinate(axis, bin, sample); }
  DCNZOO_HD Lerp<T> lerp(int64_t sample) const { return lerp_at(coordinate(sample), size); }
};

// Calls visit(y, x), each a Lerp, for every sample of a bin that lies on the map.
template <typename T, typename Visit>
DCNZOO_HD void each_sample_of(const RoiSamples<T>& ys, const RoiSamples<T>& xs, const Visit& visit) {
  for (int64_t iy = ys.span.begin; iy < ys.span.end; ++iy) {
    const Lerp<T> row = ys.lerp(iy);
    for (int64_t ix = xs.span.begin; ix < xs.span.end; ++ix) visit(row, xs.lerp(ix));
  }
}

// A RoI that is not rotated.
template <typename T>
struct RoiRegion {
  RoiAxis<T> y, x;

  DCNZOO_HD T count() const { return roi_count(y, x); }

  template <typename Visit>
  DCNZOO_HD void each_sample(int64_t y_bin, int64_t x_bin, int64_t height, int64_t width,
                             const Visit& visit) const {
    each_sample_of(RoiSamples<T>(y, y_bin, height), RoiSamples<T>(x, x_bin, width), visit);
  }
};

}  // namespace dcnzoo
