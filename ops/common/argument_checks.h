// Checks of arguments that several operators share. dcnzoo/ops/checks.py has the same for kernels in Python.
#pragma once

#include <limits>

#include "tensor.h"

namespace dcnzoo {

// The size that an axis of a tensor must have: a number or, if `several`, any positive multiple of it.
struct Size {
  int64_t number;
  bool several = false;

  constexpr Size(int64_t number, bool several = false) : number(number), several(several) {}
  bool fits(int64_t size) const {
    return several ? size > 0 && size % number == 0 : size == number || number < 0;
  }
  friend std::ostream& operator<<(std::ostream& text, const Size& size) {
    if (size.several) return size.number == 1 ? text << "at least 1" : text << "n·" << size.number;
    return size.number < 0 ? text << 'n' : text << size.number;
  }
};

constexpr Size kAny{-1}, kPositive{1, true};
constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // keeps the arithmetic on sizes within int64

enum class Type { same, wide, floating, int64 };  // wide: the same, or float32 beside a half type

inline int64_t product(const std::vector<int64_t>& values) {
  int64_t result = 1;
  for (int64_t value : values) result *= value;
  return result;
}

// Checks of the arguments of one call. The tensors have the device of the first one and, unless `types` says otherwise,
// its type.
struct ArgumentChecks {
  std::string op;
  const Tensor& first;

  void tensor(const char* name, const Tensor& tensor, const std::vector<Size>& sizes, Type types = Type::same,
              const char* hint = "") const {
    const ScalarType type = tensor.scalar_type(), like = first.scalar_type();
    const bool may_be_wider = types == Type::wide && is_half(like);
    // the texts are made only for a message that is raised: making them takes longer than all checks of a call
    const auto refuse = [&](const auto&... expected) { fail(op, ": ", name, ": expected ", expected...); };
    if (types == Type::floating) {
      if (!is_floating(type)) refuse("float64, float32, bfloat16 or float16, got ", dtype_name(type));
    } else if (types == Type::int64) {
      if (type != ScalarType::Long) refuse("int64, got ", dtype_name(type));
    } else if (type != like && !(may_be_wider && type == ScalarType::Float)) {
      refuse(dtype_name(like), may_be_wider ? " or float32" : "", ", got ", dtype_name(type));
    }
    if (!same_device(tensor, first)) refuse("device ", device_name(first), ", got ", device_name(tensor));
    bool fits = tensor.dim() == int64_t(sizes.size());
    for (size_t axis = 0; fits && axis < sizes.size(); ++axis) fits = sizes[axis].fits(tensor.size(axis));
    if (!fits) refuse("shape ", shape_text(sizes), ", got ", shape_text(sizes_of(tensor)), hint);
  }

  void number(const char* name, int64_t value, int64_t least) const {
    check(value >= least && value <= kMost, op, ": ", name, ": expected ", least, " to ", kMost, ", got ",
          value);
  }

  void numbers(const char* name, const std::vector<int64_t>& values, int64_t count, int64_t least) const {
    check(int64_t(values.size()) == count, op, ": ", name, ": expected ", count, " values, got ",
          values.size());
    for (int64_t value : values)
      check(value >= least && value <= kMost, op, ": ", name, ": expected ", least, " to ", kMost, ", got ",
            shape_text(values));
  }

  // The size of a convolution's output on an axis of the input.
  int64_t output_size(int64_t axis, int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                      int64_t dilation) const {
    const int64_t least = dilation * (kernel - 1) + 1 - 2 * padding;
    check(size >= least, op, ": input: expected size at least ", least, " on axis ", axis, " (kernel ",
          kernel, ", dilation ", dilation, ", padding ", padding, "), got ", size);
    return (size - least) / stride + 1;
  }

  void output_mask(const std::vector<bool>& mask, size_t gradients) const {
    check(mask.size() == gradients, op, " backward: output_mask: expected ", gradients, " values, got ",
          mask.size());
  }

  // Checks the gradient of an output of these sizes, an argument that only the backward has.
  void grad_output(const std::optional<Tensor>& gradient, const std::vector<int64_t>& sizes) const {
    if (!gradient) return;
    ArgumentChecks{op + " backward", first}.tensor("grad_output", *gradient, {sizes.begin(), sizes.end()});
  }
};

}  // namespace dcnzoo
