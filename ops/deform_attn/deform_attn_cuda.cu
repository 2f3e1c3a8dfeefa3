// dcnv3, dcnv4 and ms_deform_attn on CUDA: simple kernels that are exact for every size and type.
#include <cstdint>
#include <type_traits>

#include "../common/dispatch.cuh"
#include "../common/launch.cuh"
#include "deform_attn_ops.h"

namespace dcnzoo {
namespace {

// Channels that one thread reads with one instruction.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T lane[V];
};

template <typename T, int V>
__device__ Pack<T, V> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

// Calls function(p, point) for every point of a query.
template <typename A, typename Function>
__device__ void each_point(const KernelGrid& grid, int64_t, const Function& function) {
  SamplePoint<A> point = grid.point<A>(0);
  int64_t p = 0, tap = 0;
  for (int64_t x = 0; x < grid.kernel[1]; ++x)
    for (int64_t y = 0; y < grid.kernel[0]; ++y, ++tap) {
      if (tap == grid.removed) continue;
      point.tap[0] = A(y * grid.dilation[0]), point.tap[1] = A(x * grid.dilation[1]);
      function(p++, point);
    }
}

template <typename A, typename Function>
__device__ void each_point(const LevelGrid& grid, int64_t points, const Function& function) {
  for (int64_t p = 0; p < points;) {
    const SamplePoint<A> point = grid.point<A>(p);
    for (const int64_t end = p + grid.points_of_level; p < end; ++p) function(p, point);
  }
}

template <typename A, typename F>
__device__ Corners<A, int64_t, 2> corners_of(const SamplePoint<A>& point, const A* base, const F* offset) {
  const A at[2] = {sample_coordinate(base[0], point.tap[0], A(offset[1]), point.scale[0]),
                   sample_coordinate(base[1], point.tap[1], A(offset[0]), point.scale[1])};
  return corners_at<A, int64_t, 2>(at, point.size);
}

// The image, query and group that a thread works on. `part` is the flat index of (image, query, group).
struct Place {
  int64_t image, query, group;

  __device__ Place(const DeformAttnSizes& s, int64_t part)
      : image(part / s.groups / s.queries), query(part / s.groups % s.queries), group(part % s.groups) {}

