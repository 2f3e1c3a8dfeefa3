// Checks and sizes that the CPU and the CUDA kernels of dcnv3, dcnv4 and ms_deform_attn share.
#pragma once

#include "../common/argument_checks.h"
#include "deform_attn_math.h"

namespace dcnzoo {

struct DeformAttnShapes : DeformAttnSizes {
  std::vector<int64_t> output_sizes;
};

// The arguments of dcnv3 and dcnv4 that are not tensors.
struct KernelArguments {
  const std::vector<int64_t>&kernel_size, &stride, &padding, &dilation;
  int64_t group, group_channels;
  double offset_scale;
  bool remove_center;

  int64_t points() const { return kernel_size[0] * kernel_size[1] - remove_center; }
};

// The template `Of` with the types of these arguments, which the functions of dcnv3 and dcnv4 take one by one.
template <template <typename...> class Of, typename... First>
using WithNumbers =
    Of<First..., const std::vector<int64_t>&, const std::vector<int64_t>&, const std::vector<int64_t>&,
       const std::vector<int64_t>&, int64_t, int64_t, double, bool>;

// The kernels index pixels with 32 bits.
inline void check_pixels(const ArgumentChecks& checks, const char* name, int64_t pixels) {
  check(pixels <= kMost, checks.op, ": ", name, ": expected at most ", kMost, " pixels, got ", pixels);
}

struct KernelShapes {
  DeformAttnShapes sizes;
  KernelGrid grid;
};

inline KernelShapes check_kernel(const ArgumentChecks& checks, const KernelArguments& a) {
  checks.tensor("input", checks.first, {kAny, kPositive, kPositive, kAny}, Type::floating);
  const std::vector<int64_t> size = sizes_of(checks.first);
  check_pixels(checks, "input", size[1] * size[2]);
  checks.numbers("kernel_size", a.kernel_size, 2, 1);
  checks.numbers("stride", a.stride, 2, 1);
  checks.numbers("padding", a.padding, 2, 0);
  checks.numbers("dilation", a.dilation, 2, 1);
  checks.number("group", a.group, 1);
  checks.number("group_channels", a.group_channels, 1);
  check(size[3] == a.group * a.group_channels, checks.op, ": input: expected shape (batch, height, width, ",
        a.group, "·", a.group_channels, "), channels last, got ", shape_text(size));
  check(std::isfinite(a.offset_scale), checks.op, ": offset_scale: expected a finite number, got ",
        a.offset_scale);
  const bool odd = a.kernel_size[0] % 2 == 1 && a.kernel_size[1] % 2 == 1;
  check(!a.remove_center || (odd && a.points() > 0), checks.op,
        ": remove_center: expected an odd kernel_size of more than one tap, got ", shape_text(a.kernel_size));

  KernelShapes s;
  KernelGrid& grid = s.grid;
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    out[axis] = checks.output_size(axis + 1, size[axis + 1], a.kernel_size[axis], a.stride[axis],
                                   a.padding[axis], a.dilation[axis]);
    grid.size[axis] = size[axis + 1];
    grid.kernel[axis] = a.kernel_size[axis], grid.stride[axis] = a.stride[axis];
    grid.padding[axis] = a.padding[axis], grid.dilation[axis] = a.dilation[axis];
  }
  grid.out_w = out[1], grid.by_out_w = out[1];
  grid.offset_scale = a.offset_scale;
  grid.removed = a.remove_center ? a.points() / 2 : -1;
  s.sizes.batch = size[0], s.sizes.pixels = size[1] * size[2], s.sizes.queries = out[0] * out[1];
  s.sizes.groups = a.group, s.sizes.channels = a.group_channels, s.sizes.points = a.points();
  s.sizes.output_sizes = {size[0], out[0], out[1], size[3]};
  return s;
}

// The shape of an offset, a mask or both in one tensor.
inline std::vector<Size> field_sizes(const KernelShapes& s, int64_t channels) {
  const std::vector<int64_t>& output = s.sizes.output_sizes;
  return {output[0], output[1], output[2], channels};
}

inline KernelShapes check_dcnv3(const Tensor& input, const Tensor& offset, const Tensor& mask,
                                const KernelArguments& a,
                                const std::optional<Tensor>& grad_output = std::nullopt) {
  const ArgumentChecks checks{"dcnv3", input};
  KernelShapes s = check_kernel(checks, a);
  const int64_t points = a.points();
  checks.tensor("offset", offset, field_sizes(s, a.group * points * 2), Type::wide);
  checks.tensor("mask", mask, field_sizes(s, a.group * points), Type::wide);
  checks.grad_output(grad_output, s.sizes.output_sizes);
  s.sizes.offset_at = {0, a.group * points * 2, points * 2};
  s.sizes.weight_at = {0, a.group * points, points};
  return s;
}

// Each group has 2 · points offset channels, then `points` mask channels; their total is padded to a multiple of 8.
inline KernelShapes check_dcnv4(const Tensor& input, const Tensor& offset_mask, const KernelArguments& a,
                                const std::optional<Tensor>& grad_output = std::nullopt) {
  const ArgumentChecks checks{"dcnv4", input};
  KernelShapes s = check_kernel(checks, a);
  const int64_t points = a.points(), width = round_up(a.group * points * 3, 8);
  checks.tensor("offset_mask", offset_mask, field_sizes(s, width), Type::wide);
  checks.grad_output(grad_output, s.sizes.output_sizes);
  s.sizes.offset_at = {0, width, points * 3};
  s.sizes.weight_at = {points * 2, width, points * 3};
  return s;
}

inline DeformAttnShapes check_ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes,
                                             const Tensor& level_start_index, const Tensor& locations,
                                             const Tensor& weights,
                                             const std::optional<Tensor>& grad_output = std::nullopt) {
  const ArgumentChecks checks{"ms_deform_attn", value};
  checks.tensor("value", value, {kAny, kAny, kPositive, kPositive}, Type::floating);
  check_pixels(checks, "value", value.size(1));
  checks.tensor("spatial_shapes", spatial_shapes, {kAny, 2}, Type::int64);
  const int64_t levels = spatial_shapes.size(0);
  checks.tensor("level_start_index", level_start_index, {levels}, Type::int64);
  checks.tensor("sampling_locations", locations, {value.size(0), kAny, value.size(2), levels, kAny, 2},
                Type::wide);
  checks.tensor("attention_weights", weights,
                {value.size(0), locations.size(1), value.size(2), levels, locations.size(4)}, Type::wide);

  DeformAttnShapes s;
  s.batch = value.size(0), s.pixels = value.size(1), s.queries = locations.size(1);
  s.groups = value.size(2), s.channels = value.size(3), s.points = levels * locations.size(4);
  s.offset_at = {0, s.groups * s.points * 2, s.points * 2};
  s.weight_at = {0, s.groups * s.points, s.points};
  s.output_sizes = {s.batch, s.queries, s.groups * s.channels};
  checks.grad_output(grad_output, s.output_sizes);
  return s;
}

}  // namespace dcnzoo
