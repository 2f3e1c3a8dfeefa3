// Checks and sizes that the CPU and the CUDA kernels of deform_conv share.
#pragma once

#include <algorithm>

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

inline DeformConvShapes check_deform_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, std::optional<int64_t> im2col_step) {
  DeformConvShapes s;
  s.rank = weight.dim() - 2;
  check(s.rank >= 1 && s.rank <= 3,
        "deform_conv: weight: expected 3, 4 or 5 dimensions (out, in / groups, *kernel), got shape ",
        shape_text(sizes_of(weight)));
  const std::string op = "deform_conv" + std::to_string(s.rank) + "d: ";
  check(input.dim() == s.rank + 2, op, "input: expected ", s.rank + 2,
        " dimensions (batch, channels, *size), got shape ", shape_text(sizes_of(input)));

  s.batch = input.size(0), s.channels = input.size(1), s.out_channels = weight.size(0);
  s.groups = groups;
  check(groups >= 1, op, "groups: expected at least 1, got ", groups);
  check(s.channels % groups == 0, op, "groups: expected a divisor of the ", s.channels,
        " input channels, got ", groups);
  check(s.out_channels % groups == 0, op, "groups: expected a divisor of the ", s.out_channels,
        " output channels, got ", groups);
  check(s.channels > 0, op, "input: expected at least 1 channel, got shape ",
        shape_text(sizes_of(input)));
  check(weight.size(1) == s.channels / groups, op, "weight: expected ", s.channels / groups,
        " input channels (", s.channels, " / ", groups_text(groups), "), got ", weight.size(1));

  const auto check_list = [&](const char* name, const std::vector<int64_t>& values, int64_t least) {
    check(int64_t(values.size()) == s.rank, op, name, ": expected ", s.rank, " values, got ",
          values.size());
    for (int64_t value : values)
      check(value >= least, op, name, ": expected at least ", least, ", got ", shape_text(values));
  };
  check_list("stride", stride, 1);
  check_list("padding", padding, 0);
  check_list("dilation", dilation, 1);
  s.stride = stride, s.padding = padding, s.dilation = dilation;
  for (int64_t axis = 0; axis < s.rank; ++axis) {
    s.in.push_back(input.size(axis + 2));
    s.kernel.push_back(weight.size(axis + 2));
    check(s.kernel[axis] >= 1, op, "weight: expected a kernel of at least 1, got shape ",
          shape_text(sizes_of(weight)));
    const int64_t room = s.in[axis] + 2 * padding[axis] - dilation[axis] * (s.kernel[axis] - 1) - 1;
    check(room >= 0, op, "input: expected size at least ",
          dilation[axis] * (s.kernel[axis] - 1) + 1 - 2 * padding[axis], " on axis ", axis + 2,
          " (kernel ", s.kernel[axis], ", dilation ", dilation[axis], ", padding ", padding[axis],
          "), got ", s.in[axis]);
    s.out.push_back(room / stride[axis] + 1);
  }
  s.taps = product(s.kernel), s.in_pixels = product(s.in), s.out_pixels = product(s.out);

  check(im2col_step.value_or(1) >= 1, op, "im2col_step: expected at least 1, got ",
        im2col_step.value_or(1));
  s.im2col_step = std::max<int64_t>(1, std::min(s.batch, im2col_step.value_or(64)));

  const ScalarType dtype = input.scalar_type();
  check(is_floating(dtype), op, "input: expected float64, float32, bfloat16 or float16, got ",
        dtype_name(dtype));
  const auto check_partner = [&](const char* name, const Tensor& tensor, bool may_be_wider) {
    const ScalarType type = tensor.scalar_type();
    const bool wider = may_be_wider && is_half(dtype) && type == ScalarType::Float;
    check(type == dtype || wider, op, name, ": expected ", dtype_name(dtype), " like input",
          may_be_wider && is_half(dtype) ? " or float32" : "", ", got ", dtype_name(type));
    check(same_device(tensor, input), op, name, ": expected device ", device_name(input),
          " like input, got ", device_name(tensor));
  };
  // offset and mask: (batch, groups · per_group, *out)
  const auto check_field = [&](const char* name, const Tensor& field, int64_t per_group,
                               const std::string& meaning) {
    check_partner(name, field, true);
    check(field.dim() == s.rank + 2, op, name, ": expected ", s.rank + 2, " dimensions, got shape ",
          shape_text(sizes_of(field)));
    const int64_t field_groups = field.size(1) / per_group;
    check(field_groups >= 1 && field.size(1) % per_group == 0, op, name, ": expected ",
          std::max<int64_t>(field_groups, 1) * per_group, " channels (", meaning, " · ",
          groups_text(std::max<int64_t>(field_groups, 1)), "), got ", field.size(1));
    check(s.channels % field_groups == 0, op, name, ": expected a number of groups that divides the ",
          s.channels, " input channels, got ", field_groups, " (", field.size(1), " channels / ",
          per_group, ")");
    check(field.size(0) == s.batch, op, name, ": expected batch ", s.batch, " like input, got ",
          field.size(0));
    const std::vector<int64_t> sizes = sizes_of(field);
    const std::vector<int64_t> spatial(sizes.begin() + 2, sizes.end());
    check(spatial == s.out, op, name, ": expected spatial size ", shape_text(s.out),
          " like the output, got ", shape_text(spatial));
    return field_groups;
  };
  check_partner("weight", weight, false);
  const std::string kernel_text = times_text(s.kernel) + " taps";
  s.offset_groups = offset ? check_field("offset", *offset, s.rank * s.taps,
                                         std::to_string(s.rank) + " · " + kernel_text)
                           : 0;
  s.mask_groups = mask ? check_field("mask", *mask, s.taps, kernel_text) : 0;
  if (bias) {
    check_partner("bias", *bias, false);
    check(bias->dim() == 1 && bias->size(0) == s.out_channels, op, "bias: expected shape (",
          s.out_channels, ",), got ", shape_text(sizes_of(*bias)));
  }
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
