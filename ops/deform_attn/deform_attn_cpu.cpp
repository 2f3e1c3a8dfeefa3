// dcnv3, dcnv4 and ms_deform_attn on the CPU, the part that uses torch: checks, memory, threads. The arithmetic is in
// deform_attn_cpu_kernel.cpp.
#include "../common/parallel.h"
#include "deform_attn_cpu_kernel.h"
#include "deform_attn_ops.h"

namespace dcnzoo {
namespace {

template <typename T, typename S = T>
const DeformAttnKernels<T, S>& kernels() {
  return deform_attn_kernels_dispatched().of<T, S>();
}

// Sampling points per forward task: enough to make the cost of scheduling negligible.
constexpr int64_t kTaskPoints = 4096;

int64_t whole_vectors(int64_t count) { return round_up(count, kMostLanes); }

// The kernels' arguments for a grid, and the memory of its tables.
template <typename T, typename S = T>
class Problem : public DeformAttnCpu<T, S> {
 public:
  Problem(const DeformAttnSizes& sizes, const KernelGrid& grid) : Problem(sizes) {
    fill(grid);
    for (int axis = 0; axis < 2; ++axis) {
      this->origin[axis] = grid.origin<T>(axis);
      this->step[axis] = T(grid.stride[axis]);
    }
    this->out_w = grid.out_w;
  }

  Problem(const DeformAttnSizes& sizes, const LevelGrid& grid) : Problem(sizes) {
    fill(grid);
    grid.base(0, this->origin);
    this->step[0] = this->step[1] = T(0);
    this->out_w = 1;
  }

 private:
  using Index = typename SampleTable<T>::Index;

  explicit Problem(const DeformAttnSizes& sizes)
      : DeformAttnCpu<T, S>{},
        numbers_(6 * whole_vectors(sizes.points)),
        indices_(3 * whole_vectors(sizes.points)) {
    DeformAttnSizes& mine = *this;
    mine = sizes;
  }

