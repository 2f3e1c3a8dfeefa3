// dcnv3, dcnv4 and ms_deform_attn on the CPU, torch's side: checks, memory, threads. The arithmetic is in
// deform_aggregation_cpu_kernel.cpp.
#include <algorithm>
#include <limits>
#include <tuple>

#include "../common/parallel.h"
#include "deform_aggregation_cpu_kernel.h"
#include "deform_aggregation_shapes.h"

namespace dcnzoo {
namespace {

template <typename T>
const DeformAggregationKernels<T>& kernels();
template <>
const DeformAggregationKernels<float>& kernels() {
  return deform_aggregation_kernels_float_dispatched();
}
template <>
const DeformAggregationKernels<double>& kernels() {
  return deform_aggregation_kernels_double_dispatched();
}

// Points of a forward task: enough that handing it out costs nothing.
constexpr int64_t kTaskPoints = 4096;

int64_t round_up(int64_t value) { return (value + kMostLanes - 1) / kMostLanes * kMostLanes; }

// What the kernels need to know of a grid, and the memory that holds it.
template <typename T>
class Problem : public DeformAggregationCpu<T> {
 public:
  Problem(const Aggregation& sizes, const KernelGrid& grid) : Problem(sizes) {
    fill(grid);
    for (int axis = 0; axis < 2; ++axis) {
      this->origin[axis] = grid.origin<T>(axis);
      this->step[axis] = T(grid.stride[axis]);
    }
    this->out_w = grid.out_w;
  }

  Problem(const Aggregation& sizes, const LevelGrid& grid) : Problem(sizes) {
    fill(grid);
    grid.base(0, this->origin);
    this->step[0] = this->step[1] = T(0);
    this->out_w = 1;
  }

 private:
  using Index = typename SampleTable<T>::Index;

  explicit Problem(const Aggregation& sizes)
      : DeformAggregationCpu<T>{}, numbers_(6 * round_up(sizes.points)), indices_(3 * round_up(sizes.points)) {
    Aggregation& mine = *this;
    mine = sizes;
    check(sizes.pixels <= std::numeric_limits<int32_t>::max(), "deform_aggregation: input: expected at most ",
          std::numeric_limits<int32_t>::max(), " pixels on the CPU, got ", sizes.pixels);
  }

  template <typename Grid>
  void fill(const Grid& grid) {
    const int64_t padded = round_up(this->points);
    T* number = numbers_.data();
    Index* index = indices_.data();
    for (int64_t i = 0; i < padded; ++i) {
      const SamplePoint<T> point = grid.template point<T>(std::min(i, this->points - 1));
      for (int axis = 0; axis < 2; ++axis) {
        number[axis * padded + i] = point.tap[axis];
        number[(2 + axis) * padded + i] = point.scale[axis];
        number[(4 + axis) * padded + i] = T(point.size[axis]);
        index[axis * padded + i] = Index(point.size[axis]);
      }
      index[2 * padded + i] = Index(point.start);
    }
    SampleTable<T>& table = this->table;
    for (int axis = 0; axis < 2; ++axis) {
      table.tap[axis] = number + axis * padded, table.scale[axis] = number + (2 + axis) * padded;
      table.extent[axis] = number + (4 + axis) * padded, table.size[axis] = index + axis * padded;
    }
    table.start = index + 2 * padded;
  }

