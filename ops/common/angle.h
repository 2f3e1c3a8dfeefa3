// The cosine and the sine of an angle in radians, for host and device.
#pragma once

#include <cmath>

#include "host_device.h"

namespace dcnzoo {

#ifdef __CUDA_ARCH__
// In units of π: for large angles in radians, CUDA's sincos needs local memory to reduce the angle.
DCNZOO_HD void cos_and_sin(double angle, double& cos, double& sin) {
  sincospi(angle * 0.31830988618379067154, &sin, &cos);
}
DCNZOO_HD void cos_and_sin(float angle, float& cos, float& sin) {
  sincospif(angle * 0.31830988618379067154f, &sin, &cos);
}
#else
template <typename T>
DCNZOO_HD void cos_and_sin(T angle, T& cos, T& sin) {
  cos = std::cos(angle);
  sin = std::sin(angle);
}
#endif

}  // namespace dcnzoo
