// Checks and sizes that the CPU and the CUDA kernels of deform_conv share.
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

inline DeformConvShapes check_deform_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
    std::optional<int64_t> im2col_step, const std::optional<Tensor>& grad_output = std::nullopt) {
  DeformConvShapes s{};
  s.rank = weight.dim() - 2;
  check(s.rank >= 1 && s.rank <= 3,
        "deform_conv: weight: expected 3, 4 or 5 dimensions (out, in / groups, *kernel), got shape ",
        shape_text(sizes_of(weight)));
  const ArgumentChecks checks{"deform_conv" + std::to_string(s.rank) + "d: ", input, s.rank};
  checks.input_dimensions();
  s.batch = input.size(0), s.channels = input.size(1), s.out_channels = weight.size(0);
  s.groups = groups;
  checks.groups(s.channels, s.out_channels, groups);
  // torchvision's order of the arguments: its weight is in the place of the offset
  const bool swapped = offset && offset->dim() == weight.dim() && offset->size(1) > 0 &&
                       s.channels % offset->size(1) == 0 && weight.size(0) == s.batch;
  check(
      weight.size(1) == s.channels / groups, checks.op, "weight: expected ", s.channels / groups,
      " input channels (", s.channels, " / ", groups_text(groups), "), got ", weight.size(1),
      swapped ? " (the order is input, weight, offset; torchvision's is in dcnzoo.compat.torchvision)" : "");

  checks.per_axis("stride", stride, 1);
  checks.per_axis("padding", padding, 0);
  checks.per_axis("dilation", dilation, 1);
  checks.kernel(weight);
  // Beyond 2^24, neighbouring pixels would get the same float32 coordinate.
  constexpr int64_t most = 1 << 24;
  for (int64_t axis = 0; axis < s.rank; ++axis) {
    s.stride[axis] = stride[axis], s.padding[axis] = padding[axis], s.dilation[axis] = dilation[axis];
    s.in[axis] = input.size(axis + 2), s.kernel[axis] = weight.size(axis + 2);
    check(s.in[axis] <= most || input.scalar_type() == ScalarType::Double, checks.op,
          "input: expected at most ", most, " pixels on axis ", axis + 2, " (float64: any number), got ",
          s.in[axis]);
    check(
        s.in[axis] >= 1 || s.batch == 0, checks.op,
        "input: expected at least 1 pixel on every axis, or a batch of 0 (as convolutions in torch), got shape ",
        shape_text(sizes_of(input)));
    const int64_t room = s.in[axis] + 2 * padding[axis] - dilation[axis] * (s.kernel[axis] - 1) - 1;
    check(room >= 0, checks.op, "input: expected size at least ",
          dilation[axis] * (s.kernel[axis] - 1) + 1 - 2 * padding[axis], " on axis ", axis + 2, " (kernel ",
          s.kernel[axis], ", dilation ", dilation[axis], ", padding ", padding[axis], "), got ", s.in[axis]);
    s.out[axis] = room / stride[axis] + 1;
  }
  const std::vector<int64_t> kernel(s.kernel, s.kernel + s.rank), out(s.out, s.out + s.rank);
  s.taps = product(kernel), s.in_pixels = product({s.in, s.in + s.rank}), s.out_pixels = product(out);
  checks.im2col_step(im2col_step);
  s.im2col_step = std::max<int64_t>(1, std::min(s.batch, im2col_step.value_or(64)));

  checks.partner("weight", weight, false);
  const std::string taps = times_text(kernel) + " taps";
  if (offset)
    s.offset_groups =
        checks.offset_or_mask("offset", *offset, s.rank * s.taps, std::to_string(s.rank) + " · " + taps,
                              s.channels, "input", out, " like the output, got ");
  if (mask)
    s.mask_groups = checks.offset_or_mask("mask", *mask, s.taps, taps, s.channels, "input", out,
                                          " like the output, got ");
  if (bias) checks.bias(*bias, s.out_channels);
  checks.grad_output(grad_output, output_sizes(s));
  return s;
}

inline void check_output_mask(const DeformConvShapes& s, const std::optional<Tensor>& offset,
                              const std::optional<Tensor>& mask, const std::vector<bool>& output_mask) {
  const std::string op = "deform_conv" + std::to_string(s.rank) + "d";
  check_output_mask(op, output_mask, 5);
  check((offset || !output_mask[2]) && (mask || !output_mask[3]), op,
        " backward: output_mask: expected False for an offset or mask that is None, got True");
}

}  // namespace dcnzoo