  std::vector<T> numbers_;
  std::vector<Index> indices_;
};

template <typename T, typename Grid>
Tensor forward(const AggregationShapes& s, const Grid& grid, const Tensor& input, const Tensor& offset,
               const Tensor& weight) {
  const Tensor output = torch::stable::new_empty(input, s.output_sizes);
  Problem<T> p(s, grid);
  p.input = input.const_data_ptr<T>();
  p.offset = offset.const_data_ptr<T>(), p.weight = weight.const_data_ptr<T>();
  p.output = output.mutable_data_ptr<T>();
  const int64_t rows = std::max<int64_t>(kTaskPoints / std::max<int64_t>(s.groups * s.points, 1), 1);
  const int64_t tasks = (s.queries + rows - 1) / rows;
  TaskQueue queue(s.batch * tasks);
  queue.run([&] {
    T* const plan = thread_scratch<T>(8 * round_up(s.points));
    for (int64_t task; queue.take(task);) {
      const int64_t begin = task % tasks * rows;
      kernels<T>().forward(p, task / tasks, begin, std::min(begin + rows, s.queries), plan);
    }
  });
  return output;
}

struct Gradients {
  Tensor input, offset, weight;
};

// The kernels write where there is a tensor of more than no elements. offset and weight may be one tensor.
template <typename T, typename Grid>
void backward(const AggregationShapes& s, const Grid& grid, const Tensor& grad_output, const Tensor& input,
              const Tensor& offset, const Tensor& weight, const Gradients& gradients) {
  const auto memory = [](const Tensor& tensor) {
    return tensor.numel() ? tensor.mutable_data_ptr<T>() : nullptr;
  };
  Problem<T> p(s, grid);
  p.input = input.const_data_ptr<T>();
  p.offset = offset.const_data_ptr<T>(), p.weight = weight.const_data_ptr<T>();
  p.grad_output = grad_output.const_data_ptr<T>();
  p.grad_input = memory(gradients.input);
  p.grad_offset = memory(gradients.offset), p.grad_weight = memory(gradients.weight);
  if (!p.grad_input && !p.grad_offset) return;
  TaskQueue queue(s.batch * s.groups);
  const int64_t half = (s.groups + 1) / 2;
  queue.run([&] {
    const Buffer<T> scratch((2 * s.pixels + 1) * round_up(s.channels));
    for (int64_t task; queue.take(task);) {
      // Tasks that follow one another are done at the same time: not those whose fields share cache lines.
      const int64_t place = task / s.batch, group = place % 2 * half + place / 2;
      kernels<T>().backward(p, task % s.batch, group, scratch.data());
    }
  });
}

template <typename Function>
auto dispatch(ScalarType type, const Function& function) {
  return type == ScalarType::Double ? function(double()) : function(float());
}

// Tensors as the kernels take them, and results as the caller wants them.
template <typename Grid>
Tensor run_forward(const AggregationShapes& s, const Grid& grid, const Tensor& input, const Tensor& offset,
                   const Tensor& weight) {
  const ScalarType type = input.scalar_type(), wide = accumulate_type(type);
  const Tensor output = dispatch(wide, [&](auto zero) {
    return forward<decltype(zero)>(s, grid, contiguous_as(input, wide), offset, weight);
  });
  return torch::stable::to(output, type);
}

template <typename Grid>
void run_backward(const AggregationShapes& s, const Grid& grid, const Tensor& grad_output, const Tensor& input,
                  const Tensor& offset, const Tensor& weight, const Gradients& gradients) {
  const ScalarType wide = accumulate_type(input.scalar_type());
  dispatch(wide, [&](auto zero) {
    backward<decltype(zero)>(s, grid, contiguous_as(grad_output, wide), contiguous_as(input, wide), offset,
                             weight, gradients);
  });
}

// Memory for the gradient of a tensor, in the type of sums; none where it is not wanted.
Tensor new_gradient(const Tensor& like, bool wanted) {
  const std::vector<int64_t> sizes = wanted ? sizes_of(like) : std::vector<int64_t>{0};
  return torch::stable::new_empty(like, sizes, accumulate_type(like.scalar_type()));
}

Tensor as_wanted(const Tensor& gradient, bool wanted, const Tensor& like) {
  return torch::stable::to(wanted ? gradient : torch::stable::new_empty(like, {0}), like.scalar_type());
}

template <typename Grid>
std::tuple<Tensor, Tensor, Tensor> backward_of_three(const AggregationShapes& s, const Grid& grid,
                                                     const Tensor& grad_output, const Tensor& input,
                                                     const Tensor& offset, const Tensor& weight,
                                                     const std::vector<bool>& wanted) {
  const ScalarType wide = accumulate_type(input.scalar_type());
  const bool fields = wanted[1] || wanted[2];
  const Gradients gradients{new_gradient(input, wanted[0]), new_gradient(offset, fields),
                            new_gradient(weight, fields)};
  run_backward(s, grid, grad_output, input, contiguous_as(offset, wide), contiguous_as(weight, wide), gradients);
  return {as_wanted(gradients.input, wanted[0], input), as_wanted(gradients.offset, wanted[1], offset),
          as_wanted(gradients.weight, wanted[2], weight)};
}

Tensor dcnv3_cpu(const Tensor& input, const Tensor& offset, const Tensor& mask,
                 const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t group,
                 int64_t group_channels, double offset_scale, bool remove_center) {
  const KernelShapes s = check_dcnv3(input, offset, mask,
                                     {kernel_size, stride, padding, dilation, group, group_channels,
                                      offset_scale, remove_center});
  const ScalarType wide = accumulate_type(input.scalar_type());
  return run_forward(s.sizes, s.grid, input, contiguous_as(offset, wide), contiguous_as(mask, wide));
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& mask,
    const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t group,
    int64_t group_channels, double offset_scale, bool remove_center, const std::vector<bool>& output_mask) {
  const KernelShapes s = check_dcnv3(input, offset, mask,
                                     {kernel_size, stride, padding, dilation, group, group_channels,
                                      offset_scale, remove_center});
  check_grad_output("dcnv3", s.sizes, grad_output, input, output_mask, 3);
  return backward_of_three(s.sizes, s.grid, grad_output, input, offset, mask, output_mask);
}

Tensor dcnv4_cpu(const Tensor& input, const Tensor& offset_mask, const std::vector<int64_t>& kernel_size,
                 const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                 const std::vector<int64_t>& dilation, int64_t group, int64_t group_channels,
                 double offset_scale, bool remove_center) {
  const KernelShapes s = check_dcnv4(input, offset_mask,
                                     {kernel_size, stride, padding, dilation, group, group_channels,
                                      offset_scale, remove_center});
  const Tensor fields = contiguous_as(offset_mask, accumulate_type(input.scalar_type()));
  return run_forward(s.sizes, s.grid, input, fields, fields);
}

std::tuple<Tensor, Tensor> dcnv4_backward_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset_mask,
    const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t group,
    int64_t group_channels, double offset_scale, bool remove_center, const std::vector<bool>& output_mask) {
  const KernelShapes s = check_dcnv4(input, offset_mask,
                                     {kernel_size, stride, padding, dilation, group, group_channels,
                                      offset_scale, remove_center});
  check_grad_output("dcnv4", s.sizes, grad_output, input, output_mask, 2);
  const Tensor fields = contiguous_as(offset_mask, accumulate_type(input.scalar_type()));
  Tensor grad_fields = new_gradient(fields, output_mask[1]);
  if (s.sizes.groups * s.sizes.points * 3 < s.sizes.offset_at.query)
    torch::stable::zero_(grad_fields);  // the padding
  const Gradients gradients{new_gradient(input, output_mask[0]), grad_fields, grad_fields};
  run_backward(s.sizes, s.grid, grad_output, input, fields, fields, gradients);
  return {as_wanted(gradients.input, output_mask[0], input), as_wanted(grad_fields, output_mask[1], offset_mask)};
}

// Level sizes and where levels begin, once they are known to lie within the value.
struct Levels {
  Tensor sizes, starts;
  LevelGrid grid;

