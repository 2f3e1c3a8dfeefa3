// Dispatch from a dtype to the C++ type of a kernel instance.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "tensor.h"

namespace dcnzoo {

// The type of coordinates and sums for maps of type T.
template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls function(T()) with the type of a floating dtype.
template <typename Function>
auto dispatch_floating(ScalarType type, const Function& function) {
  switch (type) {
    case ScalarType::Double: return function(double());
    case ScalarType::Half: return function(torch::headeronly::Half());
    case ScalarType::BFloat16: return function(torch::headeronly::BFloat16());
    default: return function(float());
  }
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace dcnzoo
