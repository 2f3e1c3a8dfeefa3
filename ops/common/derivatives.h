// Python registers the derivatives. Without it, torch would return undefined gradients: these kernels above autograd
// attach a node to the results, whose backward raises an error.
#pragma once

#include <tuple>
#include <type_traits>

#include "tensor.h"

// Null in a process without Python, and in one that Python's extension modules could not be loaded into.
extern "C" __attribute__((weak)) int Py_IsInitialized();

namespace dcnzoo {

class GradientsOff {
 public:
  GradientsOff() { aoti_torch_grad_mode_set_enabled(false); }
  ~GradientsOff() { aoti_torch_grad_mode_set_enabled(true); }
};

// Attaches the node if the argument is a tensor that requires a gradient. No operator of the stable ABI makes a node
// that raises, but torch has one that backends must override, together with its backward (derivatives.cpp).
template <typename Argument>
void attach(Tensor& result, const Argument& argument) {
  if constexpr (std::is_same_v<Argument, std::optional<Tensor>>) {
    if (argument) attach(result, *argument);
  } else if constexpr (std::is_same_v<Argument, Tensor>) {
    const std::vector<int64_t> none;
    result = call_operator<1>("aten::convolution_overrideable", "", argument, result, std::optional<Tensor>(),
                              none, none, none, false, none, int64_t(1))[0];
  }
}

inline Tensor& first_of(Tensor& result) { return result; }

template <typename... Results>
Tensor& first_of(std::tuple<Results...>& results) {
  return std::get<0>(results);
}

template <auto function>
struct WithoutDerivative;

template <typename Result, typename... Arguments, Result (*function)(Arguments...)>
struct WithoutDerivative<function> {
  static Result call(Arguments... arguments) {
    if (!aoti_torch_grad_mode_is_enabled()) return function(arguments...);
    Result result = [&] {
      const GradientsOff off;
      return function(arguments...);
    }();
    (attach(first_of(result), arguments), ...);
    return result;
  }
};

}  // namespace dcnzoo

// Registers the kernel of an operator that has a derivative, such as ("roi_align", &dcnzoo::roi_align_cpu).
#define DCNZOO_DIFFERENTIABLE(device, name, function)                                                     \
  STABLE_TORCH_LIBRARY_IMPL(dcnzoo, device, m) { m.impl(name, TORCH_BOX(function)); }                     \
  STABLE_TORCH_LIBRARY_IMPL(dcnzoo, Autograd##device, m) {                                                \
    if (Py_IsInitialized == nullptr) m.impl(name, TORCH_BOX(&dcnzoo::WithoutDerivative<function>::call)); \
  }
