// Copies maps to and from vectors whose lanes hold channels. Included by *_cpu_kernel.cpp only.
#pragma once

#include <cstring>

#include "../common/simd.h"
#include "deform_conv_cpu_kernel.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// Calls function(lane, channel) for the lanes [first, end). channel: -1 for lanes that hold none.
template <typename Function>
DCNZOO_INLINE void each_lane(const LaneMap& map, int64_t first, int64_t end, Function function) {
  for (int64_t lane = first; lane < end; ++lane) function(lane, map.channel_of(lane));
}

// [channels][stride] or, if channels_last, [pixels][stride] -> [pixels][width], pixels to_stride apart. Lanes without a
// channel become zero.
template <typename S>
void to_lanes(const LaneMap& map, const S* from, int64_t stride, bool channels_last, S* to, int64_t width,
              int64_t to_stride, int64_t pixels) {
  constexpr int64_t lanes = kLanes<S>;
  const int64_t whole_lanes = channels_last ? 0 : width / lanes * lanes;
  const int64_t whole_pixels = pixels / lanes * lanes, pixel_stride = channels_last ? stride : 1;
  static const S zeros[kStretch] = {};
  for (int64_t first = 0; first < whole_lanes; first += lanes) {
    const S* rows[lanes];
    each_lane(map, first, first + lanes, [&](int64_t lane, int64_t channel) {
      rows[lane - first] = channel < 0 ? zeros : from + channel * stride;
    });
    for (int64_t pixel = 0; pixel < whole_pixels; pixel += lanes)
      transpose_square<S>([&](int i) { return rows[i] + pixel; },
                          [&](int i) { return to + (pixel + i) * to_stride + first; });
    for (int64_t pixel = whole_pixels; pixel < pixels; ++pixel)
      for (int64_t lane = 0; lane < lanes; ++lane) to[pixel * to_stride + first + lane] = rows[lane][pixel];
  }
  const int64_t copied = channels_last && map.is_identity() ? map.groups * map.channels : 0;
  for (int64_t pixel = 0; copied > 0 && pixel < pixels; ++pixel)
    std::memcpy(to + pixel * to_stride, from + pixel * stride, copied * sizeof(S));
  for (int64_t first = copied ? copied : whole_lanes; first < width; first += lanes) {
    const int64_t count = width - first < lanes ? width - first : lanes;
    int64_t places[lanes];
    each_lane(map, first, first + count, [&](int64_t lane, int64_t channel) {
      places[lane - first] = channel < 0 ? -1 : channel * (channels_last ? 1 : stride);
    });
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int64_t lane = 0; lane < count; ++lane)
        to[pixel * to_stride + first + lane] =
            places[lane] < 0 ? S(0) : from[places[lane] + pixel * pixel_stride];
  }
}

// The reverse, rounded to S: [pixels][width] -> [channels][stride] or [pixels][stride]
template <typename T, typename S>
void from_lanes(const LaneMap& map, const T* from, int64_t width, int64_t from_stride, S* to, int64_t stride,
                bool channels_last, int64_t pixels) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t whole_lanes = channels_last ? 0 : width / lanes * lanes;
  const int64_t whole_pixels = pixels / lanes * lanes;
  T rounded[std::is_same_v<T, S> ? 1 : lanes * kStretch], unused[std::is_same_v<T, S> ? kStretch : 1];
  for (int64_t first = 0; first < whole_lanes; first += lanes) {
    T* rows[lanes];
    each_lane(map, first, first + lanes, [&](int64_t lane, int64_t channel) {
      if constexpr (std::is_same_v<T, S>)
        rows[lane - first] = channel < 0 ? unused : to + channel * stride;
      else
        rows[lane - first] = rounded + (lane - first) * kStretch;
    });
    for (int64_t pixel = 0; pixel < whole_pixels; pixel += lanes)
      transpose_square<T>([&](int i) { return from + (pixel + i) * from_stride + first; },
                          [&](int i) { return rows[i] + pixel; });
    for (int64_t pixel = whole_pixels; pixel < pixels; ++pixel)
      for (int64_t lane = 0; lane < lanes; ++lane)
        rows[lane][pixel] = from[pixel * from_stride + first + lane];
    if constexpr (!std::is_same_v<T, S>)
      each_lane(map, first, first + lanes, [&](int64_t lane, int64_t channel) {
        if (channel >= 0) store_row(rows[lane - first], to + channel * stride, pixels);
      });
  }
  if (channels_last && map.is_identity()) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      store_row(from + pixel * from_stride, to + pixel * stride, map.groups * map.channels);
    return;
  }
  each_lane(map, whole_lanes, width, [&](int64_t lane, int64_t channel) {
    for (int64_t pixel = 0; channel >= 0 && pixel < pixels; ++pixel)
      store_lanes(to + channel * (channels_last ? 1 : stride) + pixel * (channels_last ? stride : 1),
                  from[pixel * from_stride + lane]);
  });
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
