// deform_conv on CUDA: im2col at the sampling points, then a matrix product by torch.
//
// A chunk of im2col_step images is lowered at a time to columns [channels · taps][images · pixels].
// Half types are not converted in memory; their coordinates, interpolation weights and sums are float.
#include <numeric>
#include <tuple>

#include "../common/corners.h"
#include "../common/dispatch.cuh"
#include "../common/lane_sums.cuh"
#include "../common/memory_format.h"
#include "deform_conv_checks.h"

namespace dcnzoo {
namespace {

// The position of a column: output pixel, image of the chunk, kernel tap and piece of the channels.
struct Place {
  int64_t pixel, image, tap, piece;
};

// Divides channels that share sampling points into pieces: a thread computes the points once per piece.
struct ChannelPieces {
  static constexpr int64_t kMost = 16;
  int64_t block;      // channels of one offset group and one mask group
  int64_t per_block;  // pieces
  int64_t count;      // pieces of all channels

  __device__ int64_t begin(int64_t piece) const {
    return piece / per_block * block + piece % per_block * kMost;
  }
  __device__ int64_t end(int64_t piece) const {
    const int64_t block_end = (piece / per_block + 1) * block;
    return min(begin(piece) + kMost, block_end);
  }
};

// The sampling points of a chunk of images.
template <typename A, int Rank>
struct Sampling {
  ConvGeometry<Rank> geometry;
  int64_t images, channels, taps, in_pixels, out_pixels;
  int64_t offset_groups, mask_groups;
  const A* offset;  // [images][offset_groups · taps · Rank][out_pixels], or null
  const A* mask;    // [images][mask_groups · taps][out_pixels], or null
  ChannelPieces pieces;

  DCNZOO_HD int64_t threads() const { return pieces.count * taps * images * out_pixels; }

  __device__ Place place(int64_t index) const {
    const int64_t pixel = index % out_pixels, above = index / out_pixels;
    return {pixel, above % images, above / images % taps, above / images / taps};
  }

  // Channel by channel, then tap by tap; the images and pixels of a tap are contiguous.
  __device__ int64_t column(int64_t channel, const Place& at) const {
    return ((channel * taps + at.tap) * images + at.image) * out_pixels + at.pixel;
  }

  __device__ int64_t offset_group(int64_t channel) const {
    return offset ? channel / (channels / offset_groups) : 0;
  }
  __device__ int64_t mask_group(int64_t channel) const {
    return mask ? channel / (channels / mask_groups) : 0;
  }

  __device__ Corners<A, int64_t, Rank> corners(const Place& at, int64_t group) const {
    A point[Rank], extent[Rank];
    int64_t tap = at.tap, pixel = at.pixel;
#pragma unroll
    for (int axis = Rank - 1; axis >= 0; --axis) {
      point[axis] = A(pixel % geometry.out[axis] * geometry.stride[axis] - geometry.padding[axis] +
                      tap % geometry.kernel[axis] * geometry.dilation[axis]);
      extent[axis] = A(geometry.in[axis]);
      tap /= geometry.kernel[axis];
      pixel /= geometry.out[axis];
    }
    if (offset) {
      const int64_t first = ((at.image * offset_groups + group) * taps + at.tap) * Rank;
#pragma unroll
      for (int axis = 0; axis < Rank; ++axis) point[axis] += offset[(first + axis) * out_pixels + at.pixel];
    }
    return corners_at<A, int64_t, Rank>(point, extent, geometry.in);
  }

  __device__ A factor(const Place& at, int64_t group) const {
    if (!mask) return A(1);
    return mask[((at.image * mask_groups + group) * taps + at.tap) * out_pixels + at.pixel];
  }

