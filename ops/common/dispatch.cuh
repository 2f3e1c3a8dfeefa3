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

// Calls function(T(), F()) with the type of maps and, from field_type, the type of fields (offsets, masks, ...).
template <typename Function>
auto dispatch_types(ScalarType type, ScalarType field, const Function& function) {
  return dispatch_floating(type, [&](auto map) {
    using T = decltype(map);
    return type == field ? function(T(), T()) : function(T(), Accumulate<T>());
  });
}

// The type in which fields are read: the input's type if all fields have it, otherwise the type of sums.
inline ScalarType field_type(const Tensor& input, std::initializer_list<const Tensor*> fields) {
  for (const Tensor* field : fields)
    if (field && field->scalar_type() != input.scalar_type()) return accumulate_type(input.scalar_type());
  return input.scalar_type();
}

}  // namespace dcnzoo
