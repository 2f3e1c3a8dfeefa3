// Helpers for torch's stable Tensor that every operator needs.
#pragma once

#include "torch_errors.h"  // before the headers that it changes

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

namespace dcnzoo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  std::vector<int64_t> sizes(tensor.dim());
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes[d] = tensor.size(d);
  return sizes;
}

// The elements as T, which is their type or has the same bits
template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline bool is_half(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

inline bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || is_half(type);
}

// The type in which coordinates are computed and sums are accumulated.
inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The dtype of float and double, the types of the CPU kernels.
template <typename T>
constexpr ScalarType kTypeOf = sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;

// Both skip torch's dispatcher if there is nothing to convert: small calls spend a notable part of their time there.
inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  const Tensor typed = as_type(tensor, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

// Converts a gradient to the type of its argument. Without an argument, the gradient is empty and is not converted.
inline Tensor to_type_of(const std::optional<Tensor>& argument, const Tensor& gradient) {
  return argument ? as_type(gradient, argument->scalar_type()) : gradient;
}

// A gradient of zeros, or an empty tensor if it is not needed.
inline Tensor new_gradient(const Tensor& like, bool needed, const std::optional<Tensor>& argument,
                           ScalarType type) {
  return torch::stable::new_zeros(like, needed ? sizes_of(*argument) : std::vector<int64_t>{0}, type);
}

inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    default: return torch::headeronly::toString(type);
  }
}

inline std::string device_name(const Tensor& tensor) {
  const bool cpu = tensor.is_cpu(), cuda = tensor.is_cuda();
  std::string name = cpu ? "cpu" : cuda ? "cuda" : "another device";
  return cuda ? name + ":" + std::to_string(tensor.get_device_index()) : name;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return (a.is_cpu() && b.is_cpu()) || device_name(a) == device_name(b);
}

#ifndef __linux__
// Elsewhere, torch may have another C++ runtime (on Windows MSVC's), which cannot catch our exceptions. This catches them in
// a kernel, and torch throws its own.
template <auto function>
void boxed_fn(StableIValue* stack, uint64_t arguments, uint64_t results) {
  static thread_local std::string message;  // not freed while torch's exception passes
  try {
    torch::stable::detail::boxer<std::remove_pointer_t<decltype(function)>, function>::boxed_fn(
        stack, arguments, results);
    return;
  } catch (const std::exception& error) {
    message = error.what();
  }
  aoti_torch_check(false, "", "", 0, message.c_str());
}
#undef TORCH_BOX
#define TORCH_BOX(function) (&::dcnzoo::boxed_fn<function>)
#endif

// Calls a torch operator that has no function in the stable ABI. All its results must be tensors.
template <size_t Results, typename... Arguments>
std::array<Tensor, Results> call_operator(const char* name, const char* overload,
                                          const Arguments&... arguments) {
  static_assert(Results <= sizeof...(arguments), "the results take the arguments' place");
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  if (torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION) != TORCH_SUCCESS)
    torch_call_failed(name);
  std::array<Tensor, Results> results;
  for (size_t i = 0; i < Results; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

// The indices that sort `scores` in descending order. Equal scores keep their order; NaN comes first.
inline Tensor descending_order(const Tensor& scores) {
  return call_operator<2>("aten::sort", "stable", scores, std::optional<bool>(true), int64_t(0), true)[1];
}

// The elements of `order` that are not suppressed.
template <typename Flag>
Tensor kept_of(const Tensor& order, const std::vector<Flag>& suppressed) {
  Tensor kept = torch::stable::new_empty(order, {std::count(suppressed.begin(), suppressed.end(), Flag(0))});
  const int64_t* const from = order.const_data_ptr<int64_t>();
  int64_t* to = kept.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < suppressed.size(); ++i)
    if (!suppressed[i]) *to++ = from[i];
  return kept;
}

}  // namespace dcnzoo