  __device__ int64_t map(int64_t image, int64_t channel) const {
    return (image * channels + channel) * in_pixels;
  }
};

template <typename A, int Rank>
__device__ bool reads_nothing(const Corners<A, int64_t, Rank>& corners) {
  bool any = false;
#pragma unroll
  for (int corner = 0; corner < corners.count; ++corner) any |= corners.valid[corner] != A(0);
  return !any;
}

template <typename T, typename A, int Rank>
__global__ void im2col_kernel(Sampling<A, Rank> s, const T* input, T* columns) {
  constexpr int corner_count = 1 << Rank;
  DCNZOO_FOR_EACH(index, s.threads()) {
    const Place at = s.place(index);
    const int64_t begin = s.pieces.begin(at.piece), end = s.pieces.end(at.piece);
    const Corners<A, int64_t, Rank> corners = s.corners(at, s.offset_group(begin));
    const A factor = s.factor(at, s.mask_group(begin));
    A weight[corner_count];
#pragma unroll
    for (int corner = 0; corner < corner_count; ++corner)
      weight[corner] = corner_weight<A, Rank>(corner, corners.fraction);
    for (int64_t channel = begin; channel < end; ++channel) {
      const T* map = input + s.map(at.image, channel);
      A sum = A(0);
#pragma unroll
      for (int corner = 0; corner < corner_count; ++corner)
        if (corners.valid[corner] != A(0)) sum += weight[corner] * A(map[corners.index[corner]]);
      columns[s.column(channel, at)] = T(sum * factor);
    }
  }
}

// The adjoint of im2col_kernel with respect to the input.
template <typename T, typename A, int Rank>
__global__ void col2im_kernel(Sampling<A, Rank> s, const T* grad_columns, A* grad_input) {
  constexpr int corner_count = 1 << Rank;
  DCNZOO_FOR_EACH(index, s.threads()) {
    const Place at = s.place(index);
    const int64_t begin = s.pieces.begin(at.piece), end = s.pieces.end(at.piece);
    const Corners<A, int64_t, Rank> corners = s.corners(at, s.offset_group(begin));
    if (reads_nothing(corners)) continue;
    const A factor = s.factor(at, s.mask_group(begin));
    A weight[corner_count];
#pragma unroll
    for (int corner = 0; corner < corner_count; ++corner)
      weight[corner] = corner_weight<A, Rank>(corner, corners.fraction) * factor;
    for (int64_t channel = begin; channel < end; ++channel) {
      const A gradient = A(grad_columns[s.column(channel, at)]);
      A* map = grad_input + s.map(at.image, channel);
      // Atomics: neighbouring taps and pixels read the same input.
#pragma unroll
      for (int corner = 0; corner < corner_count; ++corner)
        if (corners.valid[corner] != A(0)) atomicAdd(map + corners.index[corner], weight[corner] * gradient);
    }
  }
}

// Gradients of offset and mask: one value per tap, pixel and group of channels (`owners` groups). A column of threads
// sums over the channels of a group in a fixed order.
template <typename T, typename A, int Rank>
__global__ void grad_offset_mask_kernel(Sampling<A, Rank> s, int64_t owners, const T* input,
                                        const T* grad_columns, A* grad_offset, A* grad_mask) {
  constexpr int corner_count = 1 << Rank;
  const int64_t count = owners * s.taps * s.images * s.out_pixels;
  const int64_t owned = s.channels / owners;
  const int lane = threadIdx.y, column = threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kSumColumns;
  for (int64_t first = int64_t(blockIdx.x) * kSumColumns; first < count; first += step) {
    const int64_t index = first + column;
    const Place at = s.place(index < count ? index : 0);
    const int64_t owner = at.piece;
    A sum[Rank + 1] = {};  // the offset's, one per axis, then the mask's
    for (int64_t begin = owner * owned; index < count && begin < (owner + 1) * owned;
         begin += s.pieces.block) {
      const Corners<A, int64_t, Rank> corners = s.corners(at, s.offset_group(begin));
      const A factor = s.factor(at, s.mask_group(begin));
      for (int64_t channel = begin + lane; channel < begin + s.pieces.block; channel += kSumLanes) {
        const T* map = input + s.map(at.image, channel);
        A value[Rank + 1] = {};
#pragma unroll
        for (int corner = 0; corner < corner_count; ++corner) {
          if (corners.valid[corner] == A(0)) continue;
          const A pixel = A(map[corners.index[corner]]);
#pragma unroll
          for (int axis = 0; axis < Rank; ++axis)
            value[axis] += corner_slope<A, Rank>(corner, axis, corners.fraction) * pixel;
          value[Rank] += corner_weight<A, Rank>(corner, corners.fraction) * pixel;
        }
        const A gradient = A(grad_columns[s.column(channel, at)]);
        if (corners.inside) {  // outside the map, the offset has no effect
#pragma unroll
          for (int axis = 0; axis < Rank; ++axis) sum[axis] += gradient * factor * value[axis];
        }
        sum[Rank] += gradient * value[Rank];
      }
    }
    sum_over_lanes(sum, index < count, [&](int i, A total) {
      const int64_t field = (at.image * owners + owner) * s.taps + at.tap;
      if (i < Rank && grad_offset) grad_offset[(field * Rank + i) * s.out_pixels + at.pixel] = total;
      if (i == Rank && grad_mask) grad_mask[field * s.out_pixels + at.pixel] = total;
    });
  }
}

// product: [channels][images][pixels] -> output: [images][channels][pixels], or channels last
template <typename T, typename A>
__global__ void store_output_kernel(const T* product, const T* bias, int64_t images, int64_t channels,
                                    int64_t pixels, bool channels_last, T* output) {
  DCNZOO_FOR_EACH(index, images * channels * pixels) {
    const int64_t image = index / (channels * pixels), inside = index % (channels * pixels);
    const int64_t channel = channels_last ? inside % channels : inside / pixels;
    const int64_t pixel = channels_last ? inside / channels : inside % pixels;
    const A value = A(product[(channel * images + image) * pixels + pixel]);
    output[index] = T(bias ? value + A(bias[channel]) : value);
  }
}

template <typename A>
__global__ void accumulate_kernel(int64_t count, const A* values, A* sums) {
  DCNZOO_FOR_EACH(index, count) sums[index] += values[index];
}

template <typename T, int Rank>
void launch_im2col(const Sampling<Accumulate<T>, Rank>& s, const Tensor& input, const Tensor& columns) {
  launch("im2col_kernel", im2col_kernel<T, Accumulate<T>, Rank>, blocks_for(s.threads()), kThreads, input, s,
         data_of<T>(input), mutable_data_of<T>(columns));
}

template <typename T, int Rank>
void launch_grad_offset_mask(const Sampling<Accumulate<T>, Rank>& s, int64_t owners, const Tensor& input,
                             const Tensor& grad_columns, Accumulate<T>* grad_offset,
                             Accumulate<T>* grad_mask) {
  const int64_t threads = owners * s.taps * s.images * s.out_pixels * kSumLanes;
  launch("grad_offset_mask_kernel", grad_offset_mask_kernel<T, Accumulate<T>, Rank>, blocks_for(threads),
         dim3(kSumColumns, kSumLanes), input, s, owners, data_of<T>(input), data_of<T>(grad_columns),
         grad_offset, grad_mask);
}

// out = a · b, batched. Autocast does not change the out variant.
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  call_operator<1>("aten::bmm", "out", a, b, out);
}

// sums += a · b, batched. Products of half types are not rounded before the addition: cuBLAS writes float.
template <typename A>
void multiply_and_add(const Tensor& a, const Tensor& b, const Tensor& sums) {
  const Tensor product = torch::stable::new_empty(sums, sizes_of(sums));
  if (a.scalar_type() == sums.scalar_type()) {
    multiply(a, b, product);
  } else if (!a.is_cuda()) {  // tests without a GPU
    const auto wide = [&](const Tensor& matrices) { return torch::stable::to(matrices, sums.scalar_type()); };
    multiply(wide(a), wide(b), product);
  } else {
    call_operator<1>("aten::bmm", "dtype_out", a, b, sums.scalar_type(), product);
  }
  launch("accumulate_kernel", accumulate_kernel<A>, blocks_for(product.numel()), kThreads, product,
         product.numel(), data_of<A>(product), mutable_data_of<A>(sums));
}

Tensor transposed(const Tensor& matrices) { return torch::stable::transpose(matrices, 1, 2); }

// Images [first, first + count) of a tensor, contiguous and as `type`, without a copy if possible.
Tensor images_of(Tensor tensor, int64_t first, int64_t count, ScalarType type) {
  const Tensor part = torch::stable::narrow(tensor, 0, first, count);
  return torch::stable::contiguous(torch::stable::to(part, type));
}

// A chunk of images, contiguous.
template <typename T>
struct Chunk {
  int64_t first, images;
  Tensor input;
  std::optional<Tensor> offset, mask;

