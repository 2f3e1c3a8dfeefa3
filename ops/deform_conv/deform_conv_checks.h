// Checks and sizes that deform_conv, on the CPU and on CUDA, and deform_conv_transpose share.
#pragma once

#include "../common/argument_checks.h"
#include "deform_conv_shapes.h"

namespace dcnzoo {

struct DeformConvGradients {
  Tensor input, weight, offset, mask;
};

inline std::vector<int64_t> output_sizes(const DeformConvShapes& s) {
  std::vector<int64_t> sizes{s.batch, s.out_channels};
  sizes.insert(sizes.end(), s.out, s.out + s.rank);
  return sizes;
}

struct ConvolutionChecks : ArgumentChecks {
  int64_t rank;
  std::vector<int64_t> kernel;

  // Checks the arguments that both convolutions share: the input, the numbers, and the weight's number of axes.
  ConvolutionChecks(const char* name, const Tensor& input, const Tensor& weight,
                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                    const std::vector<int64_t>& dilation, int64_t groups, std::optional<int64_t> im2col_step)
      : ArgumentChecks{name, input}, rank(weight.dim() - 2) {
    check(rank >= 1 && rank <= 3, op, ": weight: expected 3, 4 or 5 dimensions, got shape ",
          shape_text(sizes_of(weight)));
    op += std::to_string(rank) + "d";
    std::vector<Size> sizes(rank + 2, kAny);
    sizes[1] = kPositive;
    tensor("input", input, sizes, Type::floating);
    number("groups", groups, 1);
    check(input.size(1) % groups == 0, op, ": groups: expected a divisor of the ", input.size(1),
          " input channels, got ", groups);
    numbers("stride", stride, rank, 1);
    numbers("padding", padding, rank, 0);
    numbers("dilation", dilation, rank, 1);
    check(im2col_step.value_or(1) >= 1, op, ": im2col_step: expected at least 1, got ",
          im2col_step.value_or(1));
    for (int64_t axis = 2; axis < rank + 2; ++axis) kernel.push_back(weight.size(axis));
  }

  void check_weight(const Tensor& weight, Size rows, Size columns, const char* hint = "") const {
    std::vector<Size> sizes(rank + 2, kPositive);
    sizes[0] = rows, sizes[1] = columns;
    tensor("weight", weight, sizes, Type::same, hint);
  }

  // Checks an offset or mask, [batch, groups · per_group, *size], and returns its number of groups, 0 if null. Groups
  // split the `channels` of the map that is sampled; `size` is the size of the other map, of input and output.
  int64_t groups_of(const char* name, const std::optional<Tensor>& field, int64_t per_group, int64_t channels,
                    const std::vector<int64_t>& size) const {
    if (!field) return 0;
    std::vector<Size> sizes{first.size(0), {per_group, true}};
    sizes.insert(sizes.end(), size.begin(), size.end());
    tensor(name, *field, sizes, Type::wide);
    const int64_t groups = field->size(1) / per_group;
    check(channels % groups == 0, op, ": ", name, ": expected a number of groups that divides the ", channels,
          " channels, got ", groups, " (", field->size(1), " / ", per_group, ")");
    return groups;
  }
};

inline DeformConvShapes check_deform_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
    std::optional<int64_t> im2col_step, const std::optional<Tensor>& grad_output = std::nullopt) {
  const ConvolutionChecks checks("deform_conv", input, weight, stride, padding, dilation, groups,
                                 im2col_step);
  DeformConvShapes s{};
  s.rank = checks.rank, s.batch = input.size(0), s.channels = input.size(1), s.out_channels = weight.size(0);
  s.groups = groups;
  check(s.out_channels % groups == 0, checks.op, ": groups: expected a divisor of the ", s.out_channels,
        " output channels, got ", groups);
  // torchvision's order of the arguments: its weight is in the place of the offset
  const bool swapped = offset && offset->dim() == weight.dim() && offset->size(1) > 0 &&
                       s.channels % offset->size(1) == 0 && weight.size(0) == s.batch;
  checks.check_weight(
      weight, kAny, s.channels / groups,
      swapped ? " (the order is input, weight, offset; torchvision's is in dcnzoo.compat.torchvision)" : "");
  // Beyond 2^24, neighbouring pixels would get the same float32 coordinate.
  constexpr int64_t most = 1 << 24;
  for (int64_t axis = 0; axis < s.rank; ++axis) {
    s.stride[axis] = stride[axis], s.padding[axis] = padding[axis], s.dilation[axis] = dilation[axis];
    s.in[axis] = input.size(axis + 2), s.kernel[axis] = weight.size(axis + 2);
    check(s.in[axis] <= most || is_double(input), checks.op, ": input: expected at most ", most,
          " pixels on axis ", axis + 2, " (float64: any number), got ", s.in[axis]);
    check(s.in[axis] >= 1 || s.batch == 0, checks.op,
          ": input: expected at least 1 pixel on every axis, or a batch of 0, got shape ",
          shape_text(sizes_of(input)));
    s.out[axis] = checks.output_size(axis + 2, s.in[axis], s.kernel[axis], s.stride[axis], s.padding[axis],
                                     s.dilation[axis]);
  }
  const std::vector<int64_t> out(s.out, s.out + s.rank);
  s.taps = product(checks.kernel), s.in_pixels = product({s.in, s.in + s.rank}), s.out_pixels = product(out);
  s.im2col_step = std::max<int64_t>(1, std::min(s.batch, im2col_step.value_or(64)));
  s.offset_groups = checks.groups_of("offset", offset, s.rank * s.taps, s.channels, out);
  s.mask_groups = checks.groups_of("mask", mask, s.taps, s.channels, out);
  if (bias) checks.tensor("bias", *bias, {s.out_channels});
  checks.grad_output(grad_output, output_sizes(s));
  return s;
}

inline void check_output_mask(const DeformConvShapes& s, const Tensor& input,
                              const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
                              const std::vector<bool>& output_mask) {
  const ArgumentChecks checks{"deform_conv" + std::to_string(s.rank) + "d", input};
  checks.output_mask(output_mask, 5);
  check((offset || !output_mask[2]) && (mask || !output_mask[3]), checks.op,
        " backward: output_mask: expected False for an offset or mask that is None, got True");
}

}  // namespace dcnzoo