  __device__ int64_t fields(const DeformAttnSizes& s, const FieldLayout& layout) const {
    return layout.first + (image * s.queries + query) * layout.query + group * layout.group;
  }
  __device__ int64_t map(const DeformAttnSizes& s) const {
    return (image * s.pixels * s.groups + group) * s.channels;
  }
};

template <typename T, typename A, typename F, int V, typename Grid>
__global__ void aggregate_kernel(DeformAttnSizes s, Grid grid, const T* input, const F* offset,
                                 const F* weight, T* output) {
  const int64_t packs = s.channels / V, pixel_stride = s.groups * s.channels;
  DCNZOO_FOR_EACH(index, s.batch * s.queries * s.groups * packs) {
    const Place place(s, index / packs);
    const T* map = input + place.map(s) + index % packs * V;
    const F* offsets = offset + place.fields(s, s.offset_at);
    const F* weights = weight + place.fields(s, s.weight_at);
    A base[2], sum[V] = {};
    grid.base(place.query, base);
    each_point<A>(grid, s.points, [&](int64_t p, const SamplePoint<A>& point) {
      const Corners<A, int64_t, 2> corners = corners_of(point, base, offsets + 2 * p);
      A value[V] = {};
#pragma unroll
      for (int corner = 0; corner < corners.count; ++corner) {
        if (corners.valid[corner] == A(0)) continue;
        const A share = corner_weight<A, 2>(corner, corners.fraction);
        const auto pixel = load_pack<T, V>(map + (point.start + corners.index[corner]) * pixel_stride);
#pragma unroll
        for (int v = 0; v < V; ++v) value[v] += share * A(pixel.lane[v]);
      }
      // also outside the map, where the value is zero: a factor of Inf or NaN must give NaN
      const A factor = A(weights[p]);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += value[v] * factor;
    });
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.lane[v] = T(sum[v]);
    *reinterpret_cast<Pack<T, V>*>(output + index * V) = result;
  }
}

// The adjoint of aggregate_kernel with respect to the input.
template <typename T, typename A, int V, typename Grid>
__global__ void grad_input_kernel(DeformAttnSizes s, Grid grid, const T* grad_output, const A* offset,
                                  const A* weight, A* grad_input) {
  const int64_t packs = s.channels / V, pixel_stride = s.groups * s.channels;
  DCNZOO_FOR_EACH(index, s.batch * s.queries * s.groups * packs) {
    const Place place(s, index / packs);
    A* map = grad_input + place.map(s) + index % packs * V;
    const A* offsets = offset + place.fields(s, s.offset_at);
    const A* weights = weight + place.fields(s, s.weight_at);
    const auto gradient = load_pack<T, V>(grad_output + index * V);
    A base[2];
    grid.base(place.query, base);
    each_point<A>(grid, s.points, [&](int64_t p, const SamplePoint<A>& point) {
      const Corners<A, int64_t, 2> corners = corners_of(point, base, offsets + 2 * p);
      if (!corners.inside) return;
      const A factor = weights[p];
      // Atomics: other queries and points read the same pixels.
#pragma unroll
      for (int corner = 0; corner < corners.count; ++corner) {
        if (corners.valid[corner] == A(0)) continue;
        const A share = corner_weight<A, 2>(corner, corners.fraction) * factor;
        A* pixel = map + (point.start + corners.index[corner]) * pixel_stride;
#pragma unroll
        for (int v = 0; v < V; ++v) atomicAdd(pixel + v, share * A(gradient.lane[v]));
      }
    });
  }
}

// Gradients of a point's offset and weight. One thread per point sums over the channels in a fixed order.
template <typename T, typename A, int V, typename Grid>
__global__ void grad_fields_kernel(DeformAttnSizes s, Grid grid, const T* grad_output, const T* input,
                                   const A* offset, const A* weight, A* grad_offset, A* grad_weight) {
  const int64_t pixel_stride = s.groups * s.channels;
  DCNZOO_FOR_EACH(index, s.batch * s.queries * s.groups * s.points) {
    const int64_t p = index % s.points;
    const Place place(s, index / s.points);
    const int64_t offset_place = place.fields(s, s.offset_at) + 2 * p;
    const int64_t weight_place = place.fields(s, s.weight_at) + p;
    const SamplePoint<A> point = grid.template point<A>(p);
    A base[2];
    grid.base(place.query, base);
    const Corners<A, int64_t, 2> corners = corners_of(point, base, offset + offset_place);
    A slope[2] = {}, value = A(0);
    const T* gradients = grad_output + index / s.points * s.channels;
    if (!corners.inside) {  // the sampled value is zero, and gradient · 0 is NaN for Inf
      for (int64_t channel = 0; channel < s.channels; ++channel) value += A(gradients[channel]) * A(0);
    } else {
      const T* map = input + place.map(s) + point.start * pixel_stride;
#pragma unroll
      for (int corner = 0; corner < corners.count; ++corner) {
        if (corners.valid[corner] == A(0)) continue;
        const T* pixels = map + corners.index[corner] * pixel_stride;
        A dot = A(0);
        for (int64_t channel = 0; channel < s.channels; channel += V) {
          const auto gradient = load_pack<T, V>(gradients + channel),
                     pixel = load_pack<T, V>(pixels + channel);
#pragma unroll
          for (int v = 0; v < V; ++v) dot += A(gradient.lane[v]) * A(pixel.lane[v]);
        }
#pragma unroll
        for (int axis = 0; axis < 2; ++axis)
          slope[axis] += corner_slope<A, 2>(corner, axis, corners.fraction) * dot;
        value += corner_weight<A, 2>(corner, corners.fraction) * dot;
      }
      const A factor = weight[weight_place];
      slope[0] *= factor * point.scale[0], slope[1] *= factor * point.scale[1];
    }
    grad_offset[offset_place] = slope[1], grad_offset[offset_place + 1] = slope[0];
    grad_weight[weight_place] = value;
  }
}

// Calls function(V), where V is the channels per load: 16 bytes if the channel count and the alignment allow, else one
// channel. float64 always takes one channel: it is only used for tests.
template <typename T, typename Function>
void dispatch_pack(const DeformAttnSizes& s, std::initializer_list<const Tensor*> tensors,
                   const Function& function) {
  constexpr int kPackBytes = 16, kPack = sizeof(T) == sizeof(double) ? 1 : kPackBytes / int(sizeof(T));
  bool whole = s.channels % kPack == 0;
  for (const Tensor* tensor : tensors)
    whole &= reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % kPackBytes == 0;
  if (whole)
    function(std::integral_constant<int, kPack>());
  else
    function(std::integral_constant<int, 1>());
}

template <typename T, typename F, typename Grid>
void launch_forward(const DeformAttnSizes& s, const Grid& grid, const Tensor& input, const Tensor& offset,
                    const Tensor& weight, const Tensor& output) {
  dispatch_pack<T>(s, {&input, &output}, [&](auto pack) {
    constexpr int V = decltype(pack)::value;
    launch("aggregate_kernel", aggregate_kernel<T, Accumulate<T>, F, V, Grid>, blocks_for(output.numel() / V),
           kThreads, input, s, grid, data_of<T>(input), data_of<F>(offset), data_of<F>(weight),
           mutable_data_of<T>(output));
  });
}

template <typename T, typename Grid>
void launch_grad_input(const DeformAttnSizes& s, const Grid& grid, const Tensor& grad_output,
                       const Tensor& offset, const Tensor& weight, const Tensor& grad_input) {
  using A = Accumulate<T>;
  dispatch_pack<T>(s, {&grad_output}, [&](auto pack) {
    constexpr int V = decltype(pack)::value;
    launch("grad_input_kernel", grad_input_kernel<T, A, V, Grid>, blocks_for(grad_output.numel() / V),
           kThreads, grad_output, s, grid, data_of<T>(grad_output), data_of<A>(offset), data_of<A>(weight),
           mutable_data_of<A>(grad_input));
  });
}

template <typename T, typename Grid>
void launch_grad_fields(const DeformAttnSizes& s, const Grid& grid, const Tensor& grad_output,
                        const Tensor& input, const Tensor& offset, const Tensor& weight,
                        const Gradients& gradients) {
  using A = Accumulate<T>;
  dispatch_pack<T>(s, {&grad_output, &input}, [&](auto pack) {
    constexpr int V = decltype(pack)::value;
    launch("grad_fields_kernel", grad_fields_kernel<T, A, V, Grid>,
           blocks_for(s.batch * s.queries * s.groups * s.points), kThreads, grad_output, s, grid,
           data_of<T>(grad_output), data_of<T>(input), data_of<A>(offset), data_of<A>(weight),
           mutable_data_of<A>(gradients.offset), mutable_data_of<A>(gradients.weight));
  });
}

// Calls function(T(), F()) with the types of the input and of the fields.
template <typename Function>
void dispatch_types(const Tensor& input, const Tensor& field, const Function& function) {
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (field.scalar_type() == input.scalar_type())
      function(zero, zero);
    else
      function(zero, Accumulate<T>());
  });
}

