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

  std::string points_text() const {  // "3·3 taps", "(3·3 - 1) taps"
    const std::string taps = times_text(kernel_size);
    return (remove_center ? "(" + taps + " - 1)" : taps) + " taps";
  }
};

// A template of a struct for these arguments, which the functions of dcnv3 and dcnv4 take one by one.
template <template <typename...> class Of, typename... First>
using WithNumbers =
    Of<First..., const std::vector<int64_t>&, const std::vector<int64_t>&, const std::vector<int64_t>&,
       const std::vector<int64_t>&, int64_t, int64_t, double, bool>;

// The kernels index pixels with 32 bits.
inline void check_pixels(const std::string& op, const char* name, int64_t pixels) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  check(pixels <= most, op, name, ": expected at most ", most, " pixels, got ", pixels);
}

struct KernelShapes {
  DeformAttnShapes sizes;
  KernelGrid grid;
};

inline KernelShapes check_kernel(const ArgumentChecks& checks, const KernelArguments& a) {
  const Tensor& input = checks.input;
  const std::vector<int64_t> size = sizes_of(input);
  check(input.dim() == 4, checks.op,
        "input: expected 4 dimensions (batch, height, width, channels), got shape ", shape_text(size));
  check_floating(input, checks.op, "input");
  check(size[1] > 0 && size[2] > 0, checks.op,
        "input: expected at least 1 pixel in height and width, got shape ", shape_text(size));
  check_pixels(checks.op, "input", size[1] * size[2]);
  checks.per_axis("kernel_size", a.kernel_size, 1);
  checks.per_axis("stride", a.stride, 1);
  checks.per_axis("padding", a.padding, 0);
  checks.per_axis("dilation", a.dilation, 1);
  checks.at_least(1, "group", a.group, a.group);
  checks.at_least(1, "group_channels", a.group_channels, a.group_channels);
  check(size[3] == a.group * a.group_channels, checks.op, "input: expected ", a.group * a.group_channels,
        " channels on the last axis (", groups_text(a.group), " · ", a.group_channels, "), got ", size[3],
        " in shape ", shape_text(size), " (batch, height, width, channels)");
  check(std::isfinite(a.offset_scale), checks.op, "offset_scale: expected a finite number, got ",
        a.offset_scale);
  const bool odd = a.kernel_size[0] % 2 == 1 && a.kernel_size[1] % 2 == 1;
  check(!a.remove_center || (odd && a.points() > 0), checks.op,
        "remove_center: expected an odd kernel_size of more than one tap, got ", shape_text(a.kernel_size));

  KernelShapes s;
  KernelGrid& grid = s.grid;
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t reach = a.dilation[axis] * (a.kernel_size[axis] - 1) + 1;
    const int64_t room = size[axis + 1] + 2 * a.padding[axis] - reach;
    check(room >= 0, checks.op, "input: expected size at least ", reach - 2 * a.padding[axis], " on axis ",
          axis + 1, " (kernel ", a.kernel_size[axis], ", dilation ", a.dilation[axis], ", padding ",
          a.padding[axis], "), got ", size[axis + 1]);
    out[axis] = room / a.stride[axis] + 1;
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

// Checks an offset, a mask or both in one tensor against the output's size and the expected channels.
inline void check_kernel_field(const ArgumentChecks& checks, const char* name, const Tensor& field,
                               const KernelShapes& s, int64_t channels, const std::string& meaning) {
  checks.partner(name, field, true);
  const std::vector<int64_t> sizes = sizes_of(field), &output = s.sizes.output_sizes;
  check(field.dim() == 4, checks.op, name,
        ": expected 4 dimensions (batch, height, width, channels), got shape ", shape_text(sizes));
  check(sizes[0] == output[0], checks.op, name, ": expected batch ", output[0], " like input, got ",
        sizes[0]);
  check(sizes[1] == output[1] && sizes[2] == output[2], checks.op, name, ": expected height and width (",
        output[1], ", ", output[2], ") like the output, got (", sizes[1], ", ", sizes[2], ")");
  check(sizes[3] == channels, checks.op, name, ": expected ", channels, " channels on the last axis (",
        meaning, "), got ", sizes[3]);
}

inline KernelShapes check_dcnv3(const Tensor& input, const Tensor& offset, const Tensor& mask,
                                const KernelArguments& a,
                                const std::optional<Tensor>& grad_output = std::nullopt) {
  const ArgumentChecks checks{"dcnv3: ", input, 2};
  KernelShapes s = check_kernel(checks, a);
  const int64_t points = a.points();
  const std::string meaning = a.points_text() + " · " + groups_text(a.group);
  check_kernel_field(checks, "offset", offset, s, a.group * points * 2, "2 · " + meaning);
  check_kernel_field(checks, "mask", mask, s, a.group * points, meaning);
  checks.grad_output(grad_output, s.sizes.output_sizes);
  s.sizes.offset_at = {0, a.group * points * 2, points * 2};
  s.sizes.weight_at = {0, a.group * points, points};
  return s;
}

// Each group has 2 · points offset channels, then `points` mask channels; their total is padded to a multiple of 8.
inline KernelShapes check_dcnv4(const Tensor& input, const Tensor& offset_mask, const KernelArguments& a,
                                const std::optional<Tensor>& grad_output = std::nullopt) {
  const ArgumentChecks checks{"dcnv4: ", input, 2};
  KernelShapes s = check_kernel(checks, a);
  const int64_t points = a.points(), used = a.group * points * 3, width = round_up(used, 8);
  check_kernel_field(checks, "offset_mask", offset_mask, s, width,
                     "3 · " + a.points_text() + " · " + groups_text(a.group) + " = " + std::to_string(used) +
                         ", padded to a multiple of 8");
  checks.grad_output(grad_output, s.sizes.output_sizes);
  s.sizes.offset_at = {0, width, points * 3};
  s.sizes.weight_at = {points * 2, width, points * 3};
  return s;
}

inline DeformAttnShapes check_ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes,
                                             const Tensor& level_start_index, const Tensor& locations,
                                             const Tensor& weights,
                                             const std::optional<Tensor>& grad_output = std::nullopt) {
  const ArgumentChecks checks{"ms_deform_attn: ", value, 2, " like value"};
  const std::string& op = checks.op;
  check(value.dim() == 4, op, "value: expected 4 dimensions (batch, pixels, heads, channels), got shape ",
        shape_text(sizes_of(value)));
  check_floating(value, op, "value");
  check(value.size(2) > 0 && value.size(3) > 0, op,
        "value: expected at least 1 head and 1 channel, got shape ", shape_text(sizes_of(value)));
  check_pixels(op, "value", value.size(1));
  check(spatial_shapes.dim() == 2 && spatial_shapes.size(1) == 2, op,
        "spatial_shapes: expected shape (levels, 2), each (height, width), got ",
        shape_text(sizes_of(spatial_shapes)));
  const int64_t levels = spatial_shapes.size(0);
  check(level_start_index.dim() == 1 && level_start_index.size(0) == levels, op,
        "level_start_index: expected shape (", levels, ",) for ", levels, " levels, got ",
        shape_text(sizes_of(level_start_index)));
  const std::pair<const char*, const Tensor*> integers[] = {{"spatial_shapes", &spatial_shapes},
                                                            {"level_start_index", &level_start_index}};
  for (const auto& [name, tensor] : integers) {
    check(tensor->scalar_type() == ScalarType::Long, op, name, ": expected int64, got ",
          dtype_name(tensor->scalar_type()));
    check_device(*tensor, value, " like value", op, name);
  }
  checks.partner("sampling_locations", locations, true);
  checks.partner("attention_weights", weights, true);
  check(locations.dim() == 6 && locations.size(0) == value.size(0) && locations.size(2) == value.size(2) &&
            locations.size(3) == levels && locations.size(5) == 2,
        op, "sampling_locations: expected shape (", value.size(0), ", queries, ", value.size(2), ", ", levels,
        ", points, 2) for ", value.size(2), " heads and ", levels, " levels, got ",
        shape_text(sizes_of(locations)));
  std::vector<int64_t> per_point = sizes_of(locations);
  per_point.pop_back();
  check(sizes_of(weights) == per_point, op, "attention_weights: expected shape ", shape_text(per_point),
        " like sampling_locations, got ", shape_text(sizes_of(weights)));

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