  Chunk(const DeformConvShapes& s, int64_t first, const Tensor& input, const std::optional<Tensor>& offset,
        const std::optional<Tensor>& mask)
      : first(first),
        images(std::min(s.im2col_step, s.batch - first)),
        input(images_of(input, first, images, input.scalar_type())) {
    const ScalarType wide = accumulate_type(input.scalar_type());
    if (offset) this->offset = images_of(*offset, first, images, wide);
    if (mask) this->mask = images_of(*mask, first, images, wide);
  }

  template <int Rank>
  Sampling<Accumulate<T>, Rank> sampling(const DeformConvShapes& s) const {
    using A = Accumulate<T>;
    const auto channels_of = [&](int64_t groups) { return groups ? s.channels / groups : s.channels; };
    ChannelPieces pieces;
    pieces.block = std::gcd(channels_of(s.offset_groups), channels_of(s.mask_groups));
    pieces.per_block = ceil_div(pieces.block, ChannelPieces::kMost);
    pieces.count = s.channels / pieces.block * pieces.per_block;
    return {s.geometry<Rank>(),
            images,
            s.channels,
            s.taps,
            s.in_pixels,
            s.out_pixels,
            s.offset_groups,
            s.mask_groups,
            offset ? data_of<A>(*offset) : nullptr,
            mask ? data_of<A>(*mask) : nullptr,
            pieces};
  }

