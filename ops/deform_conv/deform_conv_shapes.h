// Checks and sizes that the CPU and the CUDA kernels of deform_conv share.
#pragma once

#include <algorithm>
#include <limits>

#include "../common/tensor.h"
#include "deform_conv_math.h"

namespace dcnzoo {

struct DeformConvShapes {
  int64_t rank, batch, channels, out_channels, groups;
  int64_t offset_groups, mask_groups;  // 0 where there is no offset or mask
  int64_t taps, in_pixels, out_pixels, im2col_step;
  std::vector<int64_t> in, out, kernel, stride, padding, dilation;

  template <int Rank>
  ConvGeometry<Rank> geometry() const {
    ConvGeometry<Rank> result;
    for (int axis = 0; axis < Rank; ++axis) {
      result.in[axis] = in[axis];
      result.out[axis] = out[axis];
      result.kernel[axis] = kernel[axis];
      result.stride[axis] = stride[axis];
      result.padding[axis] = padding[axis];
      result.dilation[axis] = dilation[axis];
    }
    return result;
  }

  std::vector<int64_t> output_sizes() const {
    std::vector<int64_t> sizes{batch, out_channels};
    sizes.insert(sizes.end(), out.begin(), out.end());
    return sizes;
  }
};

inline int64_t product(const std::vector<int64_t>& values) {
  int64_t result = 1;
  for (int64_t value : values) result *= value;
  return result;
}

inline std::string times_text(const std::vector<int64_t>& values) {  // "3·2"
  std::ostringstream text;
  for (size_t i = 0; i < values.size(); ++i) text << (i ? "·" : "") << values[i];
  return text.str();
}

inline std::string groups_text(int64_t groups) {
  return std::to_string(groups) + (groups == 1 ? " group" : " groups");
}

// What deform_conv and deform_conv_transpose ask of an argument alike.
struct ArgumentChecks {
  std::string op;  // "deform_conv2d: "
  const Tensor& input;
  int64_t rank;
  const char* like = " like input";

