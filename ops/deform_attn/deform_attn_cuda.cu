// dcnv3, dcnv4 and ms_deform_attn on CUDA: one kernel for the forward and one for all gradients.
#include <cstdint>
#include <type_traits>

#include "../common/atomics.cuh"
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

// Calls function(p, point) for every point of a query. Inner: grid.inner() if known to the compiler, which then unrolls
// the inner loop; else 0.
template <typename A, int Inner, typename Function>
__device__ void each_point(const KernelGrid& grid, int64_t, const Function& function) {
  SamplePoint<A> point{{}, {A(grid.offset_scale), A(grid.offset_scale)}, {grid.size[0], grid.size[1]}, 0};
  const int64_t height = Inner > 0 ? Inner : grid.inner();
  int64_t p = 0, tap = 0;
  for (int64_t x = 0; x < grid.kernel[1]; ++x) {
    point.tap[1] = A(x * grid.dilation[1]);
#pragma unroll(Inner > 0 ? Inner : 1)
    for (int64_t y = 0; y < height; ++y, ++tap) {
      if (tap == grid.removed) continue;
      point.tap[0] = A(y * grid.dilation[0]);
      function(p++, point);
    }
  }
}

template <typename A, int Inner, typename Function>
__device__ void each_point(const LevelGrid& grid, int64_t points, const Function& function) {
  const int64_t of_level = Inner > 0 ? Inner : grid.inner();
  for (int64_t first = 0, level = 0; first < points; first += of_level, ++level) {
    const SamplePoint<A> point = grid.level<A>(level);
#pragma unroll(Inner > 0 ? Inner : 1)
    for (int64_t i = 0; i < of_level; ++i) function(first + i, point);
  }
}

template <typename A, typename F>
__device__ Corners<A, int, 2> corners_of(const SamplePoint<A>& point, const A* base, const F* offset) {
  const A at[2] = {sample_coordinate(base[0], point.tap[0], A(offset[1]), point.scale[0]),
                   sample_coordinate(base[1], point.tap[1], A(offset[0]), point.scale[1])};
  const int size[2] = {int(point.size[0]), int(point.size[1])};
  return corners_at<A, int, 2>(at, size);
}

// Sizes that kernels divide by. A part is one group of the channels of one query.
struct DividedSizes : DeformAttnSizes {
  Divisor<int64_t> by_packs, by_groups, by_queries;  // packs: of a part
  int64_t parts, packs;

  DividedSizes(const DeformAttnSizes& s, int64_t pack)
      : DeformAttnSizes(s),
        by_packs(s.channels / pack),
        by_groups(s.groups),
        by_queries(s.queries),
        parts(s.batch * s.queries * s.groups),
        packs(s.channels / pack) {}
};

// The image, query and group of a part.
struct Place {
  int64_t image, query, group, row;  // row: counts the queries of all images

  __device__ Place(const DividedSizes& s, int64_t part) {
    group = s.by_groups.split(part);
    row = part;
    query = s.by_queries.split(part);
    image = part;
  }

  __device__ int64_t fields(const FieldLayout& layout) const {
    return layout.first + row * layout.query + group * layout.group;
  }
  __device__ int64_t map(const DeformAttnSizes& s) const {
    return (image * s.pixels * s.groups + group) * s.channels;
  }
};

