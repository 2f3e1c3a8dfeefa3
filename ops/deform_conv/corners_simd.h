// Lets the arithmetic of deform_conv_math.h take vectors. Included by *_cpu_kernel.cpp only.
#pragma once

#include "../common/simd.h"
#include "deform_conv_math.h"

namespace dcnzoo {

template <>
struct Lanes<DCNZOO_CPU_NAMESPACE::Vector<float>>
    : DCNZOO_CPU_NAMESPACE::VectorLanes<DCNZOO_CPU_NAMESPACE::Vector<float>> {};
template <>
struct Lanes<DCNZOO_CPU_NAMESPACE::Vector<double>>
    : DCNZOO_CPU_NAMESPACE::VectorLanes<DCNZOO_CPU_NAMESPACE::Vector<double>> {};

}  // namespace dcnzoo
