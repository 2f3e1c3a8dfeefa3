// The cosine and the sine of an angle in radians, for host and device.
#pragma once

#include <cmath>

#include "host_device.h"

namespace dcnzoo {

#ifdef __CUDA_ARCH__
// By way of half turns: to reduce any angle in radians, CUDA's functions need memory beside the registers.
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