struct CudaDeformAttn {
  // Fields that all have the input's type are read without conversion, because they are larger than the input.
  static ScalarType field_type(const Tensor& input, std::initializer_list<const Tensor*> fields) {
    for (const Tensor* field : fields)
      if (field->scalar_type() != input.scalar_type()) return accumulate_type(input.scalar_type());
    return input.scalar_type();
  }

  static Tensor new_sum(const Tensor& input) {  // zeros: atomics add to them
    return torch::stable::new_zeros(input, sizes_of(input), accumulate_type(input.scalar_type()));
  }

  // Sizes and starts are on the device: a check here would have to synchronise with it.
  static LevelGrid levels(const DeformAttnShapes& s, const Tensor& sizes, const Tensor& starts) {
    const int64_t levels = starts.size(0);
    return {data_of<int64_t>(sizes), data_of<int64_t>(starts), levels ? s.points / levels : 1, s.pixels};
  }

  template <typename Grid>
  static Tensor forward(const DeformAttnShapes& s, const Grid& grid, const Tensor& input,
                        const Tensor& offset, const Tensor& weight) {
    const Tensor output = torch::stable::new_empty(input, s.output_sizes);
    if (output.numel() == 0) return output;
    const Tensor maps = torch::stable::contiguous(input);
    dispatch_types(input, offset, [&](auto map_type, auto field_type) {
      launch_forward<decltype(map_type), decltype(field_type)>(s, grid, maps, offset, weight, output);
    });
    return output;
  }

  template <typename Grid>
  static void backward(const DeformAttnShapes& s, const Grid& grid, const Tensor& grad_output,
                       const Tensor& input, const Tensor& offset, const Tensor& weight,
                       const Gradients& gradients) {
    if (grad_output.numel() == 0) return;
    const Tensor grad = torch::stable::contiguous(grad_output), maps = torch::stable::contiguous(input);
    dispatch_floating(input.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      if (gradients.input.numel()) launch_grad_input<T>(s, grid, grad, offset, weight, gradients.input);
      if (gradients.offset.numel()) launch_grad_fields<T>(s, grid, grad, maps, offset, weight, gradients);
    });
  }
};

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) { DCNZOO_REGISTER_DEFORM_ATTN(m, dcnzoo::CudaDeformAttn); }
