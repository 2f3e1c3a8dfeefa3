// The overlap of two rotated boxes, for host and device. Always computed in float64: float32 is too inaccurate for thin
// boxes far from the origin, and the boxes that nms_rotated keeps should not depend on the device.
#pragma once

#include <cmath>

#include "../common/angle.h"

namespace dcnzoo {

constexpr double kLeastArea = 1e-14;          // as in mmcv: a smaller box overlaps nothing
constexpr double kLeastSquaredWidth = 1e-60;  // an edge that spans less in x counts as vertical

// Value: double, or a vector of doubles with one box per lane.
template <typename Value>
struct RotatedBoxOf {
  Value x, y, half_w, half_h, cos, sin, area, radius;
};
using RotatedBox = RotatedBoxOf<double>;
constexpr int kRotatedBoxFields = 8;
static_assert(sizeof(RotatedBox) == kRotatedBoxFields * sizeof(double), "an array of its fields");

// NaN if a is NaN.
template <typename Value>
DCNZOO_HD Value smaller(Value a, Value b) {
  return b < a ? b : a;
}
template <typename Value>
DCNZOO_HD Value larger(Value a, Value b) {
  return a < b ? b : a;
}
template <typename Value>
DCNZOO_HD Value limited(Value value, Value most) {
  return smaller(larger(value, -most), most);
}

// box: x, y, width, height, angle. If clockwise, the angle turns the x axis towards the y axis, which points down; else
// the other way round.
DCNZOO_HD RotatedBox rotated_box(const double* box, bool clockwise) {
  const double half_w = std::fabs(box[2]) / 2, half_h = std::fabs(box[3]) / 2;
  const double area = larger(box[2] * box[3], 0.0), radius = std::sqrt(half_w * half_w + half_h * half_h);
  double cos, sin;
  cos_and_sin(clockwise ? box[4] : -box[4], cos, sin);
  return {box[0], box[1], half_w, half_h, cos, sin, area, radius};
}

// Whether the circles around two boxes are disjoint, with a margin for rounding. False for NaN.
DCNZOO_HD bool circles_apart(double x, double y, double reach) {
  return x * x + y * y > reach * reach * (1 + 1e-9);
}

template <typename Value>
DCNZOO_HD Value slope_of(Value x, Value y) {
  return x * x > kLeastSquaredWidth ? y / x : Value{};
}

// The integral of y dx along an edge from (x, y), with x clamped to ±half_w and y to ±half_h.
template <typename Value>
DCNZOO_HD Value limited_integral(Value x, Value y, Value width, Value slope, Value half_w, Value half_h) {
  const Value from = limited(x, half_w), to = limited(Value(x + width), half_w);
  const Value y_from = y + (from - x) * slope, y_to = y + (to - x) * slope;
  const Value low = smaller(y_from, y_to), high = larger(y_from, y_to);
  const Value inner_low = limited(low, half_h), inner_high = limited(high, half_h);
  const Value below = smaller(high, Value(-half_h)) - smaller(low, Value(-half_h));
  const Value above = larger(high, half_h) - larger(low, half_h);
  const Value sum = (inner_high - inner_low) * (inner_high + inner_low) / 2 + half_h * (above - below);
  const Value mean = high > low ? sum / (high - low) : inner_low;
  return (to - from) * mean;
}

// The area of the intersection of a box with another box, the window, by Green's theorem in the window's axes. At each
// x, the box extends from its lower to its upper edge, both clamped to the window. Crossings of edges are not computed,
// so that parallel and touching edges need no special case. No branches, so that it also runs on vectors.
template <typename Value>
DCNZOO_HD Value shared_area(const RotatedBoxOf<Value>& box, const RotatedBoxOf<Value>& window) {
  const Value to_x = box.x - window.x, to_y = box.y - window.y;
  const Value x = to_x * window.cos + to_y * window.sin, y = to_y * window.cos - to_x * window.sin;
  const Value cos = box.cos * window.cos + box.sin * window.sin;
  const Value sin = box.sin * window.cos - box.cos * window.sin;
  // half of each side of the box
  const Value ux = box.half_w * cos, uy = box.half_w * sin, vx = -box.half_h * sin, vy = box.half_h * cos;
  const Value u_slope = slope_of(ux, uy), v_slope = slope_of(vx, vy);
  const auto along = [&](Value from_x, Value from_y, Value half_width, Value slope) {
    return limited_integral(Value(x + from_x), Value(y + from_y), Value(half_width * 2), slope, window.half_w,
                            window.half_h);
  };
  const Value area = -(along(-ux - vx, -uy - vy, ux, u_slope) + along(ux - vx, uy - vy, vx, v_slope) +
                       along(ux + vx, uy + vy, -ux, u_slope) + along(vx - ux, vy - uy, -vx, v_slope));
  const Value nothing{};  // also if a box has a NaN
  const auto shared = (area > nothing) & (box.area + window.area > nothing);
  return shared ? smaller(area, smaller(box.area, window.area)) : nothing;
}

// The intersection over the union, or over the first box only. NaN if an area is NaN, as in mmcv.
template <typename Value>
DCNZOO_HD Value overlap_ratio(Value area, Value other_area, Value shared, bool over_first) {
  const Value whole = over_first ? area : area + other_area - shared;
  return ((area < kLeastArea) | (other_area < kLeastArea)) ? Value{} : shared / whole;
}

DCNZOO_HD double rotated_overlap(const RotatedBox& box, const RotatedBox& other, bool over_first) {
  const bool apart = circles_apart(box.x - other.x, box.y - other.y, box.radius + other.radius);
  return overlap_ratio(box.area, other.area, apart ? 0.0 : shared_area(box, other), over_first);
}

}  // namespace dcnzoo