  Tensor new_columns(const DeformConvShapes& s) const {
    return torch::stable::new_empty(input, {s.groups, s.channels / s.groups * s.taps, images * s.out_pixels});
  }
};

Tensor weight_matrices(const DeformConvShapes& s, const Tensor& weight) {
  return torch::stable::view(torch::stable::contiguous(weight),
                             {s.groups, s.out_channels / s.groups, s.channels / s.groups * s.taps});
}

template <typename T, int Rank>
Tensor forward(const DeformConvShapes& s, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& bias_any) {
  const bool channels_last = wants_channels_last(input);
  const Tensor output = channels_last ? new_channels_last(input, output_sizes(s))
                                      : torch::stable::new_empty(input, output_sizes(s));
  if (output.numel() == 0) return output;
  const Tensor matrices = weight_matrices(s, weight);
  std::optional<Tensor> bias;
  if (bias_any) bias = torch::stable::contiguous(*bias_any);
  for (int64_t first = 0; first < s.batch; first += s.im2col_step) {
    const Chunk<T> chunk(s, first, input, offset, mask);
    const Tensor columns = chunk.new_columns(s);
    launch_im2col<T, Rank>(chunk.template sampling<Rank>(s), chunk.input, columns);
    const Tensor product =
        torch::stable::new_empty(input, {s.groups, s.out_channels / s.groups, chunk.images * s.out_pixels});
    multiply(matrices, columns, product);
    launch("store_output_kernel", store_output_kernel<T, Accumulate<T>>, blocks_for(product.numel()),
           kThreads, product, data_of<T>(product), bias ? data_of<T>(*bias) : nullptr, chunk.images,
           s.out_channels, s.out_pixels, channels_last,
           mutable_data_of<T>(output) + first * s.out_channels * s.out_pixels);
  }
  return output;
}

template <typename T, int Rank>
DeformConvGradients backward(const DeformConvShapes& s, const Tensor& grad_output, const Tensor& input,
                             const Tensor& weight, const std::optional<Tensor>& offset,
                             const std::optional<Tensor>& mask, const std::vector<bool>& wanted) {
  using A = Accumulate<T>;
  const ScalarType wide = accumulate_type(input.scalar_type());
  // In the accumulation type: half gradients are rounded only once, at the end.
  DeformConvGradients sums{
      new_gradient(input, wanted[0], input, wide), new_gradient(input, wanted[1], weight, wide),
      new_gradient(input, wanted[2], offset, wide), new_gradient(input, wanted[3], mask, wide)};
  if (grad_output.numel() == 0) return sums;

  const Tensor matrices = weight_matrices(s, weight);
  const int64_t outputs = s.out_channels / s.groups;
  for (int64_t first = 0; first < s.batch; first += s.im2col_step) {
    const Chunk<T> chunk(s, first, input, offset, mask);
    const Sampling<A, Rank> sampling = chunk.template sampling<Rank>(s);
    Tensor grad_chunk = grad_output;
    grad_chunk = torch::stable::narrow(grad_chunk, 0, first, chunk.images);
    grad_chunk = torch::stable::contiguous(torch::stable::transpose(grad_chunk, 0, 1));
    grad_chunk = torch::stable::view(grad_chunk, {s.groups, outputs, chunk.images * s.out_pixels});
    const Tensor columns = chunk.new_columns(s);

    if (wanted[1]) {
      launch_im2col<T, Rank>(sampling, chunk.input, columns);
      multiply_and_add<A>(grad_chunk, transposed(columns),
                          torch::stable::view(sums.weight, sizes_of(matrices)));
    }
    if (!wanted[0] && !wanted[2] && !wanted[3]) continue;
    multiply(transposed(matrices), grad_chunk, columns);  // replaces the columns by their gradient
    if (wanted[0])
      launch("col2im_kernel", col2im_kernel<T, A, Rank>, blocks_for(sampling.threads()), kThreads, columns,
             sampling, data_of<T>(columns),
             mutable_data_of<A>(sums.input) + first * s.channels * s.in_pixels);
    const int64_t points = first * s.taps * s.out_pixels;
    A* grad_offset = wanted[2] ? mutable_data_of<A>(sums.offset) + points * s.offset_groups * Rank : nullptr;
    A* grad_mask = wanted[3] ? mutable_data_of<A>(sums.mask) + points * s.mask_groups : nullptr;
    if (grad_offset && grad_mask && s.offset_groups == s.mask_groups) {
      launch_grad_offset_mask<T, Rank>(sampling, s.offset_groups, chunk.input, columns, grad_offset,
                                       grad_mask);
      continue;
    }
    if (grad_offset)
      launch_grad_offset_mask<T, Rank>(sampling, s.offset_groups, chunk.input, columns, grad_offset, nullptr);
    if (grad_mask)
      launch_grad_offset_mask<T, Rank>(sampling, s.mask_groups, chunk.input, columns, nullptr, grad_mask);
  }
  return sums;
}

Tensor deform_conv_cuda(const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
                        std::optional<Tensor> mask, std::optional<Tensor> bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups,
                        std::optional<int64_t> im2col_step) {
  const DeformConvShapes s =
      check_deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step);
  return dispatch_floating(input.scalar_type(), [&](auto zero) {
    return dispatch_rank(s.rank, [&](auto rank) {
      return forward<decltype(zero), decltype(rank)::value>(s, input, weight, offset, mask, bias);
    });
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv_backward_cuda(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
    std::optional<Tensor> mask, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, std::optional<int64_t> im2col_step,
    const std::vector<bool>& output_mask) {
  const DeformConvShapes s = check_deform_conv(input, weight, offset, mask, std::nullopt, stride, padding,
                                               dilation, groups, im2col_step);
  check_grad_output(s, grad_output, input, offset, mask, output_mask);
  const DeformConvGradients sums = dispatch_floating(input.scalar_type(), [&](auto zero) {
    return dispatch_rank(s.rank, [&](auto rank) {
      return backward<decltype(zero), decltype(rank)::value>(s, grad_output, input, weight, offset, mask,
                                                             output_mask);
    });
  });
  Tensor grad_input = to_type_of(input, sums.input);
  if (output_mask[0] && wants_channels_last(input)) {
    Tensor reordered = new_channels_last(input, sizes_of(input));
    grad_input = torch::stable::copy_(reordered, grad_input);
  }
  Tensor grad_bias = torch::stable::new_empty(input, {0});
  if (output_mask[4]) {
    std::vector<int64_t> axes{0};
    for (int64_t axis = 2; axis < input.dim(); ++axis) axes.push_back(axis);
    grad_bias = torch::stable::sum(grad_output, axes, false);
  }
  return {grad_input, to_type_of(weight, sums.weight), to_type_of(offset, sums.offset),
          to_type_of(mask, sums.mask), grad_bias};
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("deform_conv", TORCH_BOX(&dcnzoo::deform_conv_cuda));
  m.impl("_deform_conv_backward", TORCH_BOX(&dcnzoo::deform_conv_backward_cuda));
}