  void input_dimensions() const {
    check(input.dim() == rank + 2, op, "input: expected ", rank + 2,
          " dimensions (batch, channels, *size), got shape ", shape_text(sizes_of(input)));
    check(is_floating(input.scalar_type()), op, "input: expected float64, float32, bfloat16 or float16, got ",
          dtype_name(input.scalar_type()));
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

  // Nor more than leaves room for the arithmetic of sizes.
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

  // Coordinates are float but for double: beyond, neighbouring pixels would be one.
  void countable(int64_t size, int64_t axis) const {
    constexpr int64_t most = 1 << 24;
    check(size <= most || input.scalar_type() == ScalarType::Double, op, "input: expected at most ", most,
          " pixels on axis ", axis, " (float64: any number), got ", size);
  }

  void im2col_step(std::optional<int64_t> step) const {
    check(step.value_or(1) >= 1, op, "im2col_step: expected at least 1, got ", step.value_or(1));
  }

  void partner(const char* name, const Tensor& tensor, bool may_be_wider) const {
    const ScalarType dtype = input.scalar_type(), type = tensor.scalar_type();
    const bool wider = may_be_wider && is_half(dtype) && type == ScalarType::Float;
    check(type == dtype || wider, op, name, ": expected ", dtype_name(dtype), like,
          may_be_wider && is_half(dtype) ? " or float32" : "", ", got ", dtype_name(type));
    check(same_device(tensor, input), op, name, ": expected device ", device_name(input), like, ", got ",
          device_name(tensor));
  }

  void bias(const Tensor& bias, int64_t out_channels) const {
    partner("bias", bias, false);
    check(bias.dim() == 1 && bias.size(0) == out_channels, op, "bias: expected shape (", out_channels,
          ",), got ", shape_text(sizes_of(bias)));
  }

  // Offset or mask, (batch, groups · per_group, *size); returns its groups. They part `channels` of the
  // side that is sampled, and its pixels are those of the other side.
  int64_t field(const char* name, const Tensor& field, int64_t per_group, const std::string& meaning,
                int64_t channels, const char* sampled, const std::vector<int64_t>& size,
                const char* like_other) const {
    partner(name, field, true);
    check(field.dim() == rank + 2, op, name, ": expected ", rank + 2, " dimensions, got shape ",
          shape_text(sizes_of(field)));
    const int64_t groups = field.size(1) / per_group;
    check(groups >= 1 && field.size(1) % per_group == 0, op, name, ": expected ",
          std::max<int64_t>(groups, 1) * per_group, " channels (", meaning, " · ",
          groups_text(std::max<int64_t>(groups, 1)), "), got ", field.size(1));
    check(channels % groups == 0, op, name, ": expected a number of groups that divides the ", channels, " ",
          sampled, " channels, got ", groups, " (", field.size(1), " channels / ", per_group, ")");
    check(field.size(0) == input.size(0), op, name, ": expected batch ", input.size(0), " like input, got ",
          field.size(0));
    const std::vector<int64_t> sizes = sizes_of(field);
    const std::vector<int64_t> spatial(sizes.begin() + 2, sizes.end());
    check(spatial == size, op, name, ": expected spatial size ", shape_text(size), like_other,
          shape_text(spatial));
    return groups;
  }
};

inline DeformConvShapes check_deform_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
    std::optional<int64_t> im2col_step) {
  DeformConvShapes s;
  s.rank = weight.dim() - 2;
  check(s.rank >= 1 && s.rank <= 3,
        "deform_conv: weight: expected 3, 4 or 5 dimensions (out, in / groups, *kernel), got shape ",
        shape_text(sizes_of(weight)));
  const ArgumentChecks checks{"deform_conv" + std::to_string(s.rank) + "d: ", input, s.rank};
  checks.input_dimensions();
  s.batch = input.size(0), s.channels = input.size(1), s.out_channels = weight.size(0);
  s.groups = groups;
  checks.groups(s.channels, s.out_channels, groups);
  check(weight.size(1) == s.channels / groups, checks.op, "weight: expected ", s.channels / groups,
        " input channels (", s.channels, " / ", groups_text(groups), "), got ", weight.size(1));

  checks.per_axis("stride", stride, 1);
  checks.per_axis("padding", padding, 0);
  checks.per_axis("dilation", dilation, 1);
  checks.kernel(weight);
  s.stride = stride, s.padding = padding, s.dilation = dilation;
  for (int64_t axis = 0; axis < s.rank; ++axis) {
    s.in.push_back(input.size(axis + 2));
    checks.countable(s.in[axis], axis + 2);
    check(
        s.in[axis] >= 1 || s.batch == 0, checks.op,
        "input: expected at least 1 pixel on every axis, or a batch of 0 (as convolutions in torch), got shape ",
        shape_text(sizes_of(input)));
    s.kernel.push_back(weight.size(axis + 2));
    const int64_t room = s.in[axis] + 2 * padding[axis] - dilation[axis] * (s.kernel[axis] - 1) - 1;
    check(room >= 0, checks.op, "input: expected size at least ",
          dilation[axis] * (s.kernel[axis] - 1) + 1 - 2 * padding[axis], " on axis ", axis + 2, " (kernel ",
          s.kernel[axis], ", dilation ", dilation[axis], ", padding ", padding[axis], "), got ", s.in[axis]);
    s.out.push_back(room / stride[axis] + 1);
  }
  s.taps = product(s.kernel), s.in_pixels = product(s.in), s.out_pixels = product(s.out);
  checks.im2col_step(im2col_step);
  s.im2col_step = std::max<int64_t>(1, std::min(s.batch, im2col_step.value_or(64)));

  checks.partner("weight", weight, false);
  const std::string taps = times_text(s.kernel) + " taps";
  s.offset_groups = s.mask_groups = 0;
  if (offset)
    s.offset_groups = checks.field("offset", *offset, s.rank * s.taps, std::to_string(s.rank) + " · " + taps,
                                   s.channels, "input", s.out, " like the output, got ");
  if (mask)
    s.mask_groups =
        checks.field("mask", *mask, s.taps, taps, s.channels, "input", s.out, " like the output, got ");
  if (bias) checks.bias(*bias, s.out_channels);
  return s;
}

// The backward's own arguments; the rest has passed check_deform_conv.
inline void check_grad_output(const DeformConvShapes& s, const Tensor& grad_output, const Tensor& input,
                              const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
                              const std::vector<bool>& output_mask) {
  const std::string op = "deform_conv" + std::to_string(s.rank) + "d backward: ";
  check(sizes_of(grad_output) == s.output_sizes(), op, "grad_output: expected shape ",
        shape_text(s.output_sizes()), ", got ", shape_text(sizes_of(grad_output)));
  check(grad_output.scalar_type() == input.scalar_type() && same_device(grad_output, input), op,
        "grad_output: expected ", dtype_name(input.scalar_type()), " on ", device_name(input),
        " like input, got ", dtype_name(grad_output.scalar_type()), " on ", device_name(grad_output));
  check(output_mask.size() == 5, op, "output_mask: expected 5 values, got ", output_mask.size());
  check((offset || !output_mask[2]) && (mask || !output_mask[3]), op,
        "output_mask: asks for the gradient of an offset or mask that was not given");
}

}  // namespace dcnzoo
