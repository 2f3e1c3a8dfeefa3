// Argument checks that several operators share, and the text of their messages.
#pragma once

#include <algorithm>
#include <limits>

#include "tensor.h"

namespace dcnzoo {

inline int64_t product(const std::vector<int64_t>& values) {
  int64_t result = 1;
  for (int64_t value : values) result *= value;
  return result;
}

inline std::string times_text(const std::vector<int64_t>& values) {  // "3·2"
  std::string text;
  for (size_t i = 0; i < values.size(); ++i) text += (i ? "·" : "") + std::to_string(values[i]);
  return text;
}

inline std::string groups_text(int64_t groups) {
  return std::to_string(groups) + (groups == 1 ? " group" : " groups");
}

// Checks the flags of the gradients that a backward computes.
inline void check_output_mask(const std::string& op, const std::vector<bool>& output_mask, size_t gradients) {
  check(output_mask.size() == gradients, op, " backward: output_mask: expected ", gradients, " values, got ",
        output_mask.size());
}

// Checks of boxes and their scores, for non-maximum suppression.
inline void check_scores(const char* op, const Tensor& boxes, const Tensor& scores) {
  check_floating(scores, op, ": scores");
  check(scores.dim() == 1 && scores.size(0) == boxes.size(0), op, ": scores: expected shape (", boxes.size(0),
        ",), one per box, got ", shape_text(sizes_of(scores)));
  check_device(scores, boxes, " like boxes", op, ": scores");
}

// Checks of the arguments of one call.
struct ArgumentChecks {
  std::string op;  // "deform_conv2d: "
  const Tensor& input;
  int64_t rank;
  const char* like = " like input";

  void input_dimensions() const {
    check(input.dim() == rank + 2, op, "input: expected ", rank + 2,
          " dimensions (batch, channels, *size), got shape ", shape_text(sizes_of(input)));
    check_floating(input, op, "input");
    check(input.size(1) > 0, op, "input: expected at least 1 channel, got shape ",
          shape_text(sizes_of(input)));
  }

  void groups(int64_t in_channels, int64_t out_channels, int64_t groups) const {
    at_least(1, "groups", groups, groups);
    check(in_channels % groups == 0, op, "groups: expected a divisor of the ", in_channels,
          " input channels, got ", groups);
    check(out_channels % groups == 0, op, "groups: expected a divisor of the ", out_channels,
          " output channels, got ", groups);
  }

  void per_axis(const char* name, const std::vector<int64_t>& values, int64_t least) const {
    check(int64_t(values.size()) == rank, op, name, ": expected ", rank, " values, got ", values.size());
    for (int64_t value : values) at_least(least, name, value, shape_text(values));
  }

  // The upper limit keeps the arithmetic on sizes within int64.
  template <typename Text>
  void at_least(int64_t least, const char* name, int64_t value, const Text& given) const {
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    check(value >= least, op, name, ": expected at least ", least, ", got ", given);
    check(value <= most, op, name, ": expected at most ", most, ", got ", given);
  }

  void kernel(const Tensor& weight) const {
    for (int64_t axis = 0; axis < rank; ++axis)
      check(weight.size(axis + 2) >= 1, op, "weight: expected a kernel of at least 1, got shape ",
            shape_text(sizes_of(weight)));
  }

  void im2col_step(std::optional<int64_t> step) const {
    check(step.value_or(1) >= 1, op, "im2col_step: expected at least 1, got ", step.value_or(1));
  }

  void partner(const char* name, const Tensor& tensor, bool may_be_wider) const {
    const ScalarType dtype = input.scalar_type(), type = tensor.scalar_type();
    const bool wider = may_be_wider && is_half(dtype) && type == ScalarType::Float;
    check(type == dtype || wider, op, name, ": expected ", dtype_name(dtype), like,
          may_be_wider && is_half(dtype) ? " or float32" : "", ", got ", dtype_name(type));
    check_device(tensor, input, like, op, name);
  }

  void bias(const Tensor& bias, int64_t out_channels) const {
    partner("bias", bias, false);
    check(bias.dim() == 1 && bias.size(0) == out_channels, op, "bias: expected shape (", out_channels,
          ",), got ", shape_text(sizes_of(bias)));
  }

  // Checks the gradient of an output of these sizes, an argument that only the backward has.
  void grad_output(const std::optional<Tensor>& gradient, const std::vector<int64_t>& sizes) const {
    if (!gradient) return;
    const std::string backward = op.substr(0, op.size() - 2) + " backward: grad_output: expected ";
    check(sizes_of(*gradient) == sizes, backward, "shape ", shape_text(sizes), ", got ",
          shape_text(sizes_of(*gradient)));
    check(gradient->scalar_type() == input.scalar_type() && same_device(*gradient, input), backward,
          dtype_name(input.scalar_type()), " on ", device_name(input), " like input, got ",
          dtype_name(gradient->scalar_type()), " on ", device_name(*gradient));
  }

  // Checks an offset or mask of shape (batch, groups · per_group, *size) and returns the number of groups. Groups
  // split the sampled tensor's `channels`; `size` is the spatial size of the other one of input and output.
  int64_t offset_or_mask(const char* name, const Tensor& tensor, int64_t per_group,
                         const std::string& meaning, int64_t channels, const char* sampled,
                         const std::vector<int64_t>& size, const char* like_other) const {
    partner(name, tensor, true);
    check(tensor.dim() == rank + 2, op, name, ": expected ", rank + 2, " dimensions, got shape ",
          shape_text(sizes_of(tensor)));
    const int64_t groups = tensor.size(1) / per_group;
    check(groups >= 1 && tensor.size(1) % per_group == 0, op, name, ": expected ",
          std::max<int64_t>(groups, 1) * per_group, " channels (", meaning, " · ",
          groups_text(std::max<int64_t>(groups, 1)), "), got ", tensor.size(1));
    check(channels % groups == 0, op, name, ": expected a number of groups that divides the ", channels, " ",
          sampled, " channels, got ", groups, " (", tensor.size(1), " channels / ", per_group, ")");
    check(tensor.size(0) == input.size(0), op, name, ": expected batch ", input.size(0), " like input, got ",
          tensor.size(0));
    const std::vector<int64_t> sizes = sizes_of(tensor);
    const std::vector<int64_t> spatial(sizes.begin() + 2, sizes.end());
    check(spatial == size, op, name, ": expected spatial size ", shape_text(size), like_other,
          shape_text(spatial));
    return groups;
  }
};

}  // namespace dcnzoo
