// The arithmetic that DCNv3, DCNv4 and multi-scale deformable attention share, for host and device:
//
//   output[n, q, g, :] = sum over points p of  weight[n, q, g, p] · input[n, level(p), g, :] at
//                        base[q] + (tap[p] + field[n, q, g, p]) · scale[p]
//
// with bilinear sampling. A query q is an output pixel or an object query. A field is an offset or a location that the
// network predicts. The operators differ in base, tap and scale, which a grid (KernelGrid, LevelGrid) defines.
#pragma once

#include "../common/corners.h"
#include "../common/integers.h"

namespace dcnzoo {

struct FieldLayout {
  int64_t first, query, group;  // a query's fields for a group begin at first + q · query + g · group
};

struct DeformAttnSizes {
  int64_t batch, pixels, queries, groups, channels, points;  // channels: of a group
  FieldLayout offset_at;  // of a tensor [batch][queries][...]: one (x, y) pair per point
  FieldLayout weight_at;  // likewise, one per point
};

// The properties of a point that all queries share. Axis 0 is y, axis 1 is x; fields are (x, y).
template <typename T>
struct SamplePoint {
  T tap[2], scale[2];
  int64_t size[2];  // of the map that it reads
  int64_t start;    // of that map in the image, in pixels
};

template <typename Value>
DCNZOO_HD Value sample_coordinate(Value base, Value tap, Value field, Value scale) {
  return base + (tap + field) * scale;
}

// DCNv3 and DCNv4: the taps of a kernel, x slowest, optionally without the centre tap. offset_scale scales the offsets
// and also the kernel, about its centre.
struct KernelGrid {
  int64_t size[2], out_w;
  Divisor<int64_t> by_out_w;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  double offset_scale;
  int64_t removed;  // the tap that is left out, or -1

  static constexpr int kUsualInner = 3;
  DCNZOO_HD int64_t inner() const { return kernel[0]; }  // consecutive points in a column or a level

  template <typename T>
  DCNZOO_HD SamplePoint<T> point(int64_t p) const {
    const int64_t tap = removed >= 0 && p >= removed ? p + 1 : p;
    return {{T(tap % kernel[0] * dilation[0]), T(tap / kernel[0] * dilation[1])},
            {T(offset_scale), T(offset_scale)},
            {size[0], size[1]},
            0};
  }

  // the position of the first query's first tap, without its offset
  template <typename T>
  DCNZOO_HD T origin(int axis) const {
    const int64_t middle = dilation[axis] * (kernel[axis] - 1) / 2;
    return T(middle - padding[axis]) - T(middle) * T(offset_scale);
  }

  template <typename T>
  DCNZOO_HD void base(int64_t query, T* at) const {
    int64_t y = query;
    const int64_t x = by_out_w.split(y);
    at[0] = origin<T>(0) + T(y * stride[0]);
    at[1] = origin<T>(1) + T(x * stride[1]);
  }
};

// Multi-scale deformable attention: fields are locations normalised to the level's size. (0, 0) is its upper left
// corner, (1, 1) its lower right one; in pixels, pixel i has its centre at i + 0.5.
struct LevelGrid {
  const int64_t* sizes;   // [level][y, x]
  const int64_t* starts;  // [level]
  int64_t points_of_level, pixels;

  static constexpr int kUsualInner = 4;
  DCNZOO_HD int64_t inner() const { return points_of_level; }

  // The product of two numbers up to `pixels`, which is at most 2^31 - 1, does not overflow.
  DCNZOO_HD bool fits(int64_t level) const {
    const int64_t height = sizes[2 * level], width = sizes[2 * level + 1], start = starts[level];
    return height > 0 && width > 0 && start >= 0 && start <= pixels && height <= pixels && width <= pixels &&
           height * width <= pixels - start;
  }

  // A level that does not fit into the input's pixels is treated as empty: nothing is read.
  template <typename T>
  DCNZOO_HD SamplePoint<T> level(int64_t level) const {
    if (!fits(level)) return {};
    const int64_t height = sizes[2 * level], width = sizes[2 * level + 1];
    return {{T(0), T(0)}, {T(height), T(width)}, {height, width}, starts[level]};
  }

  template <typename T>
  DCNZOO_HD SamplePoint<T> point(int64_t p) const {
    return level<T>(p / points_of_level);
  }

  template <typename T>
  DCNZOO_HD void base(int64_t, T* at) const {
    at[0] = at[1] = T(-0.5);
  }
};

}  // namespace dcnzoo