  Levels(const AggregationShapes& s, const Tensor& spatial_shapes, const Tensor& level_start_index)
      : sizes(torch::stable::contiguous(spatial_shapes)), starts(torch::stable::contiguous(level_start_index)) {
    const int64_t levels = starts.size(0);
    grid = {sizes.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>(),
            levels ? s.points / levels : 1, s.pixels};
    for (int64_t level = 0; level < levels; ++level) {
      const int64_t height = grid.sizes[2 * level], width = grid.sizes[2 * level + 1];
      check(height >= 1 && width >= 1, "ms_deform_attn: spatial_shapes: expected at least (1, 1), got (", height,
            ", ", width, ") for level ", level);
      const int64_t start = grid.starts[level];
      check(start >= 0 && start <= s.pixels && height <= s.pixels && width <= (s.pixels - start) / height,
            "ms_deform_attn: value: expected at least ", start, " + ", height, "·", width,
            " pixels for level ", level, " (level_start_index, spatial_shapes), got ", s.pixels);
    }
  }
};

Tensor ms_deform_attn_cpu(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                          const Tensor& sampling_locations, const Tensor& attention_weights) {
  const AggregationShapes s =
      check_ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  const Levels levels(s, spatial_shapes, level_start_index);
  const ScalarType wide = accumulate_type(value.scalar_type());
  return run_forward(s, levels.grid, value, contiguous_as(sampling_locations, wide),
                     contiguous_as(attention_weights, wide));
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward_cpu(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& sampling_locations, const Tensor& attention_weights,
    const std::vector<bool>& output_mask) {
  const AggregationShapes s =
      check_ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  check_grad_output("ms_deform_attn", s, grad_output, value, output_mask, 3);
  const Levels levels(s, spatial_shapes, level_start_index);
  return backward_of_three(s, levels.grid, grad_output, value, sampling_locations, attention_weights,
                           output_mask);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("dcnv3", TORCH_BOX(&dcnzoo::dcnv3_cpu));
  m.impl("_dcnv3_backward", TORCH_BOX(&dcnzoo::dcnv3_backward_cpu));
  m.impl("dcnv4", TORCH_BOX(&dcnzoo::dcnv4_cpu));
  m.impl("_dcnv4_backward", TORCH_BOX(&dcnzoo::dcnv4_backward_cpu));
  m.impl("ms_deform_attn", TORCH_BOX(&dcnzoo::ms_deform_attn_cpu));
  m.impl("_ms_deform_attn_backward", TORCH_BOX(&dcnzoo::ms_deform_attn_backward_cpu));
}
