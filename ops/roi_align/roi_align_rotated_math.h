// The samples of rotated RoIAlign, for host and device. A bin's samples form a grid along the region's axes, which is
// not separable along the map's axes.
#pragma once

#include "../common/angle.h"
#include "../common/roi_math.h"

namespace dcnzoo {

template <typename T>
struct RotatedRoi {
  T y, x, cos, sin;  // of the centre, in pixels of the map, and of the angle
  RoiAxis<T> down,
      across;  // along the region's height and width, from its centre; no samples if the region is empty
  T down_low, down_high, across_low, across_high;  // beyond these, everything is outside the map

  DCNZOO_HD T count() const { return roi_count(down, across); }

  // Calls visit(y, x), each a Lerp, for every sample of a bin that lies on the map.
  template <typename Visit>
  DCNZOO_HD void each_sample(int64_t y_bin, int64_t x_bin, int64_t height, int64_t width,
                             const Visit& visit) const {
    const RoiSpan rows = roi_span_between(down, y_bin, down_low, down_high);
    const RoiSpan columns = roi_span_between(across, x_bin, across_low, across_high);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T v = roi_coordinate(down, y_bin, row);
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        const T u = roi_coordinate(across, x_bin, column);
        const T at_y = v * cos - u * sin + y, at_x = v * sin + u * cos + x;
        if (roi_inside(at_y, height) && roi_inside(at_x, width))
          visit(lerp_at(at_y, height), lerp_at(at_x, width));
      }
    }
  }
};

// roi: image, x, y, width, height, angle. The angle turns the y axis towards the x axis or, if clockwise, the other way
// round. T is the accumulation type.
template <typename T>
DCNZOO_HD RotatedRoi<T> rotated_roi(const T* roi, T scale, bool aligned, bool clockwise, int64_t output_h,
                                    int64_t output_w, int64_t sampling_ratio, int64_t height, int64_t width) {
  const T shift = aligned ? T(0.5) : T(0);
  RotatedRoi<T> region;
  region.x = roi[1] * scale - shift;
  region.y = roi[2] * scale - shift;
  cos_and_sin(clockwise ? -roi[5] : roi[5], region.cos, region.sin);
  T long_across = roi[3] * scale, long_down = roi[4] * scale;
  // NaN if any of these is not finite
  const T finite = (region.x + region.y + region.cos + long_across + long_down) * T(0);
  if (!aligned) {  // as in roi_align, at least a pixel
    if (long_across < T(1)) long_across = T(1);
    if (long_down < T(1)) long_down = T(1);
  }
  region.across = roi_axis_from(-long_across / T(2), long_across, output_w, sampling_ratio);
  region.down = roi_axis_from(-long_down / T(2), long_down, output_h, sampling_ratio);
  if (finite != T(0) || region.across.samples == 0 || region.down.samples == 0)
    region.across.samples = region.down.samples = 0;
  // The map's extent along the region's axes, with a margin for rounding.
  const T y = (T(height) - T(1)) / T(2) - region.y, x = (T(width) - T(1)) / T(2) - region.x;
  const T half_h = (T(height) + T(1)) / T(2), half_w = (T(width) + T(1)) / T(2);
  const T down = y * region.cos + x * region.sin, across = x * region.cos - y * region.sin;
  const T cos = std::fabs(region.cos), sin = std::fabs(region.sin);
  const T room = T(1) + T(1e-5) * (std::fabs(x) + std::fabs(y) + half_h + half_w);
  const T reach_down = half_h * cos + half_w * sin + room, reach_across = half_h * sin + half_w * cos + room;
  region.down_low = down - reach_down;
  region.down_high = down + reach_down;
  region.across_low = across - reach_across;
  region.across_high = across + reach_across;
  return region;
}

}  // namespace dcnzoo