template <typename T, typename A, typename F, int V, int Inner, typename Grid>
__global__ void aggregate_kernel(DividedSizes s, Grid grid, const T* __restrict__ input,
                                 const F* __restrict__ offset, const F* __restrict__ weight,
                                 T* __restrict__ output) {
  const int64_t pixel_stride = s.groups * s.channels;
  DCNZOO_FOR_EACH(index, s.parts * s.packs) {
    int64_t part = index;
    const int64_t pack = s.by_packs.split(part);
    const Place place(s, part);
    const T* map = input + place.map(s) + pack * V;
    const F* offsets = offset + place.fields(s.offset_at);
    const F* weights = weight + place.fields(s.weight_at);
    A base[2], sum[V] = {};
    grid.base(place.query, base);
    each_point<A, Inner>(grid, s.points, [&](int64_t p, const SamplePoint<A>& point) {
      const Corners<A, int, 2> corners = corners_of(point, base, offsets + 2 * p);
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

// Sums over groups of 2^levels neighbouring threads in a fixed order. All threads must call it.
template <typename A>
__device__ A sum_over_neighbours(A value, int levels) {
  constexpr unsigned kWholeWarp = 0xffffffff;
#pragma unroll 1
  for (int level = 0; level < levels; ++level) value += __shfl_xor_sync(kWholeWarp, value, 1 << level);
  return value;
}

// All gradients in one pass. 2^levels neighbouring threads of a warp, the lanes, share the channels of a part. Either
// the gradients of offset and weight, which may be one tensor, or the gradient of the input may be null.
template <typename T, typename A, typename F, int V, int Inner, typename Grid>
__global__ void backward_kernel(DividedSizes s, Grid grid, int levels, const T* __restrict__ grad_output,
                                const T* __restrict__ input, const F* __restrict__ offset,
                                const F* __restrict__ weight, A* __restrict__ grad_input, F* grad_offset,
                                F* grad_weight) {
  const int64_t pixel_stride = s.groups * s.channels, width = kThreads >> levels;
  const int lanes = 1 << levels, lane = int(threadIdx.x) & (lanes - 1), member = int(threadIdx.x) >> levels;
  // The threads of a block stay together, because they exchange sums.
  for (int64_t first = blockIdx.x * width; first < s.parts; first += gridDim.x * width) {
    const bool counts = first + member < s.parts;
    const int64_t part = counts ? first + member : 0;
    const Place place(s, part);
    const int64_t map = place.map(s), end = counts ? s.channels : 0;
    const int64_t offset_place = place.fields(s.offset_at), weight_place = place.fields(s.weight_at);
    const T* gradients = grad_output + part * s.channels;
    A base[2];
    grid.base(place.query, base);
    each_point<A, Inner>(grid, s.points, [&](int64_t p, const SamplePoint<A>& point) {
      const Corners<A, int, 2> corners = corners_of(point, base, offset + offset_place + 2 * p);
      const A factor = A(weight[weight_place + p]);
      A dot[corners.count] = {}, outside = A(0);
      for (int64_t channel = lane * V; channel < end; channel += lanes * V) {
        const auto gradient = load_pack<T, V>(gradients + channel);
        if (!corners.inside) {  // the sampled value is zero, and gradient · 0 is NaN for Inf
#pragma unroll
          for (int v = 0; v < V; ++v) outside += A(gradient.lane[v]) * A(0);
          continue;
        }
#pragma unroll
        for (int corner = 0; corner < corners.count; ++corner) {
          if (corners.valid[corner] == A(0)) continue;
          const int64_t pixel = map + (point.start + corners.index[corner]) * pixel_stride + channel;
          if (grad_offset) {
            const auto value = load_pack<T, V>(input + pixel);
#pragma unroll
            for (int v = 0; v < V; ++v) dot[corner] += A(gradient.lane[v]) * A(value.lane[v]);
          }
          if (grad_input) {
            const A share = corner_weight<A, 2>(corner, corners.fraction) * factor;
            A shares[V];
#pragma unroll
            for (int v = 0; v < V; ++v) shares[v] = share * A(gradient.lane[v]);
            atomic_add(grad_input + pixel, shares);  // other queries and points read the same pixels
          }
        }
      }
      if (!grad_offset) return;
      A slope[2] = {}, value = outside;
#pragma unroll
      for (int corner = 0; corner < corners.count; ++corner) {
#pragma unroll
        for (int axis = 0; axis < 2; ++axis)
          slope[axis] += corner_slope<A, 2>(corner, axis, corners.fraction) * dot[corner];
        value += corner_weight<A, 2>(corner, corners.fraction) * dot[corner];
      }
      const A along_y = sum_over_neighbours(slope[0], levels),
              along_x = sum_over_neighbours(slope[1], levels);
      const A total = sum_over_neighbours(value, levels);
      if (!counts || lane != 0) return;
      // outside the map, the offset has no effect, whatever the factor
      grad_offset[offset_place + 2 * p] = F(corners.inside ? along_x * (factor * point.scale[1]) : A(0));
      grad_offset[offset_place + 2 * p + 1] = F(corners.inside ? along_y * (factor * point.scale[0]) : A(0));
      grad_weight[weight_place + p] = F(total);
    });
  }
}

// Calls function(V, Inner). V is the channels per load: 16 bytes if the channel count and the alignment allow, else one
// channel. float64 always takes one channel: it is only used for tests. Inner, as in each_point, is known for the usual
// grids.
template <typename T, typename Grid, typename Function>
void dispatch_pack(const DeformAttnSizes& s, const Grid& grid, bool packs,
                   std::initializer_list<const Tensor*> tensors, const Function& function) {
  constexpr int kPackBytes = 16, kPack = sizeof(T) == sizeof(double) ? 1 : kPackBytes / int(sizeof(T));
  bool whole = packs && s.channels % kPack == 0;
  for (const Tensor* tensor : tensors)
    whole &= reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % kPackBytes == 0;
  const std::integral_constant<int, 0> unknown{};
  if constexpr (kPack > 1) {
    const std::integral_constant<int, kPack> pack{};
    if (whole && grid.inner() == Grid::kUsualInner)
      return function(pack, std::integral_constant<int, Grid::kUsualInner>());
    if (whole) return function(pack, unknown);
  }
  function(std::integral_constant<int, 1>(), unknown);
}

template <typename T, typename F, typename Grid>
void launch_forward(const DeformAttnSizes& s, const Grid& grid, const Tensor& input, const Tensor& offset,
                    const Tensor& weight, const Tensor& output) {
  dispatch_pack<T>(s, grid, true, {&input, &output}, [&](auto pack, auto inner) {
    constexpr int V = decltype(pack)::value, Inner = decltype(inner)::value;
    launch("aggregate_kernel", aggregate_kernel<T, Accumulate<T>, F, V, Inner, Grid>,
           blocks_for(output.numel() / V), kThreads, input, DividedSizes(s, V), grid, data_of<T>(input),
           data_of<F>(offset), data_of<F>(weight), mutable_data_of<T>(output));
  });
}

template <typename T, typename F, typename Grid>
void launch_backward(const DeformAttnSizes& s, const Grid& grid, const Tensor& grad_output,
                     const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const Gradients& gradients) {
  using A = Accumulate<T>;
  const bool of_input = gradients.input.numel() > 0, of_fields = gradients.offset.numel() > 0;
  const bool packs = !of_input || adds_vectors(input);
  // Packs of four sums, also for half types: most of the time goes into the atomic additions.
  dispatch_pack<A>(s, grid, packs, {&grad_output, &input}, [&](auto pack, auto inner) {
    constexpr int V = decltype(pack)::value, Inner = decltype(inner)::value;
    constexpr int kWarp = 32;
    const DividedSizes sizes(s, V);
    int levels = 0;
    while ((1 << levels) < std::min<int64_t>(sizes.packs, kWarp)) ++levels;
    launch("backward_kernel", backward_kernel<T, A, F, V, Inner, Grid>, blocks_for(sizes.parts << levels),
           kThreads, grad_output, sizes, grid, levels, data_of<T>(grad_output), data_of<T>(input),
           data_of<F>(offset), data_of<F>(weight), of_input ? mutable_data_of<A>(gradients.input) : nullptr,
           of_fields ? mutable_data_of<F>(gradients.offset) : nullptr,
           of_fields ? mutable_data_of<F>(gradients.weight) : nullptr);
  });
}

struct CudaDeformAttn {
  static ScalarType field_type(const Tensor& input, std::initializer_list<const Tensor*> fields) {
    return dcnzoo::field_type(input, fields);
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
    dispatch_types(input.scalar_type(), offset.scalar_type(), [&](auto map, auto field) {
      launch_forward<decltype(map), decltype(field)>(s, grid, maps, offset, weight, output);
    });
    return output;
  }

  template <typename Grid>
  static void backward(const DeformAttnShapes& s, const Grid& grid, const Tensor& grad_output,
                       const Tensor& input, const Tensor& offset, const Tensor& weight,
                       const Gradients& gradients) {
    if (grad_output.numel() == 0) return;
    const Tensor grad = torch::stable::contiguous(grad_output), maps = torch::stable::contiguous(input);
    dispatch_types(input.scalar_type(), offset.scalar_type(), [&](auto map, auto field) {
      launch_backward<decltype(map), decltype(field)>(s, grid, grad, maps, offset, weight, gradients);
    });
  }
};

}  // namespace
}  // namespace dcnzoo

DCNZOO_REGISTER_DEFORM_ATTN(CUDA, dcnzoo::DeformAttnOps<dcnzoo::CudaDeformAttn>)
