// The overlap test of non-maximum suppression for one pair of boxes, for host and device.
#pragma once

#include "../common/host_device.h"

// The decisions match mmcv's bit for bit only if no product is fused into an addition: setup.py compiles this folder
// with -ffp-contract=off.
namespace dcnzoo {

#ifdef __CUDA_ARCH__
DCNZOO_HD float rounded_product(float a, float b) { return __fmul_rn(a, b); }
DCNZOO_HD double rounded_product(double a, double b) { return __dmul_rn(a, b); }
#else
template <typename T>
DCNZOO_HD T rounded_product(T a, T b) {
  return a * b;
}
#endif

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// offset: 1 if a box from 0 to 9 is 10 pixels wide, 0 if it is 9 pixels wide
template <typename T>
DCNZOO_HD T area_of(const Box<T>& box, T offset) {
  return rounded_product(box.x2 - box.x1 + offset, box.y2 - box.y1 + offset);
}

// Whether the intersection over union is above the threshold; false where it is NaN.
template <typename T>
DCNZOO_HD bool overlaps(const Box<T>& a, T area_a, const Box<T>& b, T area_b, T threshold, T offset) {
  const T left = a.x1 < b.x1 ? b.x1 : a.x1, right = b.x2 < a.x2 ? b.x2 : a.x2;
  const T top = a.y1 < b.y1 ? b.y1 : a.y1, bottom = b.y2 < a.y2 ? b.y2 : a.y2;
  const T width = right - left + offset, height = bottom - top + offset;
  const T inter = rounded_product(T(0) < width ? width : T(0), T(0) < height ? height : T(0));
  return inter / (area_a + area_b - inter) > threshold;
}

}  // namespace dcnzoo