  template <typename Grid>
  void fill(const Grid& grid) {
    const int64_t padded = whole_vectors(this->points);
    T* number = numbers_.data();
    Index* index = indices_.data();
    for (int64_t i = 0; i < padded; ++i) {
      const SamplePoint<T> point = grid.template point<T>(i % this->points);
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

// The memory of a gradient, or null if it is not needed: then its tensor is empty.
void* gradient_of(const Tensor& tensor) { return tensor.numel() ? tensor.mutable_data_ptr() : nullptr; }

// data: of the tensor, whose type is T or bfloat16
template <typename T, typename S>
Stored<T, S> stored(const Tensor& tensor, std::conditional_t<std::is_const_v<T>, const void*, void*> data) {
  if (tensor.scalar_type() == ScalarType::BFloat16) return {nullptr, static_cast<S*>(data)};
  return {static_cast<T*>(data), nullptr};
}

template <typename T, typename S, typename Grid>
void forward(const DeformAttnShapes& s, const Grid& grid, const Tensor& input, const Tensor& offset,
             const Tensor& weight, const Tensor& output) {
  Problem<T, S> p(s, grid);
  p.input = data_of<S>(input);
  p.offset = stored<const T, const S>(offset, offset.const_data_ptr());
  p.weight = stored<const T, const S>(weight, weight.const_data_ptr());
  p.output = mutable_data_of<S>(output);
  const int64_t rows = std::max<int64_t>(kTaskPoints / std::max<int64_t>(s.groups * s.points, 1), 1);
  const int64_t tasks = ceil_div(s.queries, rows);
  TaskQueue queue(s.batch * tasks);
  queue.share_out([&](int64_t sequence) {
    T* const plan = thread_scratch<T>(8 * whole_vectors(s.points));
    for (int64_t task; queue.take(task, sequence);) {
      const int64_t begin = task % tasks * rows;
      kernels<T, S>().forward(p, task / tasks, begin, std::min(begin + rows, s.queries), plan);
    }
  });
}

template <typename T, typename S, typename Grid>
void backward(const DeformAttnShapes& s, const Grid& grid, const Tensor& grad_output, const Tensor& input,
              const Tensor& offset, const Tensor& weight, const Gradients& gradients) {
  if (gradients.input.numel() == 0 && gradients.offset.numel() == 0) return;
  Problem<T, S> p(s, grid);
  p.input = data_of<S>(input);
  p.offset = stored<const T, const S>(offset, offset.const_data_ptr());
  p.weight = stored<const T, const S>(weight, weight.const_data_ptr());
  p.grad_output = data_of<S>(grad_output);
  p.grad_input = static_cast<S*>(gradient_of(gradients.input));
  p.grad_offset = stored<T, S>(gradients.offset, gradient_of(gradients.offset));
  p.grad_weight = stored<T, S>(gradients.weight, gradient_of(gradients.weight));
  const int64_t copied = 2 * s.pixels * whole_vectors(s.channels);
  // With fewer samples than pixels, copying would take longer than sampling. bfloat16 has to be converted anyway.
  p.in_place = std::is_same_v<S, T> && s.channels % kMostLanes == 0 && s.queries * s.points <= s.pixels;
  Tensor grad_input = gradients.input;
  if (p.in_place && p.grad_input) torch::stable::zero_(grad_input);
  TaskQueue queue(s.batch * s.groups);
  const int64_t half = ceil_div(s.groups, 2);
  queue.share_out([&](int64_t sequence) {
    const Buffer<T> scratch((p.in_place ? 0 : copied) + whole_vectors(s.channels));
    for (int64_t task; queue.take(task, sequence);) {
      // Consecutive tasks run at the same time. They are not neighbouring groups, whose fields share cache lines.
      const int64_t place = task / s.batch, group = place % 2 * half + place / 2;
      kernels<T, S>().backward(p, task % s.batch, group, scratch.data());
    }
  });
}

// The kernels read and write bfloat16 and sum in float32. float16 is converted to float32, whole tensors at a time.
struct CpuDeformAttn {
  static ScalarType stored_type(ScalarType type) {
    return type == ScalarType::BFloat16 ? type : accumulate_type(type);
  }

  static ScalarType field_type(const Tensor& input, std::initializer_list<const Tensor*> fields) {
    bool reads = true;
    for (const Tensor* field : fields) reads &= field->scalar_type() == ScalarType::BFloat16;
    return reads ? ScalarType::BFloat16 : accumulate_type(input.scalar_type());
  }

  static Tensor new_sum(const Tensor& input) {
    return torch::stable::new_empty(input, sizes_of(input), stored_type(input.scalar_type()));
  }

  static LevelGrid levels(const DeformAttnShapes& s, const Tensor& sizes, const Tensor& starts) {
    const int64_t levels = starts.size(0);
    const LevelGrid grid{sizes.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>(),
                         levels ? s.points / levels : 1, s.pixels};
    for (int64_t level = 0; level < levels; ++level) {
      const int64_t height = grid.sizes[2 * level], width = grid.sizes[2 * level + 1];
      const int64_t start = grid.starts[level];
      check(height >= 1 && width >= 1, "ms_deform_attn: spatial_shapes: expected at least (1, 1), got (",
            height, ", ", width, ") for level ", level);
      check(grid.fits(level), "ms_deform_attn: value: expected at least ", start, " + ", height, "·", width,
            " pixels for level ", level, " (level_start_index, spatial_shapes), got ", s.pixels);
    }
    return grid;
  }

  template <typename Grid>
  static Tensor forward(const DeformAttnShapes& s, const Grid& grid, const Tensor& input,
                        const Tensor& offset, const Tensor& weight) {
    const ScalarType type = input.scalar_type();
    const Tensor maps = contiguous_as(input, stored_type(type));
    const Tensor output = torch::stable::new_empty(maps, s.output_sizes);
    const auto attend = type == ScalarType::BFloat16 ? dcnzoo::forward<float, BFloat16Bits, Grid>
                        : type == ScalarType::Double ? dcnzoo::forward<double, double, Grid>
                                                     : dcnzoo::forward<float, float, Grid>;
    attend(s, grid, maps, offset, weight, output);
    return as_type(output, type);
  }

  template <typename Grid>
  static void backward(const DeformAttnShapes& s, const Grid& grid, const Tensor& grad_output,
                       const Tensor& input, const Tensor& offset, const Tensor& weight,
                       const Gradients& gradients) {
    const ScalarType type = stored_type(input.scalar_type());
    const Tensor grad = contiguous_as(grad_output, type), maps = contiguous_as(input, type);
    const auto differentiate = type == ScalarType::BFloat16 ? dcnzoo::backward<float, BFloat16Bits, Grid>
                               : type == ScalarType::Double ? dcnzoo::backward<double, double, Grid>
                                                            : dcnzoo::backward<float, float, Grid>;
    differentiate(s, grid, grad, maps, offset, weight, gradients);
  }
};

}  // namespace
}  // namespace dcnzoo

DCNZOO_REGISTER_DEFORM_ATTN(CPU, dcnzoo::DeformAttnOps<dcnzoo::CpuDeformAttn>)
